"""The unit in which critics learn values: by how much these may differ, whatever constant is added to all rewards."""

from __future__ import annotations

import numpy as np

from voc_rl.data import Episodes

_SMALL = 1e-3  # of the mean, where values do not differ; of one, where there are no rewards


def reward_units(dataset: Episodes, reward: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unit float32 (K,) of rewards (N, K) on arrival: by how much (1 - gamma) V may differ from the mean.

    An end takes gamma^k of the value of a constant reward k steps before it. Without ends, a constant on top of all
    rewards makes the unit at most four times as large.
    """
    arrived = reward[dataset.step_type > 0].astype(np.float64)  # sums of a million of float32 are far off
    mean, deviation = arrived.mean(0), arrived.std(0)
    ended = dataset.terminal[dataset.ends - 1][dataset.episode]
    taken = np.sqrt(np.mean(np.where(ended, gamma ** (2.0 * dataset.steps_left), 0.0)))
    spread = np.maximum(np.minimum(np.abs(mean), 2 * np.hypot(deviation, mean * taken)), deviation / 2)
    constant = np.where(mean == 0, _SMALL, _SMALL * np.abs(mean))
    return mean.astype(np.float32), np.where(spread > 1e-7 * np.abs(mean), spread, constant).astype(np.float32)
