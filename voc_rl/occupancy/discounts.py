"""One network for a range of discounts: how it is told the discount, which ones it learns, how large ones bootstrap.

mu(z | s, a, gamma) learns a discount drawn anew for every context, uniform in the logarithm of the horizon
1 / (1 - gamma). What the target network has to finish climbs a ladder: for a smaller discount g < g',

    mu_g' = (1 - g') / (1 - g) mu_g + (g' - g) / (1 - g) mu_g mu_g'        (gamma-models, Janner et al. 2020),

so a sample at g' is one at g that, with probability (g' - g) / (1 - g), is replaced by one at g' from there. A rung is
half the horizon: at most half of the samples rest on the network at the discount that is learned.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_gamma
from voc_rl.occupancy.contexts import Condition
from voc_rl.occupancy.sampling import sample_futures, uniforms
from voc_rl.occupancy.transformer import OccupancyTransformer
from voc_rl.precision import device_of

# of the contexts, at the smallest discount, on which the ladder stands, and at the largest one, where hops start
AT_END = 0.15


def draw_gammas(gammas: tuple[float, float], count: int, rng: np.random.Generator) -> np.ndarray:
    """Discounts float64 (count,) in the range, uniform in the logarithm of the horizon; a share is at each end."""
    low, high = (-math.log1p(-gamma) for gamma in gammas)
    place = (rng.random(count) - AT_END) / (1.0 - 2.0 * AT_END)
    return np.clip(-np.expm1(-(low + place * (high - low))), *gammas)


def base_gamma(gammas: tuple[float, float], gamma: float, hops: bool = True) -> float:
    """The discount at which a network of the range ``gammas`` is asked about ``gamma``: itself, or the largest one.

    From the largest one, ``hops`` of the network lead to larger ones.

    Raises:
        VOCError: no discount, one below the range, or one beyond it where there are no hops.
    """
    (low, high), gamma = gammas, check_gamma(gamma)
    if gamma < low or (gamma > high and not hops):
        known = f"gamma {low:g}" + (f" to {high:g}" if low < high else "") + (" and larger ones" if hops else " only")
        raise VOCError(f"This network answers for {known}, not for {gamma:g}.")
    return min(gamma, high)


def discount_condition(model: OccupancyTransformer, gamma: float, count: int) -> Condition:
    """The condition that tells a network the discount ``gamma`` of ``count`` contexts; empty where it reads none."""
    if model.config.gammas is None:
        return Condition()
    return Condition(gamma=torch.full((count,), gamma, dtype=torch.float32, device=device_of(model)))


@torch.no_grad()
def climb(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    generator: torch.Generator,
    condition: Condition,
    count: int,
    own: slice,
) -> Tensor:
    """One future of each context int64 (B, n_tokens) at its own discount, ``condition.gamma``: int64 (B, n_tokens).

    By the ladder of discounts; an action in ``condition`` holds for the first hop. The contexts are ``own`` of
    ``count``, for all of which random numbers are drawn.
    """
    assert condition.gamma is not None
    assert model.config.gammas is not None
    numbers: dict[str, Any] = {"generator": generator, "device": generator.device}
    noise, again = (uniforms(model, count, 1, generator)[:, own] for _ in range(2))
    chance = torch.rand(count, **numbers)[own].to(context.device)
    gamma = condition.gamma
    below = (2.0 * gamma - 1.0).clamp(min=model.config.gammas[0])
    futures = sample_futures(model, context, features, 1, generator, noise, replace(condition, gamma=below))[:, 0]
    goes_on = (chance < (gamma - below) / (1.0 - below)) & (futures[:, 0] != model.config.end_code)
    going = goes_on.nonzero()[:, 0]
    if len(going):
        noise, later = again[:, going.to(again.device)], condition.later(1)[going]
        futures[going] = sample_futures(model, futures[going], None, 1, generator, noise, later)[:, 0]
    return futures
