"""How good values of policies are: errors, ranks, regret of choosing by them, and coverage of intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from voc_rl.errors import VOCError

SUBSETS, SUBSET_SIZE = 500, 10
RESAMPLED = 2000
LEVEL = 0.9  # of the intervals that are scored


def policy_scores(
    estimate: Mapping[str, float],
    truth: Mapping[str, float],
    low: Mapping[str, float],
    high: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Scores of estimated J against true J, by policy.

    mae, bias: in units of J. spearman: rank correlation, also within the better half by truth (spearman_top_half); 0
    where the estimates do not differ. regret@k: true J that is lost by picking the best of the k highest estimates out
    of ten policies drawn at random (500 times), as a share of the range of true J; among equal estimates chance
    decides. coverage90: share of intervals that hold the truth. interval_score: width plus 2 / (1 - .9) times what
    the truth lies outside (Gneiting and Raftery 2007).

    Raises:
        VOCError: estimates of other policies than the truth, or fewer than two.
    """
    names = list(truth)
    if set(names) != set(estimate) or len(names) < 2:
        raise VOCError("Estimates and truth have to name the same policies, at least two.")
    mean, true, lower, upper = (np.array([x[name] for name in names], float) for x in (estimate, truth, low, high))
    top = true >= np.median(true)
    outside = np.maximum(lower - true, 0) + np.maximum(true - upper, 0)
    return {
        "mae": float(np.abs(mean - true).mean()),
        "bias": float((mean - true).mean()),
        "spearman": rank_correlation(mean, true),
        "spearman_top_half": rank_correlation(mean[top], true[top]),
        "regret@1": regret(mean, true, 1, rng),
        "regret@5": regret(mean, true, 5, rng),
        "coverage90": float(((lower <= true) & (true <= upper)).mean()),
        "interval_score": float((upper - lower + 2 / (1 - LEVEL) * outside).mean()),
    }


def pair_scores(
    pairs: Sequence[tuple[str, str, float, float]],
    truth: Mapping[str, float],
    low: Mapping[str, float],
    high: Mapping[str, float],
) -> dict[str, float]:
    """Scores of intervals of differences of true J, of pairs (one, other, low, high), the first less the second.

    held: share that hold the difference. told: share that leave out 0. wrong: share that leave out 0 and lie on the
    wrong side of it. unpaired: share that would leave out 0 if the errors of the two were independent, by their own
    intervals, ``low`` to ``high`` by policy.
    """
    inside, told, wrong, unpaired = [], [], [], []
    for one, other, lower, upper in pairs:
        true = truth[one] - truth[other]
        inside.append(lower <= true <= upper)
        told.append(lower > 0 or upper < 0)
        wrong.append((lower > 0 and true <= 0) or (upper < 0 and true >= 0))
        half = np.hypot(high[one] - low[one], high[other] - low[other]) / 2
        unpaired.append(abs(lower + upper) / 2 > half)
    return {
        "pairs": float(len(pairs)), "held": float(np.mean(inside)), "told": float(np.mean(told)),
        "wrong": float(np.mean(wrong)), "unpaired": float(np.mean(unpaired)),
    }  # fmt: skip


def told_apart(low: float, high: float, by_seed: Sequence[float]) -> bool:
    """Whether two methods' errors can be told apart: the interval of their difference leaves out 0, and every seed is
    on its side of 0. (Bootstraps over policies or episodes know nothing of luck in training; the seeds do.)"""
    return bool(min(low, *by_seed) > 0 or max(high, *by_seed) < 0)


def paired_difference(errors: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """By how much absolute errors (seeds, P) of policies are above others (seeds, P): mean, low, high (90 % of
    bootstrapped means over seeds; policies are drawn with replacement), by_seed, told_apart."""
    by_seed, difference = (errors - others).mean(1).tolist(), (errors - others).mean(0)
    drawn = rng.integers(len(difference), size=(RESAMPLED, len(difference)))
    low, high = np.quantile(difference[drawn].mean(1), [0.05, 0.95])
    return {
        "mean": float(difference.mean()), "low": float(low), "high": float(high), "by_seed": by_seed,
        "told_apart": told_apart(low, high, by_seed),
    }  # fmt: skip


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, 0 where one of them is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def regret(estimate: np.ndarray, true: np.ndarray, k: int, rng: np.random.Generator) -> float:
    """Mean over random subsets of ten: best true value there minus the best among the k highest estimates, / range."""
    size, lost = min(SUBSET_SIZE, len(true)), []
    for _ in range(SUBSETS):
        some = rng.permutation(len(true))[:size]  # in random order, so that a stable sort breaks ties by chance
        chosen = some[np.argsort(-estimate[some], kind="stable")[:k]]
        lost.append(true[some].max() - true[chosen].max())
    return float(np.mean(lost) / max(np.ptp(true), 1e-12))
