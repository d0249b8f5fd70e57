"""A stand-in for the occupancy network: tables of exact occupancies, one per policy (and first action)."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.occupancy import Condition, OccupancyConfig, OccupancyTransformer
from voc_rl.occupancy.contexts import Prefix


class OccupancyTable(torch.nn.Module):
    """One token a state; tables (P, S, S or S + 1) of the law of the future given policy and state, END last.

    acted: (P, S, A, S + 1), the same given the first action too, which conditions tell one-hot. null: (S,), the law
    without context. It is sampled by the slow path (``drops``).
    """

    drops, memory = True, None

    def __init__(self, tables: np.ndarray, acted: np.ndarray | None = None, null: np.ndarray | None = None) -> None:
        super().__init__()
        states = tables.shape[1]
        self.config = OccupancyConfig(states, 1, width=4, null_context=null is not None)
        self.tables, self.null = _log(tables, states), None if null is None else _log(null[None], states)
        self.acted = None if acted is None else _log(acted, states)
        self.codes = torch.nn.Embedding(1, 4)  # where the network is, and its type of number

    @property
    def network(self) -> OccupancyTransformer:
        """Itself, for the type checker."""
        return cast(OccupancyTransformer, self)

    def prefix(self, context: Tensor, features: Tensor | None = None, condition: Condition | None = None) -> Prefix:
        condition = condition or Condition()
        policy = torch.zeros(len(context), dtype=torch.long) if condition.policy is None else condition.policy
        if condition.action is None:
            return _prefix(self.tables[policy, context[:, 0]])
        assert self.acted is not None
        return _prefix(self.acted[policy, context[:, 0], condition.action.argmax(1)])

    def prefix_of_nothing(self) -> Prefix:
        if self.null is None:
            raise VOCError("no null context")
        return _prefix(self.null)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def future_logits(self, prefix: Prefix, futures: Tensor) -> tuple[Tensor, Tensor]:
        return prefix.last, prefix.last.new_zeros(*futures.shape[:2], 0, prefix.last.shape[1])


def all_logits(model: OccupancyTransformer, prefix: Prefix, futures: Tensor) -> Tensor:
    """Logits (B, M, n_tokens, vocabulary) of each code of given futures, the first one's for each future too."""
    first, later = model.future_logits(prefix, futures)
    return torch.cat([first[:, None, None].expand(-1, futures.shape[1], -1, -1), later], 2)


def _log(table: np.ndarray, states: int) -> Tensor:
    padded = np.zeros((*table.shape[:-1], states + 1))
    padded[..., : table.shape[-1]] = table
    return torch.from_numpy(padded).log()


def _prefix(last: Tensor) -> Prefix:
    nothing = torch.zeros(len(last), 4, 0, 1)
    return Prefix([nothing], [nothing], last)
