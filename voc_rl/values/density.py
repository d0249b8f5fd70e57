"""Values from the rows of the data, weighted by how much likelier the model finds them after a state than at large.

With M(z | s) the law of the future and M(z) that of the data's rows, both by the same network,

    w_i = M(z_i | s) / M(z_i),    V = (1 - p_END) / (1 - gamma) sum_i w_i r_i / sum_i w_i,

over rows i of the data with their real rewards: nothing is sampled, and no reward is learned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_gamma, check_level
from voc_rl.occupancy import OccupancyTransformer, end_probability, log_probabilities
from voc_rl.occupancy.contexts import Prefix
from voc_rl.values.estimators import ValueEstimate
from voc_rl.values.statistics import grouped_stderr, normal_interval, student_interval

DENSITY_COVERS = "the mean over rows of the data drawn anew, weighted by this model (not the model's own error)"
FEWEST = 50.0  # effective sample size; below it there is no number


@torch.no_grad()
def future_weights(model: OccupancyTransformer, prefix: Prefix, codes: Tensor) -> np.ndarray:
    """Weights float64 (B, N) of rows, codes int (N, n_tokens), as futures of B contexts; they sum to 1 - p_END.

    The rows are a uniform draw of those that a step arrived at (``arrived_rows``): that is the law which the network
    knows without context. A mean of these weights over contexts is the law of the mean future.

    Raises:
        VOCError: a network without a null context.
    """
    futures = codes.long()[None].to(prefix.last.device)
    ratio = log_probabilities(model, prefix, futures).double()
    ratio = ratio - log_probabilities(model, model.prefix_of_nothing(), futures).double()
    end = end_probability(model, prefix).double()[:, None]
    return torch.where(end < 1.0 - 1e-6, (1.0 - end) * ratio.softmax(1), 0.0).cpu().numpy()


def effective_size(weights: np.ndarray) -> np.ndarray:
    """Effective sample size (sum w)^2 / sum w^2 of weights float64 (B, N), (B,); 0 where all are zero."""
    return np.square(weights.sum(1)) / np.maximum(np.square(weights).sum(1), 1e-300)


def too_few(size: np.ndarray | float) -> np.ndarray:
    """Whether effective sample sizes are too small for a number; 0, nothing but END, is not: its value is 0."""
    size = np.asarray(size)
    return (size > 0) & (size < FEWEST)


def from_weights(
    weights: np.ndarray,
    rewards: np.ndarray,
    gamma: float,
    level: float = 0.9,
    groups: np.ndarray | None = None,
) -> ValueEstimate:
    """Values of B contexts from ``future_weights`` (B, N) and the real rewards (N,) on arrival at the rows.

    For the mean value of many contexts (a policy's value) give the mean of their weights (1, N): its effective sample
    size is larger than that of each.

    Args:
        groups: int (N,), episodes of the rows, whose rows err together. The interval is Student's of so many as carry
            the weight, 1 / sum p^2 with p each one's part of it; one alone has no standard error (NaN). None: rows are
            independent.

    Raises:
        VOCError: shapes that do not fit, no rows, rewards that are not finite, a level that is no confidence, or an
            effective sample size, (sum w)^2 / sum w^2, below 50 for every context. Where it is so for some of them,
            these are NaN.
    """
    check_gamma(gamma)
    check_level(level)
    weights, rewards = np.asarray(weights, np.float64), np.asarray(rewards, np.float64)
    _check_rows(weights, rewards, groups)
    total = weights.sum(1, keepdims=True)
    share = weights / np.where(total > 0, total, 1.0)
    size = effective_size(share)
    enough = ~too_few(size)
    if len(enough) and not enough.any():
        raise VOCError(
            f"The effective sample size is {size.max():.1f} of {weights.shape[1]} rows, below {FEWEST:g}: too few rows "
            "look like these futures for a density estimate; give more rows, or use estimator='sample'."
        )
    mean = share @ rewards
    scale = np.where(enough, total[:, 0], np.nan) / (1.0 - gamma)
    if groups is None:
        stderr = scale * np.sqrt(np.square(share * (rewards - mean[:, None])).sum(1))
        mean = scale * mean
        low, high = normal_interval(mean, stderr, level)
    else:
        unit, count = grouped_stderr(share, rewards, groups)
        mean, stderr = scale * mean, scale * unit
        low, high = student_interval(mean, stderr, count, level)
    covers = DENSITY_COVERS
    if not enough.all():
        covers += f"; {(~enough).sum()} of {len(enough)} states have no value: effective sample size below {FEWEST:g}"
    return ValueEstimate(mean, stderr, low, high, level, covers)


def _check_rows(weights: np.ndarray, rewards: np.ndarray, groups: np.ndarray | None) -> None:
    if weights.ndim != 2 or rewards.shape != weights.shape[1:]:
        raise VOCError(f"Weights {weights.shape} and rewards {rewards.shape} do not fit; (B, N) and (N,) are needed.")
    if len(rewards) == 0:
        raise VOCError("There are no rows to weigh; give codes and rewards of a few thousand.")
    if groups is not None and np.shape(groups) != rewards.shape:
        raise VOCError(f"Groups have shape {np.shape(groups)}; one for each of {len(rewards)} rows is needed.")
    if not np.isfinite(rewards).all():
        raise VOCError("Rewards hold NaN or infinity; finite rewards are needed.")
