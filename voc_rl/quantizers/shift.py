"""Random shifts of pictures, an augmentation for training from pixels (DrQ-v2: Yarats et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from voc_rl.errors import check_at_least


def random_shift(obs: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """uint8 (B, C, H, W) -> the same shape: every row moved by its own whole number of pixels, -pad..pad each way.

    All channels of a row, so all frames of a stack, move together: what changes between them is still only what
    moved. Pixels are copied, never blended; the border repeats where the picture was moved away from it.

    Raises:
        VOCError: ``pad`` below zero.
    """
    return shifted(obs, random_moves(len(obs), pad, generator))


def random_moves(rows: int, pad: int, generator: torch.Generator) -> Tensor:
    """int64 (2, rows, 1), uniform in -pad..pad: how far down and to the right each row is moved.

    Raises:
        VOCError: ``pad`` below zero.
    """
    check_at_least(pad, 0, "pad")
    return torch.randint(-pad, pad + 1, (2, rows, 1), generator=generator, device=generator.device)


def shifted(obs: Tensor, moves: Tensor) -> Tensor:
    """uint8 (B, C, H, W), every row moved by its own of int64 (2, B, 1): ``random_shift`` of known ``moves``."""
    height, width = obs.shape[-2:]
    down, right = moves.to(obs.device)
    rows = (torch.arange(height, device=obs.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=obs.device) + right).clamp(0, width - 1)
    # where each pixel comes from, in the picture laid out flat: one gather is the fastest way on a CPU
    source = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    return obs.flatten(2).gather(2, source[:, None].expand(-1, obs.shape[1], -1)).reshape(obs.shape)
