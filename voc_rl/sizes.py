"""Two independent words: sizes (how large the networks are, how long they train) and recipes (how they train)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any, Literal

from voc_rl.errors import VOCError, check_choice
from voc_rl.joint import JointTraining
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining
from voc_rl.quantizers import DINOConfig, VQGANConfig
from voc_rl.quantizers.registry import known_quantizer
from voc_rl.training import NetworkSize, VOCConfig

_PAPER_LOOP = LoopConfig(steps=100_000, batch_size=64, learning_rate=3e-4, weight_decay=0.1)

# tiny: minutes on two CPU cores. small: 16 tokens and eight times the network, for hours on a CPU or minutes on a GPU.
# paper: the network that the public code really had, and its number of steps; for GPUs.
SIZES = {
    "tiny": VOCConfig(),
    "small": VOCConfig(
        quantizer_config={"n_tokens": 16, "components": 128, "hidden": 1024, "conv_width": 32},
        quantizer_training=LoopConfig(steps=5000, batch_size=256, learning_rate=1e-3),
        network=NetworkSize(n_layer=4, n_head=8, width=256, head_hidden=256),
        occupancy=OccupancyTraining(
            loop=LoopConfig(steps=20000, batch_size=256, learning_rate=1e-3, weight_decay=0.05)
        ),
    ),
    "paper": VOCConfig(
        quantizer_config={"n_tokens": 16, "components": 128, "hidden": 1024, "conv_width": 32},
        quantizer_training=LoopConfig(steps=50_000, batch_size=64, learning_rate=3e-4),
        network=NetworkSize(n_layer=4, n_head=8, width=768, head_hidden=256),
        occupancy=OccupancyTraining(loop=_PAPER_LOOP),
    ),
}

# A code for every patch of every frame is too many for the minutes of size tiny: what a token costs grows with their
# number. So patches are large (9 to a frame, 27 tokens), and the occupancy network sees half as many contexts a step.
_PATCHES_LOOP = LoopConfig(steps=450, batch_size=64, learning_rate=3e-3, weight_decay=0.05)
_PATCHES = replace(SIZES["tiny"], occupancy=OccupancyTraining(loop=_PATCHES_LOOP))
_TINY = {
    "dino": replace(
        _PATCHES,
        quantizer_config=asdict(DINOConfig.small(patch=28, teacher_steps=100)),
        quantizer_training=LoopConfig(steps=200, batch_size=128, learning_rate=1.5e-3),
    ),
    "vqgan": replace(
        _PATCHES,
        quantizer_config=asdict(VQGANConfig.small(side=48)),
        quantizer_training=LoopConfig(steps=150, batch_size=64, learning_rate=1e-3),
    ),
}
_SMALL = {
    "dino": replace(SIZES["small"], quantizer_config=asdict(DINOConfig.small())),
    "vqgan": replace(SIZES["small"], quantizer_config=asdict(VQGANConfig.small())),
}
# vqgan: 75 tokens of 1024 codes; dino: 392 of 8192 in the paper's stacks of 2, and 588 in stacks of 3
_PAPER = {
    "vqgan": replace(SIZES["paper"], quantizer_config={}),
    "dino": replace(SIZES["paper"], quantizer_config={}, network=replace(SIZES["paper"].network, n_head=4)),
}


_TOKENS_OF_STACKS = ("vqvae", "musik")  # whose config is that of ``SIZES``


def sized(
    size: str,
    quantizer: str = "vqvae",
    *,
    gamma: float | None = None,
    gammas: tuple[float, float] | None = None,
    n: int | None = None,
    steps: int | None = None,
    quantizer_steps: int | None = None,
    reward_steps: int | None = None,
    seed: int | None = None,
) -> VOCConfig:
    """The config of a size, with another quantizer than the small VQ-VAE where one is named.

    Args:
        gamma, gammas, n: see ``OccupancyTraining``. steps, quantizer_steps, reward_steps: optimiser steps of the
            occupancy network, the quantizer and each of the reward head's two networks; learning rates, batches and
            weight decay stay the size's. seed: of the training. None: as the size has it.

    The quantizers of patches, whose own defaults are the published sizes, have 27 tokens at size ``tiny``; at
    ``small`` dino has 147 and vqgan 75. At ``paper`` these two are the published ones. A quantizer of one's own has the
    defaults of its config.

    Raises:
        VOCError: an unknown size or quantizer, or a number that means nothing.
    """
    config = SIZES[check_choice(size, SIZES, "size")]
    known_quantizer(quantizer)
    own = {"tiny": _TINY, "small": _SMALL, "paper": _PAPER}[size]
    if quantizer not in (*own, *_TOKENS_OF_STACKS):
        config = replace(config, quantizer_config={})
    config = replace(own.get(quantizer, config), quantizer=quantizer)
    asked: dict[str, Any] = {"gamma": gamma, "gammas": gammas, "n": n}
    occupancy = replace(config.occupancy, **{name: value for name, value in asked.items() if value is not None})
    return replace(
        config,
        quantizer_config=deepcopy(config.quantizer_config),  # else whoever changes it changes the size
        quantizer_training=_of_steps(config.quantizer_training, quantizer_steps),
        occupancy=replace(occupancy, loop=_of_steps(occupancy.loop, steps)),
        reward=replace(config.reward, loop=_of_steps(config.reward.loop, reward_steps)),
        seed=config.seed if seed is None else seed,
    )


def _of_steps(loop: LoopConfig, steps: int | None) -> LoopConfig:
    return loop if steps is None else replace(loop, steps=steps)


Recipe = Literal["paper", "voc"]
RECIPES: tuple[Recipe, ...] = ("paper", "voc")


def with_recipe(config: VOCConfig, recipe: Recipe) -> VOCConfig:
    """A config trained and sampled as ``voc`` (it stays as it is) or as the ``paper``'s public code ran, at its size.

    The paper: one-step targets, one per context; a target network that averages with decay .9 and keeps its dropout;
    the 50 likeliest codes sampled, in targets and in values; loss on the context's codes too; codes alone as context;
    no value head; AdamW 3e-4 with weight decay .1, no clipping, gradients of two batches of 32 summed (which Adam
    takes as one batch of 64); dropout .2, in attention .1. In joint training the network reads the codes of the moving
    quantizer itself, from the first step.

    One difference is left: the public code keeps dropout on while it samples values too, ours samples them without. So
    this baseline is a little stronger than what was published.

    Raises:
        VOCError: another recipe, or ``paper`` for a config of longer targets.
    """
    check_choice(recipe, RECIPES, "recipe")
    if recipe == "voc":
        return config
    if config.occupancy.n not in (None, 1):
        raise VOCError(f"n is {config.occupancy.n}, but the recipe paper has one-step targets; leave n out.")
    loop = replace(
        config.occupancy.loop, batch_size=64, learning_rate=3e-4, weight_decay=0.1, warmup=0.05, betas=(0.9, 0.999),
        clip=1e9,
    )  # fmt: skip
    occupancy = replace(
        config.occupancy, n=1, futures=1, ema=0.9, feature_dropout=0.0, feature_noise=0.0, refill=1,
        context_loss=True, target_dropout=True, top_k=50, loop=loop,
    )  # fmt: skip
    network = replace(config.network, dropout=0.2, attention_dropout=0.1, features=False, head_members=0)
    joint = None if config.joint is None else JointTraining(warmup=0.0, decay=0.0)
    return replace(config, occupancy=occupancy, network=network, joint=joint)
