"""How wrong a policy's value may be, and the difference of two: what standard errors are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voc_rl.values.statistics import student_interval


@dataclass(frozen=True, eq=False)
class ErrorParts:
    """What the standard error of a policy's value is made of, in reward units.

    chained: the value by the chain through all episodes. resampled float64 (R,): the same through each sample of the
    episodes. episodes: how many have a step. moved: by how much a critic moved the chain's value. apart: by how much
    what a network says is from that. noise: standard error of sampled futures, or of the rows that ``density`` weighs.

    The parts of a difference, ``a - b``, are the differences of the parts, which need the same samples of episodes:
    luck that both share drops out, and so does what a critic adds to both. A critic or network counts by how far it
    moved the difference, as it does for a value. ``noise`` counts as if it were independent, although it is partly
    shared: on the safe side.
    """

    chained: float
    resampled: np.ndarray
    episodes: int
    moved: float = 0.0
    apart: float = 0.0
    noise: float = 0.0

    def __sub__(self, other: ErrorParts) -> ErrorParts:
        return ErrorParts(
            self.chained - other.chained, self.resampled - other.resampled, self.episodes, self.moved - other.moved,
            self.apart - other.apart, float(np.hypot(self.noise, other.noise)),
        )  # fmt: skip

    @property
    def stderr(self) -> float:
        """The standard error; NaN where fewer than two episodes have a step.

        Chains of resampled episodes tell which part is luck: the spread of their values, scaled, is that of
        the whole (as in the delete-d jackknife, Shao and Wu 1989). Fewer episodes also make longer jumps: the shift
        that this brings, scaled alike, is the bias that is left, as far as it shrinks with the number of episodes. A
        critic may be wrong by as much as it moved the value, and so may a network that learned from the chain.

        On the conservative side where data are few: spread and shift also hold the noise of the few actions that
        resampled chains draw. On small decision processes it is 1.7 to 2.4 times the error that there is
        (``docs/policy_evaluation.md``; ``tests/ope/test_policy_chains.py`` holds it between 1 and 3).
        """
        if self.episodes < 2:
            return float("nan")  # all samples of one episode are that episode: their spread is 0 and says nothing
        scale = resampled_scale(self.episodes)
        luck = scale * self.resampled.var(ddof=1)
        shift = scale * (self.resampled.mean() - self.chained)
        return float(np.sqrt(luck + shift**2 + self.moved**2 + self.apart**2 + self.noise**2))

    def interval(self, mean: float, level: float) -> tuple[float, float]:
        """About ``mean``, at ``level``."""
        low, high = student_interval(np.asarray(mean), np.asarray(self.stderr), len(self.resampled), level)
        return float(low), float(high)


def resampled_scale(count: int) -> float:
    """The variance of a mean of ``count`` (at least 2) episodes, over that of means of samples of them.

    A sample keeps the m different ones among as many draws with replacement. Its mean scatters about that of all by
    S^2 (1 / m - 1 / n), and E[1 / m] = sum_{k=1}^n (k / n)^(n-1) / n: 2 for two episodes, e - 1 for many.
    """
    return float(1.0 / np.sum((np.arange(1, count) / count) ** (count - 1)))
