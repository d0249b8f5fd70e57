"""A chain of links with exact Q values, and the walks through it that agents learn from offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from voc_rl.data import DataSpec, Episode, write_episode

GAMMA, LINKS = 0.9, 3
BEST, PAID = np.array([0.5, -0.5, 0.0]), np.array([1.0, -1.0, 2.0])


def reward(s: Any, a: Any) -> Any:
    """Of action a at link s: the most is paid for the best action."""
    return PAID[s] - (a - BEST[s]) ** 2


def exact_q(s: int, a: np.ndarray) -> np.ndarray:
    """Links follow one another and end after the last; the best actions' rewards follow."""
    return reward(s, a) + sum(GAMMA ** (later - s) * PAID[later] for later in range(s + 1, LINKS))


def seen(s: Any) -> Any:
    return np.float32(s) - np.float32((LINKS - 1) / 2)


class Chain(gym.Env[np.ndarray, np.ndarray]):
    """Only its spaces are used, and one learner's steps."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros(1, np.float32), 0.0, True, False, {}


def write_chain(folder: Path) -> Path:
    """Walks from random links by random actions; some end at the end, some are cut before."""
    rng = np.random.default_rng(0)
    for i in range(150):
        first = int(rng.integers(LINKS))
        rows = int(rng.integers(1, LINKS + 1 - first)) + 1
        link = first + np.arange(rows)
        action = np.append(0.0, rng.uniform(-1, 1, rows - 1))
        step_type = np.full(rows, 1, np.uint8)
        step_type[[0, -1]] = 0, 2
        discount = np.ones(rows, np.float32)
        discount[-1] = link[-1] < LINKS
        episode = Episode(
            frames=np.zeros((rows, 3, 2, 2), np.uint8),
            action=action[:, None].astype(np.float32),
            reward=np.append(0.0, reward(link[:-1], action[1:])).astype(np.float32),
            discount=discount,
            step_type=step_type,
            state=seen(link)[:, None],
        )
        write_episode(folder / f"episode_{i:03d}.hdf5", episode, DataSpec(task="chain", size=2))
    return folder
