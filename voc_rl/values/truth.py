"""What really happened: discounted returns of logged episodes."""

from __future__ import annotations

import math

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_gamma

# a return is known once the discounted weight of what was not seen is below this
TAIL = 0.01
UNKNOWN = 0.05  # largest share of unknown returns beside those that are known because the episode ended


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


def known_rows(steps: np.ndarray, terminated: np.ndarray, horizon: int) -> list[np.ndarray]:
    """Where the return of each episode's rows is known: bool (steps + 1,) for each.

    Args:
        steps: int (E,), of each episode. terminated: bool (E,), the others were cut by a time limit.

    A cut episode's rows are known as long as ``horizon`` steps were left: later returns would be truncated geometrics.
    Those of a terminated one all are, but counting all would count late rows because they are about to end, and not
    those that lived on until they were cut: too low on average. So at step t they count where at most ``UNKNOWN`` of
    the episodes that came so far are unknown. Made for one time limit: with a common limit L, where t <= L - horizon.
    """
    longest = int(steps.max(initial=0))
    t = np.arange(longest + 1)
    alive = len(steps) - np.searchsorted(np.sort(steps), t)
    cut = np.sort(steps[~terminated])  # unknown at t: steps - horizon < t <= steps
    unknown = np.searchsorted(cut, t + horizon) - np.searchsorted(cut, t)
    counts = unknown <= UNKNOWN * alive
    return [
        counts[: n + 1] if ended else np.arange(n + 1) <= n - horizon
        for n, ended in zip(steps, terminated, strict=True)
    ]


def discounted_returns(dataset: Episodes, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row, float64 (N,), and where it is known, bool (N,).

    ``returns_to_go`` of every episode, known by ``known_rows``.
    """
    returns = np.zeros(len(dataset))
    for start, end in zip(dataset.starts, dataset.ends, strict=True):
        returns[start:end] = returns_to_go(dataset.reward[start:end], dataset.discount[start:end], gamma)
    steps, terminated = dataset.ends - dataset.starts - 1, dataset.terminal[dataset.ends - 1]
    return returns, np.concatenate(known_rows(steps, terminated, horizon(gamma)))


def mean_return(dataset: Episodes, gamma: float) -> float:
    """Mean known return of the rows: the best constant that these data can name.

    Raises:
        VOCError: no row has a known return.
    """
    returns, known = discounted_returns(dataset, gamma)
    if not known.any():
        raise VOCError("No training state has a known return; episodes are shorter than the horizon of this gamma.")
    return float(returns[known].mean())
