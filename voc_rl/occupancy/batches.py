"""Batches of contexts and targets, and where contexts are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.occupancy.contexts import Condition

NULL_SHARE = 0.1  # of a batch that is shown no context, where the network learns to do without


@dataclass(frozen=True)
class Batch:
    """Contexts and targets of one step: rows int64 (B,), on the host and where the network is (``at``), futures int64
    (B, M, n_tokens), whose futures they are, and, where contexts have discounts of their own, what the value head
    learns, float32 (B, members)."""

    rows: np.ndarray
    at: Tensor
    futures: Tensor
    condition: Condition
    goals: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        rows, condition = torch.from_numpy(self.rows), vars(self.condition)
        return {"rows": rows, "futures": self.futures, "condition": condition, "goals": self.goals}

    @classmethod
    def kept(cls, state: dict[str, Any], device: torch.device) -> Batch:
        """The batch of a ``state``, on a device."""
        rows, goals = state["rows"], state["goals"]
        goals = None if goals is None else goals.to(device)
        condition = Condition(**state["condition"]).to(device)
        return cls(rows.numpy(), rows.to(device), state["futures"].to(device), condition, goals)


@dataclass(frozen=True)
class StepInputs:
    """All that the loss of a step depends on, beside weights.

    codes int64 (B, n_tokens), the contexts; features float32 (B, F); shown bool (B,), where features are shown; nothing
    bool (B,), where no context is; futures int64 (B, M, n_tokens); goals float32 (B, members or 1) of the value head,
    in reward units, and weights float32 (B, members) of its members' errors.
    """

    codes: Tensor
    futures: Tensor
    shown: Tensor
    condition: Condition
    features: Tensor | None = None
    nothing: Tensor | None = None
    goals: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, some: slice) -> StepInputs:
        return self._each(lambda part: part[some])

    def tensors(self) -> list[Tensor]:
        """Those that there are, in a fixed order."""
        parts = [vars(self)[own.name] for own in fields(self)]
        own, condition = (part for part in parts if isinstance(part, Tensor)), vars(self.condition).values()
        return [*own, *(part for part in condition if part is not None)]

    def copy(self) -> StepInputs:
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        parts = {name: change(part) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, condition=self.condition.each(change), **parts)


def without_context(
    futures: Tensor, codes: Callable[[Tensor, Tensor], Tensor], arrived: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch in which a share of contexts is not shown: where, bool (B,), and its futures int64 (B, M, n_tokens).

    There the futures are the codes of rows drawn uniformly among ``arrived``, so that the network without context
    learns the law of the data. ``codes``: rows int64 (B, M), and which of them are used, bool (B,) -> int64 (B, M,
    n_tokens).
    """
    device = futures.device
    draws: dict[str, Any] = {"generator": generator, "device": generator.device}
    nothing = torch.rand(len(futures), **draws).to(device) < NULL_SHARE
    rows = arrived[torch.randint(len(arrived), futures.shape[:2], **draws).to(device)]
    return nothing, torch.where(nothing[:, None, None], codes(rows, nothing), futures)
