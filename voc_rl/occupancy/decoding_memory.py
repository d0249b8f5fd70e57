"""How much is decoded at once: numbers of contexts that share a decoder, and the bytes that they take."""

from __future__ import annotations

import math

import torch

from voc_rl.occupancy.contexts import OccupancyConfig
from voc_rl.occupancy.kernels import TorchKernels

FEW = 512  # futures


def room(states: int, samples: int) -> int:
    """How many contexts a decoder for ``states`` of them has room for, so that numbers that are nearly alike share one.

    Where futures are few (``FEW``), more of them cost a GPU nothing: the next power of two. Training draws another
    number of targets at each refill, and making a decoder and its graph takes longer than using it. Where they are
    many, at most an eighth more.
    """
    above = 2 ** (states - 1).bit_length()
    if above * samples <= FEW:
        return above
    step = max(2 ** (states.bit_length() - 1) // 8, 1)
    return math.ceil(states / step) * step


def fitting(most: int, samples: int) -> int:
    """The largest number of contexts whose decoder has ``room`` for at most ``most``."""
    below = 2 ** (most.bit_length() - 1)
    if 2 * below * samples <= FEW:
        return below
    step = max(below // 8, 1)
    return most // step * step


def default_memory(device: torch.device) -> int:
    """Bytes that sampling may take: a quarter of a GPU's, or 2 GiB of the host's."""
    return torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 1 << 31


def bytes_of_state(config: OccupancyConfig, samples: int, dtype: torch.dtype) -> int:
    """About what sampling ``samples`` futures of one state takes at most, in products of ``dtype``, weights aside.

    First its context is read: queries, keys and values of all blocks are there, and what one block works on. Then
    futures are written: keys and values of the context are there twice, and for each future its own, filled up to
    ``TorchKernels.block`` places, and what a step works on: attention, the wide layer, or the choice of a code.
    """
    size, width, heads, layers, n = dtype.itemsize, config.width, config.n_head, config.n_layer, config.n_tokens
    reading = max(width * (14 + 8 * size), width * (8 + 6 * size) + heads * n * (8 + 2 * size))
    block = TorchKernels.block or 1
    own = -(-n // block) * block
    attending = heads * (n + own) * (4 + 4 * size) + 9 * width * size
    choosing = config.codebook_size * (18 if config.top_k else 14)
    step = 8 * width + max(attending, 18 * width * size, choosing)
    written = 2 * layers * own * width * size + 32 * n
    kept = layers * n * width * size
    return max(3 * kept + n * reading, 5 * kept + 16 * width + samples * (written + step))
