"""Training a VOC: its config, and the order in which its parts learn.

quantizer -> codes and features -> occupancy network and value head -> reward head

The first two one after the other, or at once (``joint``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voc_rl.checkpoints import checkpoint_folder
from voc_rl.configs import fingerprint
from voc_rl.data import Episodes, arrived_rows
from voc_rl.data.checks import check_discounts, check_reward_sizes
from voc_rl.data.mark import data_mark
from voc_rl.errors import VOCError, check_positive, check_seed
from voc_rl.joint import JointTraining, train_joint
from voc_rl.loop import Checkpoints, LoopConfig, StepLog, kept_every, step_seed
from voc_rl.model import VOC
from voc_rl.model_files import tensors_mark, weights_mark
from voc_rl.occupancy import (
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    ValueHead,
    start_from,
    train_occupancy,
)
from voc_rl.occupancy.contexts import check_layers
from voc_rl.precision import as_device, device_of, precision, same_device, seeded, single_precision
from voc_rl.quantizers import VQVAE, Quantizer, build_quantizer, tokenize, train_quantizer
from voc_rl.quantizers.registry import known_quantizer
from voc_rl.quantizers.vqvae import fitting_patch
from voc_rl.training_inputs import QuantizerSource, Tokens, check_dataset, known_tokens, quantizer_of
from voc_rl.values import RewardConfig, fit_reward_head

# stage, and a hash of the weights and tokens that it builds on -> where its state is kept
KeptStages = Callable[[str, str], Checkpoints]


@dataclass(frozen=True)
class NetworkSize:
    """Sizes of the occupancy network and the value head.

    features: show the network the quantizer's continuous features beside the codes. null_context: also learn the law of
    the data without any context, which density ratios need (``VOC.density_value``). head_members: networks of the
    value head, whose spread is its standard error; 0 leaves it out.
    """

    n_layer: int = 2
    n_head: int = 4
    width: int = 128
    dropout: float = 0.0
    attention_dropout: float = 0.0
    features: bool = True
    null_context: bool = False
    head_hidden: int = 128
    head_members: int = 5

    def __post_init__(self) -> None:
        check_layers(self.n_layer, self.n_head, self.width, self.dropout, self.attention_dropout)
        check_positive(self.head_hidden, "head_hidden")
        if self.head_members < 0 or self.head_members == 1:
            raise VOCError(f"head_members is {self.head_members}; 0, or at least 2 for a standard error, are needed.")


@dataclass(frozen=True)
class VOCConfig:
    """Everything that training a VOC needs besides data. See the parts for their meaning.

    quantizer: its name. quantizer_config: keys of that quantizer's config; vqvae and musik without ``patch`` get the
    largest up to 6 that fits the frames. quantizer_training: its loop.
    joint: train quantizer and occupancy network at once; None: one after the other.
    """

    quantizer: str = "vqvae"
    quantizer_config: dict[str, Any] = field(default_factory=dict)
    quantizer_training: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=500, batch_size=128, learning_rate=1.5e-3)
    )
    network: NetworkSize = field(default_factory=NetworkSize)
    occupancy: OccupancyTraining = field(default_factory=OccupancyTraining)
    reward: RewardConfig = field(default_factory=RewardConfig)
    joint: JointTraining | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)


@single_precision()
def train(
    dataset: Episodes,
    config: VOCConfig | None = None,
    *,
    quantizer: QuantizerSource | None = None,
    tokens: Tokens | None = None,
    device: torch.device | str | None = None,
    log: StepLog | None = None,
    checkpoints: str | Path | KeptStages | None = None,
    progress: bool = False,
) -> VOC:
    """Train a VOC on logged episodes.

    Args:
        dataset: what it learns from; values are of the policy that made it.
        config: sizes and schedules; None is the default.
        quantizer: a trained one, a VOC, or the folder of either, instead of training one here; in joint training a copy
            of it is what starts.
        tokens: codes int (N, n_tokens) and features (N, feature_dim) of every row of ``dataset`` under that quantizer,
            where they are known already; features are None for a quantizer or a network without them.
        device: where it is trained, and where the VOC is then: "auto" (a GPU where there is one), "cpu", "cuda" or a
            device of PyTorch's; None: where ``quantizer`` is, or on the CPU.
        log: takes the numbers of a step. checkpoints: a folder, where the states of the networks are kept: the same
            call goes on from there, to the same bits; other data, settings or tokens are refused. (Pipelines give a
            function that says where.) progress: show bars with the time left.

    Raises:
        VOCError: a dataset or config that is none, tokens without their quantizer, of other rows or in joint training,
            an untrained quantizer, data with discounts other than 1 (0 where an episode ends), or checkpoints of
            another training.
    """
    check_dataset(dataset)
    if config is not None and not isinstance(config, VOCConfig):
        raise VOCError(
            f"config is {type(config).__name__}; a VOCConfig is needed, as of voc_rl.sizes.sized('tiny', gamma=0.9)."
        )
    config, device, quantizer = config or VOCConfig(), as_device(device), quantizer_of(quantizer, dataset)
    known = None if tokens is None else known_tokens(tokens, quantizer, dataset, config.network.features)
    if known is not None and config.joint is not None:
        raise VOCError("Tokens were given to joint training, which makes its own; leave them out.")
    kept = _kept(checkpoints, dataset, config)
    networks = partial(fresh_networks, config=config, ends=bool(dataset.terminal.any()))
    features: Tensor | None
    if config.joint is not None:
        start = fresh_quantizer(dataset, config) if quantizer is None else copy.deepcopy(quantizer)
        start = start if device is None else start.to(device)
        quantizer, model, trained_head, codes, features = train_joint(
            start, networks, dataset, config.joint, config.quantizer_training, config.occupancy, config.seed,
            log=log, checkpoints=kept and kept("joint", weights_mark(start)), progress=progress,
        )  # fmt: skip
    else:
        quantizer = ready_quantizer(
            quantizer, dataset, config, device,
            log=log, checkpoints=kept and kept("quantizer", ""), progress=progress,
        )  # fmt: skip
        codes, features = known or tokenize(quantizer, dataset)
        tensors = {"codes": codes} if features is None else {"codes": codes, "features": features}
        built_on = weights_mark(quantizer) + tensors_mark(tensors) if kept else ""
        model, trained_head = train_occupancy(
            *networks(quantizer), dataset, codes, features, config.occupancy, config.seed,
            log=log, checkpoints=kept and kept("occupancy", built_on), progress=progress,
        )  # fmt: skip
    # a reward head that reads features beside codes knows one discount
    reads = config.network.features and config.occupancy.gammas is None and features is not None
    reward_head = fit_reward_head(
        quantizer, codes, dataset, dataset.reward, config.reward, config.seed,
        features=features if reads else None, gamma=config.occupancy.gamma if reads else None,
        log=log, progress=progress,
    )  # fmt: skip
    return VOC(quantizer, model, reward_head, trained_head, config.occupancy.gamma, dataset.spec)


def training_settings(config: VOCConfig) -> dict[str, Any]:
    """A config, JSON-ready, but for what changes no weights: the discount that is meant of several."""
    settings = asdict(config)
    if config.occupancy.gammas is not None:
        del settings["occupancy"]["gamma"]
    return settings


def settings_marks(
    data: str, stack: int, config: VOCConfig, held_out: float | None = None, weights: str | None = None
) -> tuple[str, str]:
    """Fingerprints of what is asked of the quantizer's training, and of all of it; ``data``: the mark of a dataset.

    ``held_out``: share of the episodes that are not trained on, where training is given the others. ``weights``: a hash
    of those of a quantizer that is taken instead of training one, to which neither seed nor steps do anything; nor do
    the steps to the networks on it, but for joint training, which goes on with it.
    """
    unusual = [word for word, usual in ((precision(), "auto"), (weights, None)) if word != usual]
    whole = training_settings(config)
    quantizer: tuple[Any, ...] = (whole["quantizer"], whole["quantizer_config"])
    alone = fingerprint(data, stack, held_out, quantizer, *unusual)
    if weights is None or config.joint is not None:
        quantizer = (*quantizer, whole["quantizer_training"])
    base = fingerprint(data, stack, held_out, config.seed, quantizer, *unusual)
    joint = () if config.joint is None else (whole["joint"],)
    trained = fingerprint(base, (whole["network"], whole["occupancy"], whole["reward"]), *joint)
    return base if weights is None else alone, trained


def _kept(asked: str | Path | KeptStages | None, dataset: Episodes, config: VOCConfig) -> KeptStages | None:
    """In a folder, a file per stage, which knows data, settings and what the stage builds on."""
    if asked is None or callable(asked):
        return asked
    folder, data = checkpoint_folder(asked), data_mark(dataset)
    advice = "delete it to start anew, or give another folder of checkpoints"

    def kept(stage: str, built_on: str) -> Checkpoints:
        base, trained = settings_marks(data, dataset.stack, config, weights=built_on or None)
        mark = base if stage == "quantizer" else trained
        loop = config.quantizer_training if stage == "quantizer" else config.occupancy.loop
        return Checkpoints(folder / f"{stage}.pt", mark, kept_every(loop.steps), advice)

    return kept


def ready_quantizer(
    given: Quantizer | None,
    dataset: Episodes,
    config: VOCConfig,
    device: torch.device | None = None,
    *,
    log: StepLog | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = False,
) -> Quantizer:
    """The quantizer that was given, or one trained on ``dataset``; on ``device`` (None: where it is, or the CPU).

    One that was given and is elsewhere stays there: a copy of it moves.

    Raises:
        VOCError: data that nothing can learn values from (``check_discounts``, ``check_reward_sizes``), before time is
            spent on them.
    """
    check_discounts(dataset)
    check_reward_sizes(dataset.reward[arrived_rows(dataset)])
    if given is not None:
        stays = device is None or same_device(device, device_of(given))
        return given if stays else copy.deepcopy(given).to(device)
    quantizer = fresh_quantizer(dataset, config)
    quantizer = quantizer if device is None else quantizer.to(device)
    return train_quantizer(
        quantizer, dataset, config.quantizer_training, config.seed, log=log, checkpoints=checkpoints, progress=progress
    )


@single_precision()
def fresh_quantizer(dataset: Episodes, config: VOCConfig) -> Quantizer:
    """An untrained quantizer for the frames of ``dataset``, on the CPU, its weights drawn from the seed.

    The patch of vqvae and musik, where the config leaves it out, is one that fits the frames.

    Raises:
        VOCError: data without frames.
    """
    dataset.check_frames()
    shape, sizes = dataset.observation_shape, config.quantizer_config
    cls = known_quantizer(config.quantizer)[0]
    if issubclass(cls, VQVAE) and isinstance(sizes, Mapping):
        sizes = {"patch": fitting_patch(shape), **sizes}
    with seeded(torch.device("cpu"), step_seed(config.seed, 1 << 42)):
        return build_quantizer(config.quantizer, shape, sizes)


@single_precision()
def fresh_networks(
    quantizer: Quantizer,
    config: VOCConfig,
    ends: bool = True,
    action_dim: int = 0,
    policies: int = 0,
    start: OccupancyTransformer | None = None,
) -> tuple[OccupancyTransformer, ValueHead | None]:
    """Untrained occupancy network and value head for the codes of ``quantizer``, where it is, drawn from the seed.

    ``action_dim``, ``policies``: what the network is told of whose future is asked for (``OccupancyConfig``); which
    discounts, ``config.occupancy`` says. ``start``: a trained network whose weights it gets (``start_from``).
    """
    size = config.network
    occupancy = OccupancyConfig(
        codebook_size=quantizer.codebook_size, n_tokens=quantizer.n_tokens,
        feature_dim=quantizer.feature_dim if size.features else 0, null_context=size.null_context,
        action_dim=action_dim, policies=policies, gammas=config.occupancy.gammas,
        n_layer=size.n_layer, n_head=size.n_head, width=size.width, dropout=size.dropout,
        attention_dropout=size.attention_dropout, ends=ends, top_k=config.occupancy.top_k,
    )  # fmt: skip
    with seeded(torch.device("cpu"), step_seed(config.seed, 1 << 43)):
        model = OccupancyTransformer(occupancy)
        head = None
        if size.head_members:
            head = ValueHead(size.width, occupancy.feature_dim, size.head_hidden, size.head_members)
    # drawn on the CPU, so that one seed starts from the same weights on every device
    model.warm_start(quantizer.code_vectors().cpu(), torch.Generator().manual_seed(step_seed(config.seed, 1 << 44)))
    if start is not None:
        start_from(model, start)
    device = device_of(quantizer)
    return model.to(device), None if head is None else head.to(device)
