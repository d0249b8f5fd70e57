"""Scores of value estimates, and intervals of means."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from voc_rl.errors import VOCError, check_positive


def scores(
    predicted: np.ndarray, truth: np.ndarray, gamma: float, r_max: float, noise: float = 0.0
) -> dict[str, float]:
    """How well values (M,) meet the truth (M,).

    error: mean squared error over the variance of the truth (1 = the best constant). nrmse: root mean squared error
    times (1 - gamma) / r_max, a share of the largest possible value. mae, bias: in value units. spearman, pearson:
    rank and linear correlation, 0 for constant predictions.

    ``noise``: mean squared error of the truth itself, where it is a mean of roll-outs; it is taken off the squared
    error and off the variance (not off the other scores), so that the best constant still has error 1 and what knows
    the true values has 0 on average.

    Raises:
        VOCError: arrays of other shapes, fewer than two states, or predictions that are not finite.
    """
    from scipy import stats  # takes a second, which opening a VOC can do without

    check_positive(r_max, "r_max")
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    if predicted.shape != truth.shape or truth.ndim != 1 or len(truth) < 2:
        raise VOCError(f"Values {predicted.shape} and truth {truth.shape}: two equal lists of at least 2 are needed.")
    if not np.isfinite(predicted).all() or not np.isfinite(truth).all():
        raise VOCError("Values or truth hold NaN or infinity; finite numbers are needed.")
    difference = predicted - truth
    squared = float(np.mean(difference**2)) - noise
    varied = np.ptp(predicted) > 1e-9 * max(float(np.abs(predicted).max()), 1e-12) and np.ptp(truth) > 0
    return {
        "error": squared / max(float(truth.var()) - noise, 1e-12),
        "nrmse": max(squared, 0.0) ** 0.5 * (1.0 - gamma) / r_max,
        "mae": float(np.abs(difference).mean()),
        "bias": float(difference.mean()),
        "spearman": float(stats.spearmanr(predicted, truth).statistic) if varied else 0.0,
        "pearson": float(stats.pearsonr(predicted, truth).statistic) if varied else 0.0,
    }


def normal_interval(mean: np.ndarray, stderr: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided interval of a mean from its standard error."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return mean - z * stderr, mean + z * stderr


def student_interval(
    mean: np.ndarray, stderr: np.ndarray, count: float | np.ndarray, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided interval of a mean whose standard error was estimated from ``count`` independent numbers.

    ``count``: of all the means, or of each; need not be whole, where numbers weigh unequally.
    """
    t = stdtrit(count - 1, 0.5 + level / 2)
    return mean - t * stderr, mean + t * stderr


def grouped_stderr(shares: np.ndarray, numbers: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (B,) of weighted means of numbers (N,) that err together in groups (N,), and Student's counts.

    shares: (B, N), of the weight; each row sums to 1, or to 0 where there is none. Counts are of as many groups as
    carry the weight, 1 / sum p^2 with p each one's part of it; one alone has no standard error (NaN).

    A group is off from a mean in which it weighs p by 1 - 2 p + sum p^2 of its variance: (n - 1) / n where n groups
    weigh alike.
    """
    off = shares * (numbers - (shares @ numbers)[:, None])
    squared = np.square(part := _sums(shares, groups))
    total = squared.sum(1)
    left = (squared * (1.0 - 2.0 * part + total[:, None])).sum(1)
    factor = np.where(total < 1.0 - 1e-6, total / np.maximum(left, 1e-300), np.nan)
    return np.sqrt(factor * np.square(_sums(off, groups)).sum(1)), 1.0 / np.maximum(total, 1e-300)


def _sums(numbers: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums (B, groups) of numbers of rows (B, N) over those of each group."""
    _, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((place.max() + 1, len(numbers)))
    np.add.at(sums, place, numbers.T)
    return sums.T
