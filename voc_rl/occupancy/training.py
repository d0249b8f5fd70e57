"""Training the occupancy network on codes, with the amortised value head beside it.

Targets that need the target network are generated for several steps at once, and only for the share that
bootstraps. The target network is a slow average of the trained one, always in eval mode.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.data import Episodes, arrived_rows
from voc_rl.distributed import gather, ranks
from voc_rl.errors import VOCError, check_token_rows
from voc_rl.loop import Checkpoints, PreparedTrainee, StepLog, optimise, own_seed, step_seed
from voc_rl.occupancy.batches import Batch, StepInputs, without_context
from voc_rl.occupancy.contexts import Condition
from voc_rl.occupancy.discounts import climb, draw_gammas
from voc_rl.occupancy.goals import RENEWED_EVERY, HeadGoals, returns_of
from voc_rl.occupancy.heads import ValueHead
from voc_rl.occupancy.sampling import sample_futures, uniforms
from voc_rl.occupancy.targets import Targets, default_n, draw_targets
from voc_rl.occupancy.training_config import OccupancyTraining
from voc_rl.occupancy.transformer import OccupancyTransformer
from voc_rl.precision import autocast, device_of, generator_on, on_device, seeded, single_precision

ROWS_AT_ONCE = 2048


class OccupancyTrainee(PreparedTrainee):
    """What the loop trains: network and head, their slow copies, and the stock of prepared batches.

    All of it is where the network is; codes and features are moved there once. ``goals``: what the head learns; None:
    the behaviour's returns.
    """

    def __init__(
        self,
        model: OccupancyTransformer,
        head: ValueHead | None,
        dataset: Episodes,
        codes: Tensor,
        features: Tensor | None,
        config: OccupancyTraining,
        seed: int,
        goals: HeadGoals | None = None,
    ) -> None:
        check_token_rows(codes, features, len(dataset))
        self.model, self.head, self.dataset, self.config, self.seed = model, head, dataset, config, seed
        self.device = device_of(model)
        self.codes = codes.to(self.device)
        self.features = features.to(self.device) if features is not None and model.config.feature_dim else None
        if self.features is not None:
            if not model.feature_mean.any():  # who started from a trained network keeps what that learned with
                model.fit_features(self.features)
            if head is not None:
                head.fit_features(self.features)
        for name in ("gammas", "top_k"):
            built, trained = getattr(model.config, name), getattr(config, name)
            if built != trained:
                raise VOCError(
                    f"The network was built for {name}={built}, but its training says {name}={trained}; they have to "
                    "be the same."
                )
        self.n = config.n or default_n(config.gammas[1] if config.gammas else config.gamma)
        self.ema = config.ema if config.ema is not None else 1.0 - min(max(20.0 / config.loop.steps, 1e-3), 1.0)
        # a row at which the episode terminated is a context too: nothing but END follows it
        self.contexts = np.flatnonzero((dataset.steps_left > 0) | dataset.terminal)
        if len(self.contexts) == 0:
            raise VOCError("No row has a step left; episodes of at least 2 rows are needed.")
        self.arrived = on_device(arrived_rows(dataset), self.device)
        self.stock: list[Batch] = []
        self.goals = goals
        if head is not None and goals is None:
            self.goals = returns_of(head, dataset, self.contexts, config, self.n, seed)
        self.target = copy.deepcopy(model).train(config.target_dropout).requires_grad_(False)
        self.target_head = None if head is None else copy.deepcopy(head).eval().requires_grad_(False)
        slow = [self.target, *([] if self.target_head is None else [self.target_head])]
        self.slow: list[Tensor] = [parameter for module in slow for parameter in module.parameters()]
        self.fast: list[Tensor] = [*self.parameters()]

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *([] if self.head is None else self.head.parameters())]

    def prepare(self, step: int, generator: torch.Generator) -> StepInputs:
        """This process's share of the batch of a step. Between two refills a GPU is not waited for, nor copied to."""
        self.model.train()
        if step % self.config.refill == 0:
            self._refill(step)
            if self.goals is not None and step > 0 and step % (RENEWED_EVERY * self.config.refill) == 0:
                self.goals.renew(self._slow_values)
        batch = self.stock[step % self.config.refill]
        drawn = torch.rand(len(batch.rows), generator=generator, device=generator.device).to(self.device)
        features = self._noisy(self._features(batch.rows, batch.at), generator)
        nothing, futures = None, batch.futures
        if self.model.config.null_context:
            nothing, futures = without_context(futures, self._codes_at, self.arrived, generator)
        learned = () if self.goals is None else (self.goals.of(batch), self.goals.weights_of(batch, nothing))
        inputs = StepInputs(
            self._codes(batch.rows, batch.at), futures, drawn >= self.config.feature_dropout, batch.condition,
            features, nothing, *learned,
        )  # fmt: skip
        return inputs[ranks().equal_share(len(inputs))]  # every process draws random numbers for the whole batch

    def loss_of(self, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of prepared inputs, and its parts; depends on nothing else but weights (and dropout)."""
        with autocast(self.model):
            shown, nothing = inputs.shown, inputs.nothing
            prefix = self.model.prefix(inputs.codes, inputs.features, shown, inputs.condition, nothing)
            loss = _cross_entropy(*self.model.future_logits(prefix, inputs.futures), inputs.futures)
            numbers = {"cross_entropy": loss.detach()}
            if self.config.context_loss:
                loss = self._loss_of_all(inputs.codes, loss)
            if self.head is not None:
                head_loss = self._head_loss(inputs, prefix.last)
                numbers["head"] = head_loss.detach()
                loss = loss + self.config.head_weight * head_loss
        return loss, numbers

    def _loss_of_all(self, context: Tensor, future_loss: Tensor) -> Tensor:
        """Mean cross-entropy of the n codes of a future and of the n - 1 codes that follow another in the context."""
        if (n := context.shape[1]) == 1:
            return future_loss
        own = self.model(context)[:, :-1].float()
        context_loss = F.cross_entropy(own.flatten(0, 1), context[:, 1:].flatten())
        return (n * future_loss + (n - 1) * context_loss) / (2 * n - 1)

    def _noisy(self, features: Tensor | None, generator: torch.Generator) -> Tensor | None:
        if features is None or not self.config.feature_noise:
            return features
        noise = torch.randn(features.shape, generator=generator, device=generator.device).to(self.device)
        return features + self.config.feature_noise * (noise * self.model.feature_std)

    def _head_loss(self, inputs: StepInputs, context: Tensor) -> Tensor:
        assert self.head is not None
        assert inputs.goals is not None
        assert inputs.weights is not None
        error = (self.head(context, inputs.features) - inputs.goals) / self.head.spread
        return (error.square() * inputs.weights).mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        decay = min(self.ema, (1 + step) / (10 + step))  # young averages forget faster
        torch._foreach_lerp_(self.slow, self.fast, 1.0 - decay)

    @torch.no_grad()
    def _refill(self, step: int) -> None:
        """Prepare the batches of the next ``refill`` steps, and generate all their bootstrapped targets at once."""
        config = self.config
        rng = np.random.default_rng([self.seed, step])
        count = config.loop.batch_size
        rows = self.contexts[rng.integers(len(self.contexts), size=count * config.refill)]
        gamma = config.gamma if config.gammas is None else draw_gammas(config.gammas, len(rows), rng)
        targets = draw_targets(self.dataset, rows, gamma, self.n, config.futures, rng)
        condition = self._told(gamma) if isinstance(gamma, np.ndarray) else Condition()
        goals = None if self.goals is None else self.goals.made(rows, gamma, condition, self._slow_values)
        bootstrapped = self._on_device(np.nonzero(targets.bootstrap >= 0)[0])
        self._keep(rows, self._futures(step, targets, condition[bootstrapped]), condition, goals)

    def _told(self, gamma: np.ndarray) -> Condition:
        return Condition(gamma=self._on_device(gamma.astype(np.float32)))

    def _real(self, row: np.ndarray) -> Tensor:
        """Codes int64 (B, M, n_tokens) of targets that are real rows int64 (B, M); END where these are -1."""
        shape, end = (*row.shape, self.codes.shape[1]), self.model.config.end_code
        futures = torch.full(shape, end, device=self.device)
        futures[self._places(row >= 0)] = self._codes(row[row >= 0])
        return futures

    def _futures(self, step: int, targets: Targets, condition: Condition) -> Tensor:
        """Codes int64 (B, M, n_tokens) of targets: real rows, END, or the target network's samples from the bootstrap
        rows (``condition`` is theirs, in order)."""
        futures, bootstrap = self._real(targets.row), targets.bootstrap
        missing = bootstrap >= 0
        if missing.any():
            count, own = int(missing.sum()), ranks().share(int(missing.sum()))
            rows = bootstrap[missing][own]
            generator = generator_on(self.device, step_seed(self.seed, step) ^ 1)
            # seeded for dropout, where it is left on
            with seeded(self.device, own_seed(self.seed, step) ^ 2), autocast(self.model):
                drawn = self._drawn(rows, generator, condition[own], count, own)
            futures[self._places(missing)] = gather(drawn, count)
        return futures

    def _drawn(
        self, rows: np.ndarray, generator: torch.Generator, condition: Condition, count: int, own: slice
    ) -> Tensor:
        """One future of the target network from each of ``rows``, ``own`` of ``count``: int64 (B, n_tokens)."""
        if len(rows) == 0:
            return self.codes.new_zeros(0, self.codes.shape[1], dtype=torch.long)
        codes, features = self._codes(rows), self._features(rows)
        if condition.gamma is not None:
            return climb(self.target, codes, features, generator, condition, count, own)
        noise = uniforms(self.target, count, 1, generator)[:, own]
        return sample_futures(self.target, codes, features, 1, generator, noise)[:, 0]

    def _keep(self, rows: np.ndarray, futures: Tensor, condition: Condition, goals: Tensor | None = None) -> None:
        """Stock the batches of the next ``refill`` steps."""
        count = self.config.loop.batch_size
        parts = [slice(i * count, (i + 1) * count) for i in range(self.config.refill)]
        at = self._on_device(rows)
        self.stock = [
            Batch(rows[p], at[p], futures[p], condition[p], None if goals is None else goals[p]) for p in parts
        ]

    @torch.no_grad()
    def _slow_values(self, rows: np.ndarray, condition: Condition) -> Tensor:
        """(1 - gamma) V of rows under the slow networks, float32 (B, members); never with dropout."""
        assert self.target_head is not None
        self.target.eval()
        parts = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            with autocast(self.model):
                features = self._features(rows[some])
                context = self.target.last(self._codes(rows[some]), features, condition[some])
                parts.append(self.target_head(context, features).float())
        self.target.train(self.config.target_dropout)
        return torch.cat(parts)

    def _codes(self, rows: np.ndarray, at: Tensor | None = None) -> Tensor:
        """Codes int64 of ``rows``; ``at``: the same rows where the network is, if they are there already."""
        return self.codes[self._on_device(rows) if at is None else at].long()

    def _codes_at(self, rows: Tensor, used: Tensor) -> Tensor:
        """Codes int64 (B, M, n_tokens) of rows int64 (B, M) that were drawn where the network is, right where ``used``
        bool (B,)."""
        return self.codes[rows].long()

    def _features(self, rows: np.ndarray, at: Tensor | None = None) -> Tensor | None:
        if self.features is None:
            return None
        return self.features[self._on_device(rows) if at is None else at].float()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return on_device(array, self.device)

    def _places(self, where: np.ndarray) -> tuple[Tensor, ...]:
        """Indices of the places where bool ``where`` is true; found here, so that no GPU is waited for."""
        return tuple(self._on_device(index) for index in np.nonzero(where))

    def state(self) -> dict[str, Any]:
        modules = {
            "model": self.model,
            "target": self.target,
            "head": self.head,
            "target_head": self.target_head,
        }
        state: dict[str, Any] = {name: dict(module.state_dict()) for name, module in modules.items() if module}
        if self.goals is not None:
            state["values"] = self.goals.values
        state["stock"] = [batch.state() for batch in self.stock]
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        for name in ("model", "target", "head", "target_head"):
            module = getattr(self, name)
            if module is not None:
                module.load_state_dict(state[name])
        if self.goals is not None:
            self.goals.values = state["values"].to(self.device)
        self.stock = [Batch.kept(batch, self.device) for batch in state["stock"]]


def _cross_entropy(first: Tensor, later: Tensor, futures: Tensor) -> Tensor:
    """Mean over all codes of ``futures`` int64 (B, M, n_tokens); logits as ``future_logits`` returns them."""
    own = first.float().log_softmax(-1).gather(1, futures[..., 0])
    others = F.cross_entropy(later.float().flatten(0, 2), futures[..., 1:].flatten(), reduction="sum")
    return (others - own.sum()) / futures.numel()


@single_precision()
def train_occupancy(
    model: OccupancyTransformer,
    head: ValueHead | None,
    dataset: Episodes,
    codes: Tensor,
    features: Tensor | None,
    config: OccupancyTraining,
    seed: int = 0,
    *,
    stage: str = "occupancy",
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> tuple[OccupancyTransformer, ValueHead | None]:
    """Train network and head, where they are, on codes (N, n_tokens) and features (N, feature_dim) of ``dataset``.

    A network without features is not shown any. Returns the slow averages, in eval mode: they are better than the
    last iterate, and deterministic.

    Raises:
        VOCError: codes or features of other rows, a network built for other ``gammas`` or ``top_k`` than ``config``
            says, or no step in the data.
    """
    trainee = OccupancyTrainee(model, head, dataset, codes, features, config, seed)
    optimise(trainee, config.loop, seed, stage, log=log, checkpoints=checkpoints, progress=progress)
    return trainee.target.eval(), trainee.target_head
