"""What a dataset hands out: the next steps from some rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """n steps onward from B rows; steps beyond the end of an episode are masked, never taken from the next one.

    obs, next_obs (B, 3K, H, W) uint8: at the row, and ``steps`` later; action (B, n, A), reward (B, n) and
    discount (B, n) float32 of the steps; mask (B, n) bool; steps (B,) int64 = how many of the n exist.
    """

    rows: np.ndarray
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    next_obs: np.ndarray
    mask: np.ndarray
    steps: np.ndarray
