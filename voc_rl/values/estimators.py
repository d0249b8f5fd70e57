"""From futures to values, with the standard error of the mean and words for what the interval covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voc_rl.occupancy.sampling import replicates
from voc_rl.precision import float32
from voc_rl.values.statistics import student_interval

CODES_AT_ONCE = 1 << 19  # whose vectors are in memory together, so that values of many states take little
SAMPLE_COVERS = "the mean over sampled futures of this model (sampling noise only, not the model's own error)"
HEAD_COVERS = "the mean over which episodes were logged (spread of heads that weigh episodes differently)"


@dataclass(frozen=True, eq=False)
class ValueEstimate:
    """Values of a batch of states: expected discounted sums of rewards from the next step on, in reward units.

    mean, stderr, low, high (B,) float64: the estimate, its standard error and an interval *of the mean* (never of the
    return) at confidence ``level``; ``covers`` says in words which uncertainty the interval holds.
    """

    mean: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    covers: str

    def __len__(self) -> int:
        return len(self.mean)


def from_samples(rewards: np.ndarray, gamma: float, level: float = 0.9) -> ValueEstimate:
    """Values from rewards (B, S) at S sampled discounted times: V = mean / (1 - gamma).

    The standard error is that of the means of the ``replicates`` in which a state's futures are sampled, the interval
    Student's. It knows no reward that no sample met: where all of a state's are equal it has no width, and where a
    reward is so rare that few samples meet it, it is too narrow.
    """
    values = np.asarray(rewards, np.float64) / (1.0 - gamma)
    mean, sizes = values.mean(1), np.array(replicates(values.shape[1]))
    parts = np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=1) / sizes
    # of independent samples, too, the expectation is exact: a part's mean is off by the inverse of its share
    stderr = np.sqrt(np.square(parts - mean[:, None]) @ sizes / (values.shape[1] * (len(sizes) - 1)))
    low, high = student_interval(mean, stderr, len(sizes), level)
    return ValueEstimate(mean, stderr, low, high, level, SAMPLE_COVERS)


def from_ensemble(members: np.ndarray, gamma: float, level: float = 0.9) -> ValueEstimate:
    """Values from (1 - gamma) V of several heads (B, members) that were trained on reweighted episodes.

    The spread of the members is itself the standard error (Bayesian bootstrap), not divided by the root of their
    number; that of their mean adds to it. The interval is Student's, because a handful of members tell the spread only
    roughly.
    """
    values = np.asarray(members, np.float64) / (1.0 - gamma)
    mean, stderr = values.mean(1), values.std(1, ddof=1) * np.sqrt(1.0 + 1.0 / values.shape[1])
    low, high = student_interval(mean, stderr, values.shape[1], level)
    return ValueEstimate(mean, stderr, low, high, level, HEAD_COVERS)


def states_at_once(futures: Tensor) -> int:
    """For how many states of futures int64 (B, S, n_tokens) the codes' vectors are in memory together."""
    return max(CODES_AT_ONCE // max(math.prod(futures.shape[1:]), 1), 1)


def joined(parts: Sequence[ValueEstimate]) -> ValueEstimate:
    """Values of several batches, by one estimator at one level, as those of one batch."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "stderr", "low", "high")
    }
    return ValueEstimate(**arrays, level=parts[0].level, covers=parts[0].covers)


@torch.no_grad()
def rewards_of_futures(
    futures: Tensor,
    embed: Callable[[Tensor], Tensor],
    reward: Callable[..., Tensor],
    end_code: int,
    features: Tensor | None = None,
) -> Tensor:
    """Rewards float32 (B, S) of sampled codes int64 (B, S, n_tokens); 0 where the future is END.

    ``reward`` (a ``RewardHead``) takes the codes' vectors, and, where they are given, the features (B, feature_dim) of
    the states that the codes are futures of. Computed in float32, inside of ``autocast`` too.
    """
    ended = futures[..., 0] == end_code
    at_once = states_at_once(futures)
    codes = torch.where(ended[..., None], 0, futures).split(at_once)
    with float32(futures.device):
        if features is None:
            parts = [reward(embed(part)) for part in codes]
        else:
            seen = features[:, None].expand(-1, futures.shape[1], -1).split(at_once)
            parts = [reward(embed(part), own) for part, own in zip(codes, seen, strict=True)]
    return torch.where(ended, 0.0, torch.cat(parts).float())
