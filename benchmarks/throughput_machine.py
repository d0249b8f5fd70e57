"""What a machine can do, measured, and what the occupancy network asks of it, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from voc_rl.occupancy import OccupancyConfig
from voc_rl.precision import has_bfloat16


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of ``work``, to its end on the device."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": float(np.median(values)), "lowest": float(min(values)), "highest": float(max(values))}


def fastest(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """The shortest of some repeats, after one that is not counted."""
    work()
    return min(seconds(work, device) for _ in range(repeats))


def rates(device: torch.device) -> dict[str, float]:
    """Both rates of a device, at the present number of threads."""
    return {"matmul_flops": matmul_rate(device), "copy_bytes": copy_rate(device)}


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether sampling does, on this device."""
    return device.type == "cuda" or has_bfloat16()


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second of matrix products, in the precision that sampling uses: the best of a square
    one and of the paper's widest layer on 3200 sequences."""
    dtype = torch.bfloat16 if multiplies_in_bfloat16(device) else torch.float32
    side = 8192 if device.type == "cuda" else 1536
    rates = []
    for m, k, n in ((side, side, side), (3200, 768, 3072)):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        rates.append(2.0 * m * k * n / fastest(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return max(rates)


def copy_rate(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written ones."""
    count = 2**31 if device.type == "cuda" else 2**28
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    return 2.0 * count / fastest(lambda: goal.copy_(source), device)


def matrix_weights(config: OccupancyConfig) -> int:
    """Weights that every token is multiplied by."""
    return config.n_layer * 12 * config.width**2 + config.width * (config.codebook_size + 1)


def sampling_flops(config: OccupancyConfig, states: int, samples: int) -> float:
    """Operations of ``samples`` futures of ``states`` contexts: each context, then all but the first code of a future.

    Two per weight and token, and 4 x width per layer for each place that a token attends to.
    """
    n = config.n_tokens
    context = states * n * (2.0 * matrix_weights(config) + 4.0 * config.n_layer * config.width * (n + 1) / 2)
    steps = states * samples * (n - 1)
    return context + steps * (2.0 * matrix_weights(config) + 4.0 * config.n_layer * config.width * (n + n / 2))


def sampling_bytes(config: OccupancyConfig, states: int, samples: int) -> float:
    """Bytes that have to be read: at every step all weights, all contexts' keys and values (once per state, not per
    sample), and each future's own earlier ones. Activations are left out: they can stay in caches."""
    n, steps, element = config.n_tokens, config.n_tokens - 1, 2  # bytes of a bfloat16
    pair = 2 * config.n_layer * config.width * element  # key and value of one place
    own = states * samples * pair * steps * n / 2
    return steps * (matrix_weights(config) * element + states * n * pair) + own


def training_flops(config: OccupancyConfig, batch: int, bootstrapped: float) -> float:
    """Operations of a training step with one target per context, a share of them sampled: forward, and twice as much
    backward, over context and target."""
    n = config.n_tokens
    tokens = 2.0 * matrix_weights(config) + 4.0 * config.n_layer * config.width * n
    return 3 * batch * 2 * n * tokens + sampling_flops(config, 1, 1) * batch * bootstrapped
