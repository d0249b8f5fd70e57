"""Training targets for the futures of chosen policies, drawn from data that other policies made.

The target of a context is a real row at a geometric time along its policy's chain through logged rows
(``stitching.py``). Nothing is bootstrapped: no other kind of target stayed near the truth with little data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voc_rl.data import Episodes
from voc_rl.errors import check_gamma
from voc_rl.occupancy.stitching import StitchedChain, follow


class StitchedTargets:
    """Real rows along the chain of each policy, at the discount ``gamma``; ``policies``: how many there are."""

    def __init__(self, dataset: Episodes, chains: Sequence[StitchedChain], gamma: float) -> None:
        self.gamma, self.terminal, self.steps_left = check_gamma(gamma), dataset.terminal, dataset.steps_left
        self.policies = len(chains)
        self.arrival = np.stack([chain.arrival for chain in chains])  # (P, N, draws)

    def draw(
        self, policies: np.ndarray, rows: np.ndarray, known: np.ndarray, per_row: int, rng: np.random.Generator,
        gamma: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Rows int64 (B, per_row) that are the targets of B contexts; -1 where the target is END.

        Args:
            policies, rows: int64 (B,), of the contexts.
            known: bool (B,), whether the first action is the one that was taken; else the policy draws it, as it does
                at last rows, where none was taken.
            gamma: float64 (B,), discounts of the contexts; None: ``self.gamma``.
        """
        shape = (len(rows), per_row)
        known = known & (self.steps_left[rows] > 0)
        policies, rows, known = (np.broadcast_to(x[:, None], shape) for x in (policies, rows, known))
        discount = self.gamma if gamma is None else gamma[:, None]
        return follow(self.arrival, self.terminal, policies, rows, discount, rng, known)
