"""How a training target is drawn: which row of the dataset it is, or from where the target network continues.

Generative temporal difference: the future at a discounted time is the row k steps on, k ~ Geometric(1 - gamma),
as long as k <= n; beyond n the target network samples it from n steps on. n = 1 is the one-step target of the
paper. Valid on data of the policy that is modelled (the behaviour).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import check_gamma, check_positive


@dataclass(frozen=True)
class Targets:
    """M targets for each of B rows, all int64 (B, M).

    row: the dataset row whose codes are the target, or -1. bootstrap: the row from which the target network samples
    it, or -1. Where both are -1 the target is END (the episode terminated before).
    """

    row: np.ndarray
    bootstrap: np.ndarray


def draw_targets(
    dataset: Episodes, rows: np.ndarray, gamma: float | np.ndarray, n: int, per_row: int, rng: np.random.Generator
) -> Targets:
    """Draw ``per_row`` targets for each of ``rows``, at one discount or at one each, (B,).

    With T the last row of the episode and k the geometric time: the real row t+k if k <= min(n, T - t); END if the
    episode terminated at T and T - t <= n; otherwise a sample of the target network from t + min(n, T - t).
    """
    check_positive(n, "n")
    k = geometric_times(gamma, (len(rows), per_row), rng)
    left = dataset.steps_left[rows][:, None]
    reach = np.minimum(n, left)
    real = k <= reach
    ended = ~real & (reach == left) & dataset.terminal[rows + dataset.steps_left[rows]][:, None]
    row = np.where(real, rows[:, None] + k, -1)
    bootstrap = np.where(real | ended, -1, rows[:, None] + reach)
    return Targets(row, bootstrap)


def geometric_times(gamma: float | np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Times int64 (B, M) with P(k) = (1 - gamma) gamma^(k-1), at one discount or at one for each row, (B,)."""
    if isinstance(gamma, np.ndarray):
        for bound in (gamma.min(initial=0.0), gamma.max(initial=0.0)):
            check_gamma(float(bound))
        return rng.geometric(1.0 - gamma[:, None], size=shape)
    return rng.geometric(1.0 - check_gamma(gamma), size=shape)


def default_n(gamma: float) -> int:
    """Steps of real data per target: 4 / (1 - gamma), so that about one target in fifty is bootstrapped."""
    return max(round(4.0 / (1.0 - gamma)), 1)


@dataclass(frozen=True)
class NStepReturns:
    """What an n-step critic regresses on, for every row (or those asked for): partial + weight * value[bootstrap].

    partial (N,) float32 = sum_{k<=m} gamma^(k-1) r_{t+k}, m = min(n, steps left); weight (N,) float32 = gamma^m, 0
    after a termination; bootstrap (N,) int64 = t + m.
    """

    partial: np.ndarray
    weight: np.ndarray
    bootstrap: np.ndarray


def n_step_returns(
    dataset: Episodes, gamma: float | np.ndarray, n: int, rows: np.ndarray | None = None
) -> NStepReturns:
    """The same n steps as ``draw_targets``, with all the rewards instead of one.

    ``rows`` int64 (B,): these alone, at one discount or at one each, (B,); None: all rows.
    """
    rows = np.arange(len(dataset)) if rows is None else rows
    gamma = np.broadcast_to(np.asarray(gamma, np.float64), rows.shape)
    steps = np.minimum(n, dataset.steps_left[rows])
    partial = np.zeros(len(rows))
    for k in range(1, int(steps.max(initial=0)) + 1):
        inside = steps >= k
        partial[inside] += gamma[inside] ** (k - 1) * dataset.reward[rows[inside] + k]
    bootstrap = rows + steps
    weight = np.where(dataset.terminal[bootstrap], 0.0, gamma**steps)
    return NStepReturns(partial.astype(np.float32), weight.astype(np.float32), bootstrap)
