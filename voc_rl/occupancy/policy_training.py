"""Training the occupancy network on the futures of chosen policies: M(z | s, a, pi) and M(z | s, pi).

The target of a context is a real row at a geometric time along its policy's chain through logged rows
(``stitching.py``). Nothing is bootstrapped: no other kind of target stayed near the truth with little data.

One network for all policies, told apart by an embedding. Half of the contexts show the action that was taken (futures
of that action, the policy after it), the others leave the action to the policy, which is what values of policies and
hops need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, going_rows, taken_actions
from voc_rl.errors import VOCError, check_decay, check_share
from voc_rl.loop import Checkpoints, StepLog, optimise
from voc_rl.occupancy.batches import Batch
from voc_rl.occupancy.contexts import Condition
from voc_rl.occupancy.discounts import draw_gammas
from voc_rl.occupancy.goals import HeadGoals
from voc_rl.occupancy.heads import ValueHead
from voc_rl.occupancy.stitching import StitchedChain, draw_along
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.occupancy.training_config import TUNED_LOOP, OccupancyTraining
from voc_rl.occupancy.transformer import OccupancyTransformer
from voc_rl.precision import single_precision


@dataclass(frozen=True)
class PolicyTraining:
    """How policies' futures are learned.

    occupancy: discount, or range of discounts (which a value head does not learn), loop and slow average; its ``n``
    changes nothing, since nothing is bootstrapped. action_share: share of the contexts that show the action taken,
    below 1: the others are what values of policies and hops are learned from. start_share: share of the contexts that
    are starts, where values are asked.
    """

    occupancy: OccupancyTraining = field(
        default_factory=lambda: OccupancyTraining(gamma=0.95, loop=replace(TUNED_LOOP, steps=3000))
    )
    action_share: float = 0.5
    start_share: float = 0.25

    def __post_init__(self) -> None:
        check_decay(self.action_share, "action_share")
        check_share(self.start_share, "start_share")


class PolicyGoals(HeadGoals):
    """(1 - gamma) V of each context's policy, given for all rows: of its own action, or of the action that is shown."""

    def __init__(
        self, head: ValueHead, dataset: Episodes, values: np.ndarray | None, config: OccupancyTraining, seed: int
    ) -> None:
        if config.gammas is not None:
            raise VOCError(
                "A value head of policies learns values at one discount; train without one, or leave gammas out."
            )
        if values is None:
            raise VOCError("A value head of policies learns from values of all rows; train without one otherwise.")
        super().__init__(head, dataset, config.gamma, seed)
        self.own, self.after = (goal.to(self.device) for goal in _values_learned(dataset, values, config.gamma))

    def of(self, batch: Batch) -> Tensor:
        rows, policy, shown = batch.at, batch.condition.policy, batch.condition.shown
        policy = torch.zeros_like(rows) if policy is None else policy
        goal = self.own[policy, rows]
        return (goal if shown is None else torch.where(shown, self.after[policy, rows], goal))[:, None]


class PolicyTrainee(OccupancyTrainee):
    """As the behaviour's, but targets are stitched, and the head learns given values of all rows."""

    def __init__(
        self,
        model: OccupancyTransformer,
        head: ValueHead | None,
        dataset: Episodes,
        codes: Tensor,
        features: Tensor | None,
        chains: Sequence[StitchedChain],
        values: np.ndarray | None,
        starts: np.ndarray,
        config: PolicyTraining,
        seed: int,
    ) -> None:
        self.policies = max(model.config.policies, 1)
        if len(chains) != self.policies:
            raise VOCError(
                f"There are chains of {len(chains)} policies, but the network was built for {self.policies}; give one "
                "chain for each of its policies."
            )
        goals = None if head is None else PolicyGoals(head, dataset, values, config.occupancy, seed)
        super().__init__(model, head, dataset, codes, features, config.occupancy, seed, goals)
        self.settings, self.starts = config, starts
        self.arrival = np.stack([chain.arrival for chain in chains])  # (P, N, draws)
        self.taken = torch.from_numpy(taken_actions(dataset)).to(self.device)

    def _refill(self, step: int) -> None:
        config = self.config
        rng = np.random.default_rng([self.seed, step])
        count = config.loop.batch_size * config.refill
        rows = self.contexts[rng.integers(len(self.contexts), size=count)]
        if len(self.starts):
            at_start = rng.random(count) < self.settings.start_share
            rows = np.where(at_start, self.starts[rng.integers(len(self.starts), size=count)], rows)
        policies = rng.integers(self.policies, size=count)
        known = (rng.random(count) < self.settings.action_share) & (self.dataset.steps_left[rows] > 0)
        known &= self.model.config.action_dim > 0
        gamma = config.gamma if config.gammas is None else draw_gammas(config.gammas, count, rng)
        targets = draw_along(self.arrival, self.dataset.terminal, policies, rows, known, config.futures, gamma, rng)
        model = self.model.config
        asked = self._told(gamma) if isinstance(gamma, np.ndarray) else Condition()
        asked = replace(asked, policy=self._on_device(policies) if model.policies else None)
        if model.action_dim:
            asked = replace(asked, action=self.taken[self._on_device(rows)], shown=self._on_device(known))
        self._keep(rows, self._real(targets), asked)


def _values_learned(dataset: Episodes, values: np.ndarray, gamma: float) -> tuple[Tensor, Tensor]:
    """(1 - gamma) V and (1 - gamma) Q of the action taken, both float32 (P, N)."""
    after = values.copy()
    going = going_rows(dataset)
    later = np.where(dataset.terminal[going + 1], 0.0, values[:, going + 1])
    after[:, going] = dataset.reward[going + 1] + gamma * later
    return (1.0 - gamma) * torch.from_numpy(values).float(), (1.0 - gamma) * torch.from_numpy(after).float()


@single_precision()
def train_policies(
    model: OccupancyTransformer,
    head: ValueHead | None,
    dataset: Episodes,
    codes: Tensor,
    features: Tensor | None,
    chains: Sequence[StitchedChain],
    config: PolicyTraining,
    seed: int = 0,
    *,
    values: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    stage: str = "policies",
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> tuple[OccupancyTransformer, ValueHead | None]:
    """Train network and head for the policies of ``chains``; returns the slow averages, in eval mode.

    Args:
        model: with ``policies`` as many as there are chains (0 for one), and ``action_dim`` where actions are shown.
        head: a value head, which needs ``values`` float64 (P, N), V of every row and policy; None trains none.
        codes, features: of every row of ``dataset``.
        starts: rows where values will be asked (None: none in particular).
        checkpoints: where the state is kept; the same call goes on from there.

    Raises:
        VOCError: another number of chains than of policies, or a head without values or for a range of discounts.
    """
    rows = np.zeros(0, np.int64) if starts is None else np.asarray(starts)
    trainee = PolicyTrainee(model, head, dataset, codes, features, chains, values, rows, config, seed)
    optimise(trainee, config.occupancy.loop, seed, stage, log=log, checkpoints=checkpoints, progress=progress)
    return trainee.target.eval(), trainee.target_head
