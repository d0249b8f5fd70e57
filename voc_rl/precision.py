"""How numbers are computed: bfloat16 where it pays, and memory that is kept rather than given back."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

import torch

SMALL_BATCH = 8


def autocast(rows: int | None = None) -> torch.autocast:
    """Matrix products in bfloat16 where the processor is fast at it, everything else in float32.

    A batch of at most ``SMALL_BATCH`` rows stays in float32: for a few rows, casting the weights takes longer than
    multiplying by them.
    """
    enabled = has_bfloat16() and (rows is None or rows > SMALL_BATCH)
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 (x86 with AMX or AVX-512 BF16).

    One that does not emulates it: products were measured 3 to 8 times slower than in float32 on one with AVX2 alone,
    where a training step took a minute instead of a fraction of a second.
    """
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def free_cores(most: int = 4) -> int:
    """How many threads the arithmetic should use: the cores that others leave free now, at most ``most``.

    More threads than free cores wait for each other: under load, two were measured up to 30 times slower than one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(min(cores - busy, most), 1)


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks instead of returning them to the system.

    Training allocates and frees the same tens of megabytes at every step; fresh pages cost up to 30 times the
    arithmetic on them (20-35 ms against 1 ms for a cast of 4 million pixels). Called once by the command line before
    it trains. No effect outside glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 1 << 26)):
        mallopt(option, value)
