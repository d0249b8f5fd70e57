"""Small Markov chains with exact answers, and datasets made of their walks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voc_rl.data import DataSpec, Episodes
from voc_rl.data.hdf5 import FIRST, LAST, MID, Shard


def ring(states: int = 12) -> np.ndarray:
    """A drifting walk on a ring, (states, states); it forgets its start slowly enough for gamma .95 to matter."""
    P = np.zeros((states, states))
    for s in range(states):
        P[s, s] += 0.75
        P[s, (s + 1) % states] += 0.15 + 0.05 * (s % 3 == 0)
        P[s, (s - 1) % states] += 0.05
        P[s, (s + 4) % states] += 0.05 - 0.05 * (s % 3 == 0)
    return P


def slow_ring(states: int = 12) -> np.ndarray:
    """A ring that is walked round in about 400 steps, (states, states): at gamma .99 the far future is another one."""
    return 0.97 * np.eye(states) + 0.03 * np.roll(np.eye(states), 1, axis=1)


def occupancy(P: np.ndarray, gamma: float) -> np.ndarray:
    """(1 - gamma) P (I - gamma P)^-1."""
    return (1 - gamma) * P @ np.linalg.inv(np.eye(len(P)) - gamma * P)


def values(P: np.ndarray, reward: np.ndarray, gamma: float) -> np.ndarray:
    """P (I - gamma P)^-1 r, r indexed by the state arrived at."""
    return P @ np.linalg.inv(np.eye(len(P)) - gamma * P) @ reward


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of each row."""
    return 0.5 * np.abs(p - q).sum(-1)


def walks(P: np.ndarray, episodes: int, rows: int, seed: int = 0) -> np.ndarray:
    """int64 (episodes, rows) walks of the chain from uniform starts."""
    rng = np.random.default_rng(seed)
    cumulative = P.cumsum(1)
    state = rng.integers(len(P), size=episodes)
    path = [state]
    for _ in range(rows - 1):
        state = (rng.random((episodes, 1)) > cumulative[state]).sum(1).clip(max=len(P) - 1)
        path.append(state)
    return np.stack(path, 1)


def episodes_of(
    rewards: list[np.ndarray], terminated: list[bool] | np.ndarray, actions: np.ndarray | None = None
) -> Episodes:
    """A dataset with these rewards (row 0 included) in memory; its frames do not exist, so none may be read.

    ``actions`` (N, A): the action that led to each row; None: zeros of size 1.
    """
    lengths = [len(r) for r in rewards]
    step_type = np.concatenate([[FIRST, *[MID] * (n - 2), LAST][:n] for n in lengths]).astype(np.uint8)
    discount = np.ones(sum(lengths), np.float32)
    discount[np.cumsum(lengths) - 1] = np.where(terminated, 0.0, 1.0)
    arrays = {
        "action": np.zeros((sum(lengths), 1), np.float32) if actions is None else actions.astype(np.float32),
        "reward": np.concatenate(rewards).astype(np.float32),
        "discount": discount,
        "step_type": step_type,
    }
    return Episodes([Shard(Path("memory"), sum(lengths), (3, 2, 2), arrays, DataSpec())], stack=1)
