"""One episode of any pixel environment, as rows (alignment: ``voc_rl.data.hdf5``)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from voc_rl.data import Episode
from voc_rl.envs.raw_reward import raw_reward
from voc_rl.errors import VOCError, check_choice
from voc_rl.policy import BehaviourPolicy, choices_of, in_unit_bounds, numbers, one_hot_rows


def record_episode(env: gym.Env, policy: BehaviourPolicy, seed: np.random.SeedSequence) -> Episode:
    """Play one episode; all randomness comes from ``seed``, which gives another episode each time that it is asked.

    Args:
        env: a Gymnasium environment that shows stacked frames uint8 (3K, H, W), newest last (``PixelObservation``), and
            takes discrete actions (recorded one-hot) or actions in [-1, 1]. Of ``info``, ``state`` (policies of the
            state need it), ``physics`` and ``discount`` (else 1; always 0 at a termination) are kept where they are
            given. Rewards are what the environment paid, also where a value wrapper shapes them.

    Raises:
        VOCError: another kind of seed, other actions or observations, a policy that draws no actions or none of the
            environment's, no ``state`` for one of the state, a reward that is not one number, or a ``state`` or
            ``physics`` that is no vector.
    """
    choices, space = _check_env(env), env.action_space
    check_behaviour(policy)
    if not isinstance(seed, np.random.SeedSequence):
        raise VOCError(f"seed is {seed!r}; a SeedSequence is needed, as np.random.SeedSequence(0).")
    env_seed, policy_seed = seed.spawn(2)
    rng = np.random.default_rng(policy_seed)
    policy.start_episode(rng)
    observation, info = env.reset(seed=int(env_seed.generate_state(1)[0]))
    nothing = np.zeros(choices or space.shape or (), np.float32)
    rows = [_row(observation, {"discount": 1.0, **info}, nothing, 0.0, 0.0, 0, 0)]
    over = False
    while not over:
        if (seen := info.get("state") if policy.observation == "state" else observation) is None:
            raise VOCError(
                f"{policy!r} observes states, and {env} gives none in info['state']; take a policy of pixels."
            )
        drawn, log_prob, policy_id = policy.sample(seen, rng)
        action = _checked_action(drawn, nothing.shape, choices, policy)
        played = numbers(action, space) if choices else np.clip(action, -1, 1)
        observation, reward, terminated, truncated, info = env.step(played)
        over = terminated or truncated
        # a wrapper may end what the environment inside, which gave the discount, would go on with
        info = {**info, "discount": 0.0 if terminated else info.get("discount", 1.0)}
        paid = raw_reward(info, _reward(reward))
        rows.append(_row(observation, info, action, paid, log_prob, policy_id, 2 if over else 1))
    given = [name for name in rows[0] if all(name in row for row in rows)]
    return Episode(**{name: np.stack([row[name] for row in rows]) for name in given})


def check_behaviour(policy: Any) -> None:
    """Refuse what draws no actions with their densities."""
    if not isinstance(policy, BehaviourPolicy):
        raise VOCError(
            f"{policy!r} cannot collect: `sample` and `start_episode` are needed, which "
            "voc_rl.agents.NoisyPolicy (EpsilonGreedy, for discrete actions) adds to anything with `predict`."
        )
    check_choice(policy.observation, ("state", "pixels"), "policy.observation")


def _check_env(env: gym.Env) -> int | None:
    """Refuse what cannot be recorded; how many discrete actions there are, None for continuous ones."""
    if not isinstance(env, gym.Env):
        raise VOCError(f"The environment is a {type(env).__name__}; one Gymnasium environment is needed, not several.")
    space, actions = env.observation_space, env.action_space
    frames = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape or ()) == 3
    if not frames or space.shape[0] % 3 or space.shape[2] < min(space.shape[:2]):  # type: ignore[index]
        raise VOCError(
            f"{env} shows {space}; stacked RGB frames uint8 (3K, H, W), channels first, are needed, as of "
            "PixelObservation."
        )
    if (choices := choices_of(actions)) is not None:
        return choices
    if not (isinstance(actions, gym.spaces.Box) and in_unit_bounds(actions) and len(actions.shape) == 1):
        raise VOCError(
            f"{env} takes {actions}; discrete actions or a vector in [-1, 1] are needed "
            "(gymnasium.wrappers.RescaleAction)."
        )
    return None


def _checked_action(drawn: Any, shape: tuple[int, ...], choices: int | None, policy: Any) -> np.ndarray:
    action = np.asarray(drawn)
    if action.shape != shape or not (np.isfinite(action).all() if choices is None else one_hot_rows(action[None])):
        kind = " and finite numbers" if choices is None else ", one-hot as EpsilonGreedy's,"
        raise VOCError(f"{policy!r} drew the action {drawn}; one of shape {shape}{kind} is needed here.")
    return action


def _reward(reward: Any) -> float:
    """One number, also where an environment wraps it in an array."""
    found = np.asarray(reward)
    if found.size != 1 or found.dtype.kind not in "biuf":
        raise VOCError(f"The environment gave the reward {reward!r}; one number is needed.")
    return float(found.item())


def _vector(info: dict[str, Any], name: str) -> np.ndarray:
    vector = np.array(info[name])
    if vector.ndim != 1 or vector.dtype.kind not in "biuf":
        raise VOCError(f"info[{name!r}] is {info[name]!r}; a vector of numbers is needed.")
    return vector


def _row(
    observation: np.ndarray,
    info: dict[str, Any],
    unclipped: np.ndarray,
    reward: float,
    log_prob: float,
    policy_id: int,
    step_type: int,
) -> dict[str, Any]:
    # copies: environments may draw the next step into the same arrays
    known: dict[str, Any] = {name: _vector(info, name) for name in ("state", "physics") if name in info}
    return {
        "frames": observation[-3:].copy(),
        "action": np.clip(unclipped, -1, 1).astype(np.float32),
        "reward": np.float32(reward),
        "discount": np.float32(info["discount"]),
        "step_type": np.uint8(step_type),
        **known,
        "log_prob": np.float32(log_prob),
        "unclipped_action": unclipped.astype(np.float32),
        "policy_id": np.int16(policy_id),
    }
