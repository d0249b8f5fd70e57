"""Joint training: quantizer and occupancy network learn at the same time, from pixels.

The two share no gradient (codes are whole numbers), but the quantizer changes the language that the network reads and
writes. So that this vocabulary does not run away from the network, the network is shown codes of a slow average of the
quantizer, which moves only between stocks of prepared batches and comes to rest when the quantizer has taken all its
steps. Then the network goes on as in training by stages. Codes are made when they are needed: those of the contexts,
targets and bootstrap rows of a stock, again whenever the vocabulary has moved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, arrived_rows
from voc_rl.data.checks import check_discounts, check_reward_sizes
from voc_rl.errors import check_decay, check_share
from voc_rl.loop import Checkpoints, Descent, LoopConfig, StepLog, take_steps
from voc_rl.occupancy import OccupancyTraining, OccupancyTransformer, ValueHead
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.precision import device_of, float32
from voc_rl.quantizers import Quantizer, tokenize
from voc_rl.quantizers.training import QuantizerTrainee, fit_quantizer

Networks = Callable[[Quantizer], tuple[OccupancyTransformer, ValueHead | None]]


@dataclass(frozen=True)
class JointTraining:
    """How much of their training quantizer and occupancy network share.

    warmup: share of the quantizer's steps that it takes alone; 1 freezes it before the network begins, which is
    training by stages. Raised where the network's steps would end before the quantizer's.
    decay: of the average that the network's codes come from, per step; 0 is the moving quantizer itself, as it is at
    each stock of ``refill`` steps (``OccupancyTraining``): codes are up to refill - 1 of its steps old. In the paper's
    code both are 0 (``with_recipe(config, "paper")``).
    """

    warmup: float = 0.5
    decay: float = 0.98

    def __post_init__(self) -> None:
        check_share(self.warmup, "warmup")
        check_decay(self.decay, "decay")


class Vocabulary:
    """A slow average of a quantizer, and the codes and features of a dataset's rows under it.

    Attributes:
        quantizer: the average, in eval mode. codes: int16 (N, n_tokens), features: float16 (N, feature_dim), where it
        is, of the rows that are ``fresh``, bool (N,); the others were made before the vocabulary moved, or never.
    """

    def __init__(self, quantizer: Quantizer, dataset: Episodes) -> None:
        self.quantizer, self.dataset = copy.deepcopy(quantizer).eval().requires_grad_(False), dataset
        device = device_of(quantizer)
        self.codes = torch.zeros(len(dataset), quantizer.n_tokens, dtype=torch.int16, device=device)
        self.features = torch.zeros(len(dataset), quantizer.feature_dim, dtype=torch.float16, device=device)
        self.fresh = torch.zeros(len(dataset), dtype=torch.bool)

    @torch.no_grad()
    def follow(self, quantizer: Quantizer, decay: float) -> None:
        """Move the weights towards those of ``quantizer``; buffers (statistics, codebooks that average) are copied."""
        torch._foreach_lerp_(list(self.quantizer.parameters()), list(quantizer.parameters()), 1.0 - decay)
        for slow, fast in zip(self.quantizer.buffers(), quantizer.buffers(), strict=True):
            slow.copy_(fast)
        self.fresh.fill_(False)

    def make(self, rows: np.ndarray) -> None:
        """See to it that these rows are fresh."""
        distinct = np.unique(rows)
        stale = distinct[~self.fresh.numpy()[distinct]]
        if len(stale):
            with float32(self.codes.device):  # tokenize says what is computed in bfloat16
                codes, features = tokenize(self.quantizer, self.dataset, stale)
            places = torch.from_numpy(stale)
            self.fresh[places] = True
            places = places.to(self.codes.device)
            self.codes[places], self.features[places] = codes.to(places.device), features.to(places.device)

    def state(self) -> dict[str, Any]:
        tables = {"codes": self.codes, "features": self.features, "fresh": self.fresh}
        return {"quantizer": dict(self.quantizer.state_dict()), **tables}

    def load_state(self, state: dict[str, Any]) -> None:
        self.quantizer.load_state_dict(state["quantizer"])
        self.codes.copy_(state["codes"])
        self.features.copy_(state["features"])
        self.fresh.copy_(state["fresh"])


class _PixelTrainee(OccupancyTrainee):
    """Trains the occupancy network on codes that a vocabulary makes when they are asked for."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: OccupancyTransformer,
        head: ValueHead | None,
        config: OccupancyTraining,
        seed: int,
    ) -> None:
        super().__init__(model, head, vocabulary.dataset, vocabulary.codes, vocabulary.features, config, seed)
        self.vocabulary = vocabulary

    def _codes(self, rows: np.ndarray, at: Tensor | None = None) -> Tensor:
        self.vocabulary.make(rows)
        return super()._codes(rows, at)

    def _codes_at(self, rows: Tensor, used: Tensor) -> Tensor:
        self.vocabulary.make(rows[used].cpu().numpy())
        return super()._codes_at(rows, used)

    def _features(self, rows: np.ndarray, at: Tensor | None = None) -> Tensor | None:
        self.vocabulary.make(rows)
        return super()._features(rows, at)


