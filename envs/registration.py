"""``gymnasium.make("voc_rl/walker-walk-v0")``: every task of the dm_control suite, without importing it.

``import voc_rl.envs`` registers them (Gymnasium 1 has no plug-ins that it finds by itself); in one line,
``gymnasium.make("voc_rl.envs:voc_rl/walker-walk-v0")`` does that import too.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

# dm_control.suite.ALL_TASKS of dm_control 1.0.50
TASKS: tuple[str, ...] = (
    "acrobot-swingup",
    "acrobot-swingup_sparse",
    "ball_in_cup-catch",
    "cartpole-balance",
    "cartpole-balance_sparse",
    "cartpole-swingup",
    "cartpole-swingup_sparse",
    "cartpole-two_poles",
    "cartpole-three_poles",
    "cheetah-run",
    "dog-stand",
    "dog-walk",
    "dog-trot",
    "dog-run",
    "dog-fetch",
    "finger-spin",
    "finger-turn_easy",
    "finger-turn_hard",
    "fish-upright",
    "fish-swim",
    "hopper-stand",
    "hopper-hop",
    "humanoid-stand",
    "humanoid-walk",
    "humanoid-run",
    "humanoid-run_pure_state",
    "humanoid_CMU-stand",
    "humanoid_CMU-walk",
    "humanoid_CMU-run",
    "lqr-lqr_2_1",
    "lqr-lqr_6_2",
    "manipulator-bring_ball",
    "manipulator-bring_peg",
    "manipulator-insert_ball",
    "manipulator-insert_peg",
    "pendulum-swingup",
    "point_mass-easy",
    "point_mass-hard",
    "quadruped-walk",
    "quadruped-run",
    "quadruped-escape",
    "quadruped-fetch",
    "reacher-easy",
    "reacher-hard",
    "stacker-stack_2",
    "stacker-stack_4",
    "swimmer-swimmer6",
    "swimmer-swimmer15",
    "walker-stand",
    "walker-walk",
    "walker-run",
)


def env_id(task: str) -> str:
    """The Gymnasium id of a task: ``"walker-walk"`` is ``"voc_rl/walker-walk-v0"``."""
    return f"voc_rl/{task}-v0"


def register_envs() -> None:
    """Register every task with Gymnasium; calling it again changes nothing.

    ``gymnasium.make`` takes ``make_env``'s arguments; its own ``max_episode_steps`` only shortens episodes.
    """
    for task in TASKS:
        if env_id(task) not in registry:
            register(env_id(task), entry_point="voc_rl.envs.make:make_env", kwargs={"task": task})
