"""One training loop for every network: schedule, clipping, curve, checkpoints, resume.

A step draws its randomness from ``(seed, step)`` alone, so a run that was killed and resumed goes through exactly
the numbers of an uninterrupted one (on one machine, with one thread count).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from voc_rl.checkpoints import load_torch_file, save_training_state
from voc_rl.distributed import average_gradients, ranks
from voc_rl.errors import VOCError, check_at_least, check_count, check_positive, check_share
from voc_rl.graphs import Inputs, StepGraph, add_gradients
from voc_rl.precision import device_of, generator_on, seeded
from voc_rl.progress import progress_bar


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast a network is trained.

    steps: optimiser steps. batch_size: rows per step. learning_rate: its peak, after a linear warm-up over the share
    ``warmup`` of the steps, then a cosine to zero. weight_decay: AdamW's, on parameters of two axes or more (of biases,
    only those that value heads stack for their members). betas: AdamW's. clip: largest norm of the whole gradient.
    accumulate: equal parts in which a batch is computed, one after another: the same gradient (but for dropout, drawn
    for each part) in about ``accumulate`` times less memory. Only the occupancy network can do this; losses and
    codebooks of the others need whole batches.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            check_count(getattr(self, name), name)
        for name in ("learning_rate", "clip"):
            check_positive(getattr(self, name), name)
        if self.learning_rate == math.inf:
            raise VOCError("learning_rate is inf; a finite number is needed.")
        check_at_least(self.weight_decay, 0, "weight_decay")
        check_share(self.warmup, "warmup")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise VOCError(f"betas is {self.betas!r}; two numbers from 0 to below 1 are needed.")


class StepLog(Protocol):
    """Takes the numbers of one logged step, e.g. a line of metrics.jsonl."""

    def __call__(self, stage: str, step: int, numbers: Mapping[str, float]) -> None: ...


class Learner(ABC):
    """What the loop trains. Only one that is given checkpoints needs a state."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]: ...

    def after_step(self, step: int) -> None:
        """What is done when the ``step``-th step was taken."""
        return

    def state(self) -> dict[str, Any]:
        """All that a checkpoint keeps of it, weights too."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Trainee(Learner):
    """A learner with a loss for each step."""

    @abstractmethod
    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]: ...


class PreparedTrainee(Learner):
    """A learner whose loss is a function of tensors that are made ready before it: it can be computed in parts, and on
    a GPU as one graph (``voc_rl.graphs``)."""

    @abstractmethod
    def prepare(self, step: int, generator: torch.Generator) -> Inputs: ...

    @abstractmethod
    def loss_of(self, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Checkpoints:
    """Where a loop keeps its state, every ``every`` steps; ``fingerprint`` must match for a resume.

    advice: what to do about a state of another fingerprint, for messages.
    """

    path: Path
    fingerprint: str
    every: int = 200
    advice: str = "delete it to start anew, or keep checkpoints elsewhere"


def kept_every(steps: int) -> int:
    """After how many steps a training of ``steps`` keeps its state: every tenth of it, at most 200 apart."""
    return min(max(steps // 10, 1), 200)


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def own_seed(seed: int, step: int) -> int:
    """``step_seed`` of what each process draws for its own rows, as dropout; the first process's is ``step_seed``."""
    shared, rank = step_seed(seed, step), ranks().rank
    return step_seed(shared, rank) if rank else shared


class Steps(Protocol):
    """What is done step by step: numbers of a step, ``loss`` among them, and the state to go on from."""

    def step(self, step: int) -> dict[str, Tensor]: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