class JointSteps:
    """The steps of joint training: of the quantizer alone, of both, of the network alone.

    Attributes:
        alone: steps before the network begins. steps: all of them. vocabulary: where the network's codes come from.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        networks: Networks,
        dataset: Episodes,
        joint: JointTraining,
        quantizer_training: LoopConfig,
        occupancy: OccupancyTraining,
        seed: int,
    ) -> None:
        self.networks, self.dataset, self.config, self.seed = networks, dataset, occupancy, seed
        trainee = QuantizerTrainee(quantizer.train(), dataset, quantizer_training.batch_size, seed)
        self.moving, self.quantizer = quantizer, Descent(trainee, quantizer_training, seed)
        self.vocabulary = Vocabulary(quantizer, dataset)
        self.decay = joint.decay**occupancy.refill  # it moves once per stock of batches
        own = quantizer_training.steps
        self.alone = max(math.ceil(joint.warmup * own), own - occupancy.loop.steps)
        self.steps = self.alone + occupancy.loop.steps
        self.trainee: _PixelTrainee | None = None
        self._occupancy: Descent | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        """One step of what learns at ``step``; ``loss`` is the sum of both losses."""
        numbers: dict[str, Tensor] = {}
        moves = step < self.quantizer.config.steps
        if moves:
            numbers = self.quantizer.step(step)
        place = step - self.alone
        if place < 0:
            return numbers
        if place == 0:
            self._begin()
        elif moves and place % self.config.refill == 0:
            self.vocabulary.follow(self.moving, self.decay)
        assert self._occupancy is not None
        found = self._occupancy.step(place)
        return {**numbers, **found, "loss": numbers.get("loss", 0.0) + found["loss"]}

    def _begin(self) -> None:
        self.vocabulary.follow(self.moving, decay=0.0)
        self.vocabulary.make(np.arange(len(self.dataset)))
        self._build()

    def _build(self) -> None:
        vocabulary = self.vocabulary
        model, head = self.networks(vocabulary.quantizer)
        self.trainee = _PixelTrainee(vocabulary, model, head, self.config, self.seed)
        self._occupancy = Descent(self.trainee, self.config.loop, self.seed)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"quantizer": self.quantizer.state()}
        if self._occupancy is not None:
            state.update(vocabulary=self.vocabulary.state(), occupancy=self._occupancy.state())
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.quantizer.load_state(state["quantizer"])
        if "occupancy" in state:
            self.vocabulary.load_state(state["vocabulary"])
            self._build()
            assert self._occupancy is not None
            self._occupancy.load_state(state["occupancy"])


class JointlyTrained(NamedTuple):
    """What joint training leaves: the vocabulary at rest, the networks, codes and features of all rows."""

    quantizer: Quantizer
    model: OccupancyTransformer
    head: ValueHead | None
    codes: Tensor
    features: Tensor


def train_joint(
    quantizer: Quantizer,
    networks: Networks,
    dataset: Episodes,
    joint: JointTraining,
    quantizer_training: LoopConfig,
    occupancy: OccupancyTraining,
    seed: int = 0,
    *,
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> JointlyTrained:
    """Train a quantizer and the networks on its codes at once, from the observations of ``dataset``.

    Args:
        quantizer: where it starts, fresh or trained before; it is trained in place, and left in eval mode. What is
            returned is its slow average. Everything is computed where it is.
        networks: fresh networks for a quantizer's codes, called when the quantizer's steps alone are over.

    Raises:
        VOCError: discounts of the data's own, rewards that are too large, or a quantizer whose parameters are all
            frozen.
    """
    check_discounts(dataset)
    check_reward_sizes(dataset.reward[arrived_rows(dataset)])
    if checkpoints is None or not checkpoints.path.exists():
        fit_quantizer(quantizer, dataset, seed, log)
    work = JointSteps(quantizer, networks, dataset, joint, quantizer_training, occupancy, seed)
    take_steps(work, work.steps, "joint", log=log, checkpoints=checkpoints, progress=progress)
    quantizer.eval()
    vocabulary, trainee = work.vocabulary, work.trainee
    assert trainee is not None
    for slow, fast in zip(vocabulary.quantizer.parameters(), quantizer.parameters(), strict=True):
        slow.requires_grad_(fast.requires_grad)  # what is returned can be trained again
    vocabulary.make(np.arange(len(dataset)))
    codes, features = vocabulary.codes.cpu(), vocabulary.features.cpu()
    return JointlyTrained(vocabulary.quantizer, trainee.target.eval(), trainee.target_head, codes, features)
