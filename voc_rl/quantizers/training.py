"""Training any quantizer on the frames of a dataset, and turning the dataset into codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.distributed import average, gather, ranks
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, LoopConfig, StepLog, Trainee, optimise, step_seed
from voc_rl.precision import autocast, device_of, generator_on, single_precision
from voc_rl.quantizers.base import Quantizer, check_answers

FITTING_ROWS = 3000
FITTING_BYTES = 1 << 30  # of their frames: fewer rows where frames are large


class QuantizerTrainee(Trainee):
    """What the loop trains: the quantizer, on observations drawn anew at each step.

    Raises:
        VOCError: a quantizer whose parameters were all frozen, or that has none.
    """

    def __init__(self, quantizer: Quantizer, dataset: Episodes, batch_size: int, seed: int) -> None:
        self.quantizer, self.dataset, self.batch_size, self.seed = quantizer, dataset, batch_size, seed
        if not self.parameters():
            if not has_parameters(quantizer):
                raise VOCError(f"Quantizer {quantizer.name} has no parameters to train jointly; train it by stages.")
            raise VOCError(
                f"Quantizer {quantizer.name} has no parameters that train, because something froze them (an agent does "
                "so to its own); call requires_grad_(True) on it, or give another one."
            )

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.quantizer.parameters() if p.requires_grad]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, step])
        rows = self.dataset.sample_rows(self.batch_size, rng, min_steps=0)
        rows = rows[ranks().equal_share(len(rows))]
        with autocast(self.quantizer):
            return self.quantizer.loss(self.quantizer.batch(self.dataset, rows, rng), generator)

    def after_step(self, step: int) -> None:
        average(self.quantizer.buffers())  # statistics that follow a process's own rows

    def state(self) -> dict[str, Any]:
        return dict(self.quantizer.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        self.quantizer.load_state_dict(state)


@single_precision()
def train_quantizer(
    quantizer: Quantizer,
    dataset: Episodes,
    config: LoopConfig,
    seed: int = 0,
    *,
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> Quantizer:
    """Train ``quantizer``, in place and where it is, on the observations of ``dataset``; returns it in eval mode.

    A fresh one is fitted first (``fit_quantizer``); one that was trained before goes on from there. One without any
    parameters, as k-means, is fitted alone.
    """
    if checkpoints is None or not checkpoints.path.exists():
        fit_quantizer(quantizer, dataset, seed, log)
    if not has_parameters(quantizer):
        return quantizer.eval()
    quantizer.train()
    trainee = QuantizerTrainee(quantizer, dataset, config.batch_size, seed)
    optimise(trainee, config, seed, "quantizer", log=log, checkpoints=checkpoints, progress=progress)
    return quantizer.eval()


def has_parameters(quantizer: Quantizer) -> bool:
    """Whether there is anything that an optimiser could train."""
    return next(quantizer.parameters(), None) is not None


def fit_quantizer(quantizer: Quantizer, dataset: Episodes, seed: int, log: StepLog | None = None) -> None:
    """``initialise`` a fresh quantizer on a sample of the observations of ``dataset``, before its first step.

    One that was trained before stays as it is.

    Raises:
        VOCError: data without frames, or with one picture alone, in which there is nothing to tell apart.
    """
    if quantizer.initialised:
        return
    dataset.check_frames()
    rng = np.random.default_rng([seed, 1 << 40])
    room = max(FITTING_BYTES // math.prod(dataset.observation_shape), 1)
    rows = rng.choice(len(dataset), size=min(FITTING_ROWS, room, len(dataset)), replace=False)
    device = device_of(quantizer)
    obs = torch.from_numpy(dataset.observations(np.sort(rows))).to(device)
    if len(obs) > 1 and torch.equal(obs.amin(0), obs.amax(0)):
        raise VOCError(f"{dataset}: every frame is the same picture; frames that differ are needed to learn from.")
    quantizer.initialise(obs, generator_on(device, step_seed(seed, 1 << 40)), log)


@torch.no_grad()
def seen_as_stored(quantizer: Quantizer, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, n_tokens) and features float16 (B, feature_dim) of observations, in the precision of ``tokenize``: what
    learned from stored ones has to meet the same ones when it acts."""
    with autocast(quantizer):
        codes, features = quantizer.codes_and_features(obs)
    return codes, features.to(torch.float16)


@torch.no_grad()
def tokenize(
    quantizer: Quantizer, dataset: Episodes, rows: np.ndarray | None = None, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Codes int16 (N, n_tokens) and features float16 (N, feature_dim) of ``rows`` (N,) of a dataset; None: of all.

    Computed where the quantizer is, returned in the memory of the host. All rows are shared by several
    processes, where there are; chosen ones are this process's own affair.

    Raises:
        VOCError: an untrained quantizer, whose codes say nothing, data of other frames or stacks than its, or codes and
            features that are not as it says.
    """
    if not quantizer.usable:
        raise VOCError(f"Quantizer {quantizer.name} is untrained, and its codes say nothing; train it, or load one.")
    _check_shape(quantizer, dataset)
    device = device_of(quantizer)
    shared, count = rows is None, len(dataset)
    rows = np.arange(count)[ranks().share(count)] if rows is None else rows
    codes = [torch.zeros(0, quantizer.n_tokens, dtype=torch.int16)]
    features = [torch.zeros(0, quantizer.feature_dim, dtype=torch.float16)]
    for first in range(0, len(rows), batch_size):
        obs = torch.from_numpy(dataset.observations(rows[first : first + batch_size])).to(device)
        some_codes, some_features = seen_as_stored(quantizer, obs)
        if shared:  # chosen rows are those of joint training, of which its loop says that it diverged
            check_answers(quantizer, some_codes, some_features)
        codes.append(some_codes.to("cpu", torch.int16))
        features.append(some_features.cpu())
    found = torch.cat(codes), torch.cat(features)
    return (gather(found[0], count), gather(found[1], count)) if shared else found


def _check_shape(quantizer: Quantizer, dataset: Episodes) -> None:
    """Observations of the shape that the quantizer reads."""
    needed, found = tuple(quantizer.observation_shape), dataset.observation_shape
    if needed == found:
        return
    stack = needed[0] // 3
    advice = f"open them with stack={stack}, as Episodes.open(path, stack={stack}) or --stack {stack}"
    if needed[1:] != found[1:]:
        advice = f"give frames of {needed[1]} x {needed[2]} pixels"
    raise VOCError(
        f"Quantizer {quantizer.name} reads observations {needed}, and those of {dataset} are {found}; {advice}."
    )