class Descent:
    """AdamW on a trainee, one step at a time: its schedule, its clipping, and its own randomness per step."""

    def __init__(self, trainee: Trainee | PreparedTrainee, config: LoopConfig, seed: int, graphs: bool = True) -> None:
        """``graphs``: a GPU is given loss and gradients as one graph, where the trainee prepares its inputs.

        Raises:
            VOCError: a batch that cannot be computed in as many equal parts as are asked for.
        """
        self.trainee, self.config, self.seed = trainee, config, seed
        self.parameters = list(trainee.parameters())
        self.optimizer = make_optimizer(self.parameters, config)
        self.graphs = graphs and isinstance(trainee, PreparedTrainee) and device_of(trainee).type == "cuda"
        self._graph: StepGraph[Any] | None = None
        if config.accumulate > 1:
            _check_parts(trainee, config)

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step, the ``step``-th of ``config.steps``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(step, self.config)
        generator = generator_on(device_of(self.trainee), step_seed(self.seed, step))
        self.optimizer.zero_grad(set_to_none=self._graph is None)  # a graph adds to gradients where they are
        if isinstance(self.trainee, PreparedTrainee):
            numbers = self._in_parts(self.trainee, step, generator)
        else:
            loss, numbers = self.trainee.loss(step, generator)
            loss.backward()
            numbers = {"loss": loss.detach(), **numbers}
        average_gradients(self.parameters, numbers.values())
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.trainee.after_step(step)
        return numbers

    def _in_parts(self, trainee: PreparedTrainee, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Gradients of a batch, part by part; the means of the parts' numbers."""
        inputs, parts = trainee.prepare(step, generator), self.config.accumulate
        size = len(inputs) // parts
        with seeded(device_of(trainee), own_seed(self.seed, step)):  # dropout knows no generator
            found = [self._add_gradients(trainee, inputs[i * size : (i + 1) * size]) for i in range(parts)]
        return {name: torch.stack([numbers[name] for numbers in found]).mean(0) for name in found[0]}

    def _add_gradients(self, trainee: PreparedTrainee, inputs: Inputs) -> dict[str, Tensor]:
        """Those of one part, on a GPU by a graph from the first call on; without one where none can be captured."""
        scale, loss_of = 1.0 / self.config.accumulate, trainee.loss_of
        if self.graphs and self._graph is None:
            device = device_of(trainee)
            try:
                with seeded(device, self.seed):  # what is drawn on the way is drawn again
                    self._graph = StepGraph(loss_of, self.parameters, inputs, scale)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"No CUDA graph of the training step ({reason}); it runs slower without.", stacklevel=2)
                self.graphs = False
                self.optimizer.zero_grad()
        return add_gradients(loss_of, inputs, scale) if self._graph is None else self._graph(inputs)

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "trainee": self.trainee.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.trainee.load_state(state["trainee"])
        self.optimizer.load_state_dict(state["optimizer"])


def optimise(
    trainee: Trainee | PreparedTrainee,
    config: LoopConfig,
    seed: int,
    stage: str,
    *,
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> None:
    """Train one network to the end of ``config``.

    Raises:
        VOCError: the loss is not finite, or a checkpoint belongs to another configuration.
    """
    work = Descent(trainee, config, seed)
    take_steps(work, config.steps, stage, log=log, checkpoints=checkpoints, progress=progress)


def take_steps(
    work: Steps,
    steps: int,
    stage: str,
    *,
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> None:
    """The loop itself: go on from a checkpoint, take the steps, log and keep the state; see ``optimise``.

    Of several processes the first one logs and keeps the state (``voc_rl.distributed``).
    """
    first = ranks().first
    log, progress = log if first else None, progress and first
    step = _resume(work, checkpoints) if checkpoints else 0
    with progress_bar(desc=stage, unit="step", total=steps, initial=step, show=progress) as bar:
        while step < steps:
            numbers = work.step(step)
            step += 1
            bar.update()
            logged = step % 50 == 0 or step == steps
            kept = checkpoints is not None and (step % checkpoints.every == 0 or step == steps)
            if logged or kept:  # at no other step, because a GPU is waited for
                values = _finite(stage, step, numbers)
            if logged:
                bar.set_postfix({"loss": f"{values['loss']:.3f}"}, refresh=False)
                if log is not None:
                    log(stage, step, values)
            if checkpoints and kept:
                state = {"fingerprint": checkpoints.fingerprint, "step": step, **work.state()}
                if first:
                    save_training_state(checkpoints.path, state)


def make_optimizer(parameters: list[nn.Parameter], config: LoopConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on parameters of two axes or more."""
    decayed = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def schedule(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine."""
    warmup = max(int(config.warmup * config.steps), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(config.steps - warmup, 1)))


def _check_parts(trainee: Learner, config: LoopConfig) -> None:
    if not isinstance(trainee, PreparedTrainee):
        raise VOCError(
            f"accumulate is {config.accumulate}, but of the networks here only the occupancy network's batches can be "
            "computed in parts; leave it at 1 for the others."
        )
    needed = ranks().size * config.accumulate
    if config.batch_size % needed:
        raise VOCError(
            f"A batch of {config.batch_size} rows cannot be computed in {config.accumulate} equal parts by "
            f"{ranks().size} process(es); a multiple of {needed} is needed."
        )


def _resume(work: Steps, checkpoints: Checkpoints) -> int:
    if not checkpoints.path.exists():
        return 0
    state = load_torch_file(checkpoints.path)
    other = f"{checkpoints.path} was written by a run with other settings or data; {checkpoints.advice}."
    if not isinstance(state, dict) or state.get("fingerprint") != checkpoints.fingerprint:
        raise VOCError(other)
    try:
        work.load_state(state)
    except (RuntimeError, ValueError, KeyError) as error:  # other networks, under a fingerprint of the caller's own
        raise VOCError(other) from error
    return int(state["step"])


def _finite(stage: str, step: int, numbers: dict[str, Tensor]) -> dict[str, float]:
    values = {name: float(value) for name, value in numbers.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise VOCError(f"Training of the {stage} diverged at step {step}: {values}; lower the learning rate.")
    return values
