"""Values at a larger discount by a few hops of the model and a value function behind them (gamma-MVE).

Janner et al. 2020 (gamma-models): with hops of an occupancy at gamma, and w_n the probability of n hops at gamma',

    V = 1 / (1 - gamma') sum_{n <= H} w_n E r(z^(n)) + ((gamma' - gamma) / (1 - gamma))^H E V_tail(z^(H)).

``compose`` draws the number of hops; here every path counts all of its hops, which is less noisy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_gamma, check_positive, check_samples
from voc_rl.occupancy import Condition, OccupancyTransformer, hops
from voc_rl.values.estimators import SAMPLE_COVERS, ValueEstimate, from_samples

MVE_COVERS = "the mean over sampled paths of this model (sampling noise only, not the error of the model or its head)"
CODES_AT_ONCE = 16384  # states whose tail value is asked for at once

TailValue = Callable[[Tensor, Condition | None], Tensor]


@torch.no_grad()
def mve(
    model: OccupancyTransformer,
    context: Tensor,
    features: Tensor | None,
    reward: Callable[[Tensor], Tensor],
    gamma: float,
    new_gamma: float,
    generator: torch.Generator,
    *,
    count: int = 4,
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
        reward: futures int64 (B, samples, n_tokens) -> rewards float (B, samples), 0 for END (``rewards_of_futures``).
        count: hops H. samples: paths per context.
        condition: action and policy, and ``gamma`` where the network reads one; the action is the first hop's, later
            ones the policy draws.
        tail_value: codes int64 (m, n_tokens) and their condition (policies and discounts) -> V float (m,) at
            ``new_gamma``, never asked about END, whose value is 0. None: all later hops are taken to be like the last.
        common: one state's random numbers for all.

    Raises:
        VOCError: a discount below the model's, no hop, or fewer than two samples.
    """
    check_gamma(new_gamma, "new_gamma")
    check_positive(count, "count")
    check_samples(samples)
    if new_gamma < gamma:
        raise VOCError(f"This model was trained for gamma {gamma}; it can answer for larger ones, not for {new_gamma}.")
    another = (new_gamma - gamma) / (1.0 - gamma)
    count = count if another > 0 else 1
    values = torch.zeros(len(context), samples, dtype=torch.float64, device=context.device)
    for n, futures in enumerate(hops(model, context, features, samples, count, generator, common, condition)):
        rewards = reward(futures).double()
        values += another**n / (1.0 - gamma) * rewards  # w_(n+1) / (1 - gamma')
    if another > 0:
        tail = rewards / (1.0 - new_gamma) if tail_value is None else _tail(model, futures, condition, tail_value)
        values += another**count * tail
    estimate = from_samples(values.cpu().numpy() * (1.0 - new_gamma), new_gamma, level)
    return replace(estimate, covers=MVE_COVERS if another > 0 else SAMPLE_COVERS)


def _tail(model: OccupancyTransformer, futures: Tensor, condition: Condition | None, tail_value: TailValue) -> Tensor:
    """Tail values float64 (B, samples) of futures (B, samples, n_tokens); 0 for END."""
    flat = futures.flatten(0, 1)
    values = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    later = condition and condition.later(futures.shape[1])
    for going in (flat[:, 0] != model.config.end_code).nonzero()[:, 0].split(CODES_AT_ONCE):
        values[going] = tail_value(flat[going], later and later[going]).double()
    return values.view(futures.shape[:2])
