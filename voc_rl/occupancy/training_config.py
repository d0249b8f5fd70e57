"""How the occupancy network is trained."""

from __future__ import annotations

from dataclasses import dataclass

from voc_rl.errors import (
    VOCError,
    check_at_least,
    check_count,
    check_decay,
    check_gamma,
    check_gammas,
    check_positive,
    check_share,
)
from voc_rl.loop import LoopConfig

TUNED_LOOP = LoopConfig(steps=700, batch_size=128, learning_rate=4e-3, weight_decay=0.05)  # of networks of size tiny


@dataclass(frozen=True)
class OccupancyTraining:
    """How the occupancy network is trained.

    gamma: the discount of the occupancy. gammas: smallest and largest discount of a network that learns all between and
    is told which one is meant (``occupancy.discounts``); gamma, in that range, is then its default. n: real steps per
    target (None: 4 / (1 - gamma), of the largest discount; 1: the paper's one-step target).
    futures: targets per context. ema: decay of the target network per step (None: an average over the last
    twentieth of the steps, at most .999). feature_dropout: share of contexts shown without continuous features, so
    that sampled codes can be contexts too. feature_noise: noise on the features, in units of their own spread; without
    it a pose that no training episode held can get any value. head_weight: weight of the value head's loss. refill:
    steps whose bootstrapped targets are generated at once. loop: that of size tiny (``voc_rl.sizes``).

    Only to reproduce the paper's public code (``voc_rl.sizes.with_recipe``): context_loss: also learn to predict the
    context's own codes, which then make up nearly half of the loss. target_dropout: leave dropout on in the target
    network. top_k: sample only among this many likeliest codes, in targets and in values.
    """

    gamma: float = 0.9
    gammas: tuple[float, float] | None = None
    n: int | None = None
    futures: int = 2
    ema: float | None = None
    feature_dropout: float = 0.15
    feature_noise: float = 0.3
    head_weight: float = 1.0
    refill: int = 8
    context_loss: bool = False
    target_dropout: bool = False
    top_k: int | None = None
    loop: LoopConfig = TUNED_LOOP

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if self.gammas is not None:
            check_gammas(self.gammas)
            if not self.gammas[0] <= self.gamma <= self.gammas[1]:
                raise VOCError(f"gamma {self.gamma:g} is outside gammas {self.gammas}; give one within.")
        for name in ("n", "futures", "refill", "top_k"):
            value = getattr(self, name)
            if value is not None:
                check_count(value, name)
        check_positive(self.head_weight, "head_weight")
        if self.ema is not None:
            check_decay(self.ema, "ema")
        check_share(self.feature_dropout, "feature_dropout")
        check_at_least(self.feature_noise, 0, "feature_noise")
