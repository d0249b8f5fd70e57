"""Where and how numbers are computed: the device, bfloat16 where it pays, memory that is kept rather than given back.

One convention for the device, everywhere: the networks decide. Whoever makes a network moves it (``module.to``); all
code that works with it asks ``device_of`` it and brings its inputs there. Codes and features of a dataset are moved
once, rows (numpy) per batch. Random numbers are drawn where their generator lives
(``device=generator.device``) and then moved, so a generator of the CPU serves any network; ``generator_on`` makes one
that lives beside it. Tensors come back where the network is, values as numpy. Nothing calls ``.cuda()`` by itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from voc_rl.errors import VOCError, check_choice

SMALL_BATCH = 8
SMALL_NETWORK = 1 << 16  # parameters
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in so many


DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32")


def choose_device(name: str = "auto") -> torch.device:
    """The device of a word: ``cpu``, ``cuda``, or ``auto``, a GPU where there is one.

    Raises:
        VOCError: another word, or ``cuda`` where PyTorch finds no GPU.
    """
    check_choice(name, DEVICES, "device")
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise VOCError("device is 'cuda', but PyTorch finds no GPU here; use 'cpu', or 'auto' for whatever is there.")
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def as_device(device: torch.device | str | None) -> torch.device | None:
    """A device: PyTorch's, the name of one (``cuda:1``), or a word of ``choose_device``; None stays None.

    Raises:
        VOCError: a text that names none, another type, or a device that is not there.
    """
    if device is None:
        return None
    if isinstance(device, str) and device in DEVICES:
        return choose_device(device)
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):  # the latter of another type, as a dtype
        raise VOCError(f"device is {device!r}; 'auto', 'cpu', 'cuda' or a name like 'cuda:1' is needed.") from None
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise VOCError(
            f"device is '{device}', but PyTorch finds {count} GPU(s) here; use 'auto' for whatever is there."
        )
    if found.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError):
            raise VOCError(
                f"device is '{device}', which PyTorch cannot use here; use 'auto', 'cpu' or 'cuda'."
            ) from None
    return found


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    count, chosen = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(count)] if chosen is None else chosen.split(",")[:count]


def take_gpu(taken: Synchronized[int], gpus: Sequence[str]) -> None:
    """Let this process, which has used no GPU yet, see a single one: the next of ``gpus``, round and round.

    ``taken``: how many processes took one before.
    """
    with taken.get_lock():
        place = taken.value
        taken.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


def device_name(device: torch.device) -> str:
    """What a device is called: ``cpu``, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_of(module: Any) -> torch.device:
    """Where a module's parameters are, or its buffers where it has none; the CPU where it has neither."""
    found = next(iter(module.parameters()), None)
    if found is None:
        found = next(iter(module.buffers()), None)
    return torch.device("cpu") if found is None else found.device


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both are one: ``cuda`` without a number is the current GPU."""
    return torch.empty(0, device=one).device == torch.empty(0, device=other).device


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """Random numbers of a seed, drawn on a device."""
    return torch.Generator(device).manual_seed(seed)


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """An array as a tensor: also one with negative strides, which PyTorch does not take, or a read-only one."""
    return torch.as_tensor(np.require(array, requirements=("C", "W")) if isinstance(array, np.ndarray) else array)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device. A GPU is not waited for: the copy is made from memory that the system cannot move."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def current(device: torch.device) -> AbstractContextManager[Any]:
    """A GPU as the current one, on which CUDA's streams, graphs and kernels of our own are; nothing on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """PyTorch's global random numbers from a seed, and afterwards as they were: for what knows no generator.

    Those of the CPU and of ``device``; of other devices, which ``torch.manual_seed`` would seed too, none.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with current(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def single_precision() -> Iterator[None]:
    """What is made without a word of its type is float32, whatever ``torch.set_default_dtype`` said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def precision() -> str:
    """What the environment variable VOC_RL_PRECISION says: ``float32``, or ``auto`` (as where it says nothing), which
    is bfloat16 for matrix products where the device is fast at it.

    Raises:
        VOCError: another word.
    """
    return check_choice(os.environ.get("VOC_RL_PRECISION", "auto"), PRECISIONS, "VOC_RL_PRECISION")


def autocast(network: nn.Module, rows: int | None = None) -> torch.autocast:
    """Matrix products of a network in bfloat16 where ``precision`` lets them be and its device is fast at it, the rest
    in float32.

    On a CPU, a batch of at most ``SMALL_BATCH`` rows and a network of fewer than ``SMALL_NETWORK`` parameters stay in
    float32: casting takes longer than multiplying (a training step of such networks 3 to 50 % longer).
    """
    device = device_of(network)
    if precision() == "float32":
        return float32(device)
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.get_device_capability(device)[0] >= 8)
    enabled = has_bfloat16() and (rows is None or rows > SMALL_BATCH) and not _small(network)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _small(network: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in network.parameters() if not is_lazy(parameter)) < SMALL_NETWORK


def float32(device: torch.device) -> torch.autocast:
    """No bfloat16, inside of ``autocast`` too: where digits count."""
    return torch.autocast(device.type, enabled=False)


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 (x86 with AMX or AVX-512 BF16).

    One that does not emulates it: products were measured 3 to 8 times slower than in float32 on one with AVX2 alone,
    where a training step took a minute instead of a fraction of a second.
    """
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def free_cores() -> int:
    """How many threads the arithmetic should use: what OMP_NUM_THREADS says, else the cores that others leave free now,
    shared with the processes that torchrun started here beside this one, at most four.

    More threads than free cores wait for each other: under load, two were measured up to 30 times slower than one.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()  # PyTorch reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    free = min(cores - busy, _quota()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(min(free, 4), 1)


def _quota() -> int:
    """How many cores' time a container may use, where it is limited to some (control groups, version 2)."""
    given, period = QUOTA.read_text().split() if QUOTA.exists() else ("max", "100000")
    return sys.maxsize if given == "max" else max(int(given) // int(period), 1)


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
