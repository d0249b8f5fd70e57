"""What really happened: discounted returns of logged episodes."""

from __future__ import annotations

import math

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_gamma

# a return is known once the discounted weight of what was not seen is below this
TAIL = 0.01


def horizon(gamma: float, tail: float = TAIL) -> int:
    """Smallest H with gamma^H < tail, in agent steps (44 at gamma 0.9)."""
    check_gamma(gamma)
    return 1 if gamma == 0 else math.floor(math.log(tail) / math.log(gamma)) + 1


def returns_to_go(reward: np.ndarray, discount: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted returns of one episode's T rows, float64 (T,), from rewards and discounts *on arrival* at each row.

    V_t = sum_{k>=1} gamma^(k-1) r_{t+k} to the last row, whose return is 0.
    """
    returns = np.zeros(len(reward))
    for row in range(len(reward) - 2, -1, -1):
        returns[row] = float(reward[row + 1]) + gamma * float(discount[row + 1]) * returns[row + 1]
    return returns


def discounted_returns(dataset: Episodes, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row, float64 (N,), and where it is known, bool (N,).

    ``returns_to_go`` of every episode. Known where the episode terminated, or where at least H steps were left when a
    time limit cut it (t <= T - H): later rows would be truncated geometrics.
    """
    returns = np.zeros(len(dataset))
    for start, end in zip(dataset.starts, dataset.ends, strict=True):
        returns[start:end] = returns_to_go(dataset.reward[start:end], dataset.discount[start:end], gamma)
    terminated = dataset.terminal[dataset.ends[dataset.episode] - 1]
    return returns, terminated | (dataset.steps_left >= horizon(gamma))


def mean_return(dataset: Episodes, gamma: float) -> float:
    """Mean known return of the rows: the best constant that these data can name.

    Raises:
        VOCError: no row has a known return.
    """
    returns, known = discounted_returns(dataset, gamma)
    if not known.any():
        raise VOCError("No training state has a known return; episodes are shorter than the horizon of this gamma.")
    return float(returns[known].mean())
