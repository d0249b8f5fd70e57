"""Batches of contexts and targets, and where contexts are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.occupancy.contexts import Condition

NULL_SHARE = 0.1  # of a batch that is shown no context, where the network learns to do without


@dataclass(frozen=True)
class Batch:
    """Contexts and targets of one step: rows int64 (B,), futures int64 (B, M, n_tokens), and whose futures they are."""

    rows: np.ndarray
    futures: Tensor
    condition: Condition

    def __getitem__(self, some: slice) -> Batch:
        return Batch(self.rows[some], self.futures[some], self.condition[some])


def arrived_rows(dataset: Episodes) -> Tensor:
    """Rows int64 that a step arrived at: all but the first of each episode. Their rewards are real."""
    return torch.from_numpy(np.flatnonzero(dataset.step_type > 0))


def without_context(
    futures: Tensor, codes: Tensor, arrived: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch in which a share of contexts is not shown: where, bool (B,), and its futures int64 (B, M, n_tokens).

    There the futures are the ``codes`` (N, n_tokens) of rows drawn uniformly among ``arrived``, so that the network
    without context learns the law of the data.
    """
    device = futures.device
    draws: dict[str, Any] = {"generator": generator, "device": generator.device}
    nothing = torch.rand(len(futures), **draws).to(device) < NULL_SHARE
    rows = arrived[torch.randint(len(arrived), futures.shape[:2], **draws).to(device)]
    return nothing, torch.where(nothing[:, None, None], codes[rows].long(), futures)
