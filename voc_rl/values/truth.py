"""What really happened: discounted returns of logged episodes."""

from __future__ import annotations

import math

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_gamma

# a return is known once the discounted weight of what was not seen is below this
TAIL = 0.01
UNKNOWN = 0.05  # largest share of unknown returns beside those that are known because the episode ended


def horizon(gamma: float) -> int:
    """Smallest H with gamma^H < ``TAIL``, in agent steps (44 at gamma 0.9)."""
    check_gamma(gamma)
    return 1 if gamma == 0 else math.floor(math.log(TAIL) / math.log(gamma)) + 1


def returns_to_go(reward: np.ndarray, discount: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted returns of one episode's T rows, float64 (T,), from rewards and discounts *on arrival* at each row.

    V_t = sum_{k>=1} gamma^(k-1) r_{t+k} to the last row, whose return is 0.
    """
    returns = np.zeros(len(reward))
    for row in range(len(reward) - 2, -1, -1):
        returns[row] = float(reward[row + 1]) + gamma * float(discount[row + 1]) * returns[row + 1]
    return returns


def completed(returns: np.ndarray, steps_left: np.ndarray, gamma: float) -> np.ndarray:
    """Returns (T,) that a time limit cut ``steps_left`` (T,) steps later, over their weight 1 - gamma^steps_left.

    What lies beyond the cut is taken to be like what lies before it. Without that, values of a reward that hardly
    varies would all be too low by the weight that is missing.
    """
    return returns / (1.0 - gamma**steps_left)


def known_rows(steps: np.ndarray, terminated: np.ndarray, horizon: int) -> list[np.ndarray]:
    """Where the return of each episode's rows is known: bool (steps + 1,) for each.

    Args:
        steps: int (E,), of each episode. terminated: bool (E,), the others were cut by a time limit.

    A cut episode's rows are known as long as ``horizon`` steps were left: later returns would be truncated geometrics.
    Those of a terminated one all are. But counting every row that is known would count late rows because they are about
    to end, and not those that lived on until they were cut. So a row at step t of a terminated episode counts where at
    most ``UNKNOWN`` of the episodes that came so far are unknown, and one of a cut episode there, or where at most
    ``UNKNOWN`` of those that are known terminate within the horizon: else it would count because it lived on. With one
    time limit L for all, both are t <= L - horizon.
    """
    t = np.arange(int(steps.max(initial=0)) + 1)
    alive = len(steps) - np.searchsorted(np.sort(steps), t)

    def within(ends: np.ndarray) -> np.ndarray:
        """How many of the episodes with these ends have them after t and before t + horizon, or at t."""
        return np.searchsorted(ends, t + horizon) - np.searchsorted(ends, t)

    unknown = within(np.sort(steps[~terminated]))
    unbiased = unknown <= UNKNOWN * alive
    lasting = unbiased | (within(np.sort(steps[terminated])) <= UNKNOWN * (alive - unknown))
    return [
        unbiased[: n + 1] if ended else lasting[: n + 1] & (np.arange(n + 1) <= n - horizon)
        for n, ended in zip(steps, terminated, strict=True)
    ]


def discounted_returns(
    dataset: Episodes, gamma: float, reward: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row, float64 (N,), and where it is known, bool (N,); ``reward`` (N,): others than the data's.

    ``returns_to_go`` of every episode, known by ``known_rows``, and ``completed`` there.
    """
    reward = dataset.reward if reward is None else reward
    returns = np.zeros(len(dataset))
    for start, end in zip(dataset.starts, dataset.ends, strict=True):
        returns[start:end] = returns_to_go(reward[start:end], dataset.discount[start:end], gamma)
    steps, terminated = dataset.ends - dataset.starts - 1, dataset.terminal[dataset.ends - 1]
    known = np.concatenate(known_rows(steps, terminated, horizon(gamma)))
    cut = known & ~terminated[dataset.episode]
    returns[cut] = completed(returns[cut], dataset.steps_left[cut], gamma)
    return returns, known


def check_known(known: np.ndarray, gamma: float, which: str, least: int = 1) -> None:
    """Refuse data of which fewer than ``least`` rows have a known return, bool (N,).

    Raises:
        VOCError: they have.
    """
    if known.sum() < least:
        raise VOCError(
            f"Too few {which} states have a known return at gamma {gamma:g}: it takes {horizon(gamma)} steps before a "
            "time limit cuts the episode and, where many episodes terminate, nearly the same limit for all, so take a "
            "smaller gamma, which needs fewer steps."
        )


def mean_return(dataset: Episodes, gamma: float) -> float:
    """Mean known return of the rows: the best constant that these data can name.

    Raises:
        VOCError: no row has a known return.
    """
    returns, known = discounted_returns(dataset, gamma)
    check_known(known, gamma, "training")
    return float(returns[known].mean())
