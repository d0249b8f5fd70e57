"""What the value head learns: (1 - gamma) V of contexts, and how much each episode counts for each of its members.

For the behaviour these are n-step returns, which continue with values of the slow networks. ``Returns`` keeps a table
of these values and renews it every ``RENEWED_EVERY`` refills. It is used for one discount, where they weigh at most
``SLIGHT`` on average and the table is small (``DEAREST``). Otherwise ``BatchReturns`` computes them with every stock
of batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.occupancy.batches import Batch
from voc_rl.occupancy.contexts import Condition
from voc_rl.occupancy.heads import ValueHead
from voc_rl.occupancy.reward_units import reward_units
from voc_rl.occupancy.targets import NStepReturns, n_step_returns
from voc_rl.occupancy.training_config import OccupancyTraining
from voc_rl.precision import device_of, on_device

SLIGHT = 0.05  # mean weight of later values, at most, that may be some hundred steps old
RENEWED_EVERY = 25  # refills, values that are kept
DEAREST = 2  # times what batches would ask for in between, that a renewal may cost
# rows int64 (B,) and their condition -> (1 - gamma) V under the slow networks, float32 (B, members)
SlowValues = Callable[[np.ndarray, Condition], Tensor]


class HeadGoals(ABC):
    """Goals of a value head on the rows of a dataset, in reward units; all of it is where the head is.

    Attributes:
        weights: float32 (episodes, members), of a member's errors. values: float32 (N, members), kept between steps
            where goals continue with them, else empty.
    """

    def __init__(self, head: ValueHead, dataset: Episodes, gamma: float, seed: int) -> None:
        self.device = device_of(head)
        mean, unit = reward_units(dataset, dataset.reward[:, None], gamma)
        head.fit_rewards(float(mean[0]), float(unit[0]))
        weights = head.episode_weights(len(dataset.starts), np.random.default_rng([seed, 1 << 41]))
        self.weights, self.episode = weights.to(self.device), on_device(dataset.episode, self.device)
        self.values = torch.zeros(0)

    @abstractmethod
    def of(self, batch: Batch) -> Tensor:
        """Goals float32 (B, members or 1)."""

    def weights_of(self, batch: Batch, nothing: Tensor | None) -> Tensor:
        """Weights float32 (B, members) of errors; none where ``nothing`` bool (B,) is shown."""
        weights = self.weights[self.episode[batch.at]]
        return weights if nothing is None else weights * ~nothing[:, None]

    def made(
        self, rows: np.ndarray, gamma: float | np.ndarray, condition: Condition, slow: SlowValues
    ) -> Tensor | None:
        """Called at each refill: goals float32 (B, members) of the rows, for their batches to hold; None where ``of``
        computes them at every step."""
        return None

    def renew(self, slow: SlowValues) -> None:
        """Renew the values that are kept, where there are any."""
        return


class Returns(HeadGoals):
    """n-step returns of all rows at one discount, times 1 - gamma."""

    def __init__(self, head: ValueHead, dataset: Episodes, gamma: float, returns: NStepReturns, seed: int) -> None:
        super().__init__(head, dataset, gamma, seed)
        self.gamma, self.renewed = gamma, np.unique(returns.bootstrap)
        parts = (returns.bootstrap, returns.partial, returns.weight)
        self.later, self.partial, self.later_weight = (on_device(part, self.device) for part in parts)
        self.values = torch.full((len(dataset), head.members), float(head.bias_value), device=self.device)

    def of(self, batch: Batch) -> Tensor:
        later = self.values[self.later[batch.at]]
        partial = self.partial[batch.at, None] * (1.0 - self.gamma)
        return partial + self.later_weight[batch.at, None] * later

    def renew(self, slow: SlowValues) -> None:
        self.values[on_device(self.renewed, self.device)] = slow(self.renewed, Condition())


class BatchReturns(HeadGoals):
    """n-step returns times 1 - gamma, at the discount of each context, with the slow values of the moment.

    ``gamma``: the largest discount.
    """

    def __init__(self, head: ValueHead, dataset: Episodes, gamma: float, n: int, seed: int) -> None:
        super().__init__(head, dataset, gamma, seed)
        self.dataset, self.n = dataset, n

    def of(self, batch: Batch) -> Tensor:
        assert batch.goals is not None
        return batch.goals

    def made(self, rows: np.ndarray, gamma: float | np.ndarray, condition: Condition, slow: SlowValues) -> Tensor:
        returns = n_step_returns(self.dataset, gamma, self.n, rows)
        own = ((1.0 - gamma) * returns.partial).astype(np.float32)
        partial, weight = (on_device(part, self.device)[:, None] for part in (own, returns.weight))
        return partial + weight * slow(returns.bootstrap, condition)


def returns_of(
    head: ValueHead, dataset: Episodes, contexts: np.ndarray, config: OccupancyTraining, n: int, seed: int
) -> HeadGoals:
    """The behaviour's n-step returns of the rows ``contexts``, at one discount or at several.

    Not n alone says how much later values weigh: at the cut of a time limit a return continues before n steps.
    """
    if config.gammas is None:
        returns = n_step_returns(dataset, config.gamma, n)
        asked = RENEWED_EVERY * config.refill * config.loop.batch_size  # with batches, by each of several processes
        if returns.weight[contexts].mean() <= SLIGHT and len(np.unique(returns.bootstrap)) <= DEAREST * asked:
            return Returns(head, dataset, config.gamma, returns, seed)
    largest = config.gammas[1] if config.gammas else config.gamma
    return BatchReturns(head, dataset, largest, n, seed)
