"""Values by the value head: of contexts in one pass, and of what hops lead to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from voc_rl.occupancy import Condition, OccupancyTransformer, ValueHead
from voc_rl.occupancy.training import ROWS_AT_ONCE
from voc_rl.precision import autocast
from voc_rl.values.estimators import ValueEstimate, from_ensemble
from voc_rl.values.mve import TailValue


@torch.no_grad()
def by_head(
    model: OccupancyTransformer,
    head: ValueHead,
    context: Tensor,
    features: Tensor | None,
    condition: Condition | None,
    gamma: float,
    level: float = 0.9,
) -> ValueEstimate:
    """Values of contexts int64 (B, n_tokens) and features float (B, F) at the discount ``gamma``, which the head has
    learned and ``condition`` tells where the network reads one."""
    members = []
    with autocast(model, len(context)):
        for first in range(0, len(context) or 1, ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            seen = None if features is None else features[some]
            last = model.last(context[some], seen, condition and condition[some])
            members.append(head(last, seen).float().cpu().numpy())
    return from_ensemble(np.concatenate(members), gamma, level)


def tail_by_head(model: OccupancyTransformer, head: ValueHead | None, gamma: float) -> TailValue | None:
    """The head's value of sampled codes, as if the mean reward one more hop on were that of all later ones.

    So it must weigh little, as it does behind the hops that ``mve`` takes of itself. None where there is no head, or
    one that reads features, which sampled codes have not.
    """
    if head is None or model.config.feature_dim:
        return None
    return lambda codes, at: head(model.last(codes, condition=at)).float().mean(1) / (1.0 - gamma)
