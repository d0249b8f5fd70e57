"""Rewards that nobody logged, as functions of the flat state of dm_control's Walker and Cheetah.

Shaped like the suite's own (Tassa et al. 2018), but of a single state: speed is that of the root, where the suite takes
the centre of mass. All lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RewardFunction = Callable[[np.ndarray], np.ndarray]

# Walker's flat state (24): the torso's upright at 0, height at 14, then velocities (9): up, forward, ...
_UPRIGHT, _HEIGHT, _WALKER_SPEED = 0, 14, 16
# Cheetah's flat state (17): height and pitch, joints, then velocities (9): forward first
_PITCH, _CHEETAH_SPEED = 1, 8


def tolerance(x: np.ndarray, low: float, high: float, margin: float) -> np.ndarray:
    """1 within [low, high], falling linearly to 0 at ``margin`` beyond."""
    outside = np.maximum(low - x, x - high)
    return np.clip(1.0 - outside / margin, 0.0, 1.0) if margin else (outside <= 0).astype(float)


def stand(state: np.ndarray) -> np.ndarray:
    """Walker: upright, its torso at least 1.2 high."""
    return (3.0 * tolerance(state[..., _HEIGHT], 1.2, np.inf, 0.6) + (1.0 + state[..., _UPRIGHT]) / 2.0) / 4.0


def walk(state: np.ndarray) -> np.ndarray:
    """Walker: standing, and forward at 1 m/s or more: nearly the logged reward."""
    return stand(state) * (5.0 * tolerance(state[..., _WALKER_SPEED], 1.0, np.inf, 0.5) + 1.0) / 6.0


def run(state: np.ndarray) -> np.ndarray:
    """Walker: standing, and forward at 8 m/s or more."""
    return stand(state) * (5.0 * tolerance(state[..., _WALKER_SPEED], 8.0, np.inf, 8.0) + 1.0) / 6.0


def backward(state: np.ndarray) -> np.ndarray:
    """Walker: standing, and backward at 1 m/s or more."""
    return stand(state) * tolerance(-state[..., _WALKER_SPEED], 1.0, np.inf, 1.0)


def fallen(state: np.ndarray) -> np.ndarray:
    """Walker: 1 where the torso is below .7; its value (1 - gamma) V is the chance of having fallen."""
    return (state[..., _HEIGHT] < 0.7).astype(float)


def cheetah_speed(low: float, high: float, margin: float) -> RewardFunction:
    """Cheetah: forward between two speeds (m/s)."""
    return lambda state: tolerance(state[..., _CHEETAH_SPEED], low, high, margin)


def overturned(state: np.ndarray) -> np.ndarray:
    """Cheetah: 1 where it lies on its back; its value (1 - gamma) V is the chance of that."""
    return (np.cos(state[..., _PITCH]) < 0.0).astype(float)


REWARDS: dict[str, dict[str, RewardFunction]] = {
    "walker-walk": {"stand": stand, "walk": walk, "run": run, "backward": backward, "fallen": fallen},
    "cheetah-run": {
        "run": cheetah_speed(10.0, np.inf, 10.0), "backward": cheetah_speed(-np.inf, -2.0, 2.0),
        "speed 2": cheetah_speed(1.5, 2.5, 1.0), "speed 5": cheetah_speed(4.0, 6.0, 2.0), "overturned": overturned,
    },
}  # fmt: skip
