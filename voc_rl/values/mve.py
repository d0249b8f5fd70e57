"""Values at a larger discount by hops of the model, and a value function behind them (gamma-MVE).

Janner et al. 2020 (gamma-models): with hops of an occupancy at gamma, and w_n the probability of n hops at gamma',

    V = 1 / (1 - gamma') sum_{n <= H} w_n E r(z^(n)) + ((gamma' - gamma) / (1 - gamma))^H E V_tail(z^(H)).

``compose`` draws the number of hops; here every path counts all of its hops, which is less noisy. Behind a few hops
V_tail has to be a value at gamma'. A head that knows discounts up to gamma, or the last hop itself, can but stand for
all later hops as if they were alike: right only where these weigh next to nothing, and until then hops go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from voc_rl.errors import check_positive, check_samples
from voc_rl.occupancy import Condition, OccupancyTransformer, chance_of_another, hops
from voc_rl.values.estimators import SAMPLE_COVERS, ValueEstimate, from_samples

LEFT = 0.01  # most weight of what is behind the last hop
STATES_AT_ONCE = 16384  # states whose tail value is asked for at once

TailValue = Callable[[Tensor, Condition | None], Tensor]


@torch.no_grad()
def mve(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    reward: Callable[[Tensor, Tensor | None], Tensor],
    gamma: float,
    new_gamma: float,
    generator: torch.Generator,
    *,
    count: int | None = None,
    samples: int = 100,
    level: float = 0.9,
    condition: Condition | None = None,
    tail_value: TailValue | None = None,
    common: bool = False,
) -> ValueEstimate:
    """Values of contexts int64 (B, n_tokens) at ``new_gamma``, of a model that was trained for ``gamma``.

    At ``new_gamma`` = ``gamma`` a single hop says all: the same as ``from_samples``.

    Args:
        features: float (B, feature_dim), of the first hop; generated codes have none.
        reward: futures int64 (B, samples, n_tokens) and, of the first hop, ``features`` -> rewards float (B, samples),
            0 for END (``rewards_of_futures``).
        count: hops H; None: as many as leave less than 1 % of the weight to what is behind them. samples: paths per
            context.
        condition: action and policy, and ``gamma`` where the network reads one; the action is the first hop's, later
            ones the policy draws.
        tail_value: codes int64 (m, n_tokens) and their condition (policies and discounts) -> V float (m,) at
            ``new_gamma``, never asked about END, whose value is 0. None: all later hops are taken to be like the last.
        common: one state's random numbers for all.

    Raises:
        VOCError: a discount below the model's or too many hops away, no hop, or fewer than two samples.
    """
    check_samples(samples)
    another = chance_of_another(gamma, new_gamma)
    if another == 0:
        count = 1
    elif count is None:
        count = int(math.log(LEFT) / math.log(another)) + 1
    check_positive(count, "count")
    values = torch.zeros(len(context), samples, dtype=torch.float64, device=context.device)
    for n, futures in enumerate(hops(model, context, features, samples, count, generator, common, condition)):
        rewards = reward(futures, features if n == 0 else None).double()
        values += another**n / (1.0 - gamma) * rewards  # w_(n+1) / (1 - gamma')
    if another > 0:
        tail = rewards / (1.0 - new_gamma) if tail_value is None else _tail(model, futures, condition, tail_value)
        values += another**count * tail
    estimate = from_samples(values.cpu().numpy() * (1.0 - new_gamma), new_gamma, level)
    return replace(estimate, covers=_covers(count, another**count, tail_value) if another > 0 else SAMPLE_COVERS)


def _covers(count: int, left: float, tail_value: TailValue | None) -> str:
    """What the interval holds: noise, and neither the model's error nor what stands for the weight ``left``."""
    behind = "the last one" if tail_value is None else "the value function behind them"
    return (
        f"the mean over sampled paths of this model, {count} hops each (sampling noise only, not the model's own "
        f"error; {behind} stands for all later hops, {left:.1%} of the weight)"
    )


def _tail(model: OccupancyTransformer, futures: Tensor, condition: Condition | None, tail_value: TailValue) -> Tensor:
    """Tail values float64 (B, samples) of futures (B, samples, n_tokens); 0 for END."""
    flat = futures.flatten(0, 1)
    values = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    later = condition and condition.later(futures.shape[1])
    for going in (flat[:, 0] != model.config.end_code).nonzero()[:, 0].split(STATES_AT_ONCE):
        values[going] = tail_value(flat[going], later and later[going]).double()
    return values.view(futures.shape[:2])
