"""What the paper's published files have in common: how they are read, and what frames they expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from voc_rl.checkpoints import load_torch_file
from voc_rl.errors import VOCError, check_observations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_KEYS = ("state_dict", "model")  # under which published files hold their tensors


def published_frames(obs: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, side, side), as the paper's public code prepared frames.

    The nearest pixel at the new size, then x / 255 - mean / std with ImageNet's numbers. The division was meant for the
    whole difference; the published files were tuned and used on frames without those brackets, so they get them so.

    Raises:
        VOCError: another dtype, or another number of channels.
    """
    check_observations(obs, (3, *obs.shape[2:]))
    return F.interpolate(obs.float(), size=side) / 255 - _shift(obs.device)


def levels_of_published(pictures: Tensor) -> Tensor:
    """float (B, 3, H, W), as ``published_frames`` prepares them -> uint8 (B, 3, H, W), of the same size."""
    return ((pictures + _shift(pictures.device)) * 255).round().clamp(0, 255).to(torch.uint8)


def _shift(device: torch.device) -> Tensor:
    mean, std = (torch.tensor(n, dtype=torch.float32, device=device) for n in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean / std)[:, None, None]


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a published torch file, bare or under one of ``_KEYS``; nothing in it is executed.

    Raises:
        VOCError: a missing, damaged or refused file, or one that holds something else.
    """
    loaded = load_torch_file(Path(path), "published file")
    for key in _KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    named = isinstance(loaded, Mapping) and loaded and all(isinstance(name, str) for name in loaded)
    if not named or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise VOCError(
            f"{path} holds no state dict; names and tensors, bare or under {' or '.join(_KEYS)}, are needed."
        )
    return dict(loaded)
