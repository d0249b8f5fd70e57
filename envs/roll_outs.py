"""What a policy really earns: roll-outs from stored simulator states, with the time limit lifted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from voc_rl.envs.dmcontrol import DMControlEnv
from voc_rl.errors import VOCError, check_positive
from voc_rl.workers import worker_pool

ACTION_REPEAT = 2  # of all data that the benchmarks collect


@dataclass(frozen=True)
class RollOuts:
    """M roll-outs of H agent steps from each of B states, under one policy.

    reward (B, M, H) float32, on arrival after each step, 0 after a termination; state (B, M, H, S) float32, the flat
    state arrived at (the last one again after a termination).
    """

    reward: np.ndarray
    state: np.ndarray


def roll_outs(
    task: str,
    physics: np.ndarray,
    policies: Sequence[Any],
    horizon: int,
    count: int,
    seed: int,
    *,
    processes: int = 1,
) -> list[RollOuts]:
    """Restore each simulator state (B, P) and follow each policy for ``horizon`` agent steps, ``count`` times.

    Policies observe the flat state and have ``draw``. A roll-out's randomness comes from the seed and the places of
    policy, state and roll-out alone, so that neither the number of processes nor the other policies change it.

    Raises:
        VOCError: a policy that observes pixels, physics vectors of another task, or a task whose model is drawn anew in
            every episode (a target, say), which no physics vector holds.
    """
    check_positive(horizon, "horizon")
    check_positive(count, "count")
    for policy in policies:
        if policy.observation != "state":
            raise VOCError(f"{policy!r} observes {policy.observation}; roll-outs follow policies of the flat state.")
    jobs = [(task, physics, policy, horizon, count, [seed, i]) for i, policy in enumerate(policies)]
    if processes == 1:
        return [_follow(*job) for job in jobs]
    with worker_pool(processes, "that rolls out policies", "fewer processes need less memory") as pool:
        futures = [pool.submit(_follow, *job) for job in jobs]
        for future in as_completed(futures):  # an error is answered when it happens
            future.result()
        return [future.result() for future in futures]


def _follow(task: str, physics: np.ndarray, policy: Any, horizon: int, count: int, seed: list[int]) -> RollOuts:
    env = DMControlEnv(task, ACTION_REPEAT, max_episode_steps=horizon + 1)
    _check_restorable(env)
    size = env.observation_space.shape[0]  # type: ignore[index]
    reward = np.zeros((len(physics), count, horizon), np.float32)
    state = np.zeros((len(physics), count, horizon, size), np.float32)
    for i, vector in enumerate(physics):
        for j in range(count):
            rng = np.random.default_rng([*seed, i, j])
            observation, _ = env.reset(seed=0, options={"physics": vector})
            for k in range(horizon):
                action = np.clip(policy.draw(observation, rng), -1, 1)
                observation, reward[i, j, k], terminated, _, _ = env.step(action)
                state[i, j, k:] = observation
                if terminated:
                    break
    env.close()
    return RollOuts(reward, state)


def _check_restorable(env: DMControlEnv) -> None:
    """Refuse a task whose model depends on the seed: its stored states cannot be restored without that."""
    one, other = (_model_bytes(env, seed) for seed in (0, 1))
    if not np.array_equal(one, other):
        raise VOCError(
            f"{env.task} draws its target, gains or terrain anew in every episode, and physics vectors do not hold "
            "them; roll-outs need a task whose model stays, as walker's and cheetah's do."
        )


def _model_bytes(env: DMControlEnv, seed: int) -> np.ndarray:
    """All of MuJoCo's model in an episode of that seed, uint8."""
    import mujoco

    env.reset(seed=seed)
    model = env.physics.model.ptr
    whole = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, whole)
    return whole
