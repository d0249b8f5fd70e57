"""Several processes that train as one: under torchrun, one to a GPU or a core, on one machine or many.

    torchrun --nproc-per-node 2 --no-python voc-rl train --data data --out runs/mine
    torchrun --nproc-per-node 2 script.py        # calls join(device), then voc_rl.train(...) as always

Every process draws the same random numbers for the whole batch, computes its own share of the rows, and gets the mean
gradient of all: the same loss and the same weights as one process with that batch, but for rounding (and dropout, which
each draws for its own rows). Prepared batches are whole in every process, so a checkpoint, which the first process
writes, can be gone on from by another number of processes.

Processes can also share pieces of work that have nothing to do with each other (``dealt``); inside one, each is
``alone``.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voc_rl.errors import VOCError

PATIENCE = timedelta(minutes=10)  # how long a process waits for the others
_alone = False
_deals = itertools.count()
_store: dist.Store | None = None  # where those that joined count what is dealt


@dataclass(frozen=True)
class Ranks:
    """This process among all: ``rank`` of ``size``. The first one writes files and logs."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def equal_share(self, count: int) -> slice:
        """The rows of a batch of ``count`` that are this process's.

        Raises:
            VOCError: a batch that the number of processes does not divide.
        """
        if count % self.size:
            raise VOCError(f"A batch of {count} rows cannot be shared by {self.size} processes; a multiple is needed.")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, count: int) -> slice:
        """The rows of any number of rows that are this process's; those of the last ones may be fewer, or none."""
        each = -(-count // self.size)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))


def ranks() -> Ranks:
    """This process among those that ``join`` found; by itself where it was not called, and inside ``alone``."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works by itself, whoever joined it: it trains, averages and writes as if it were the only
    one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def join(device: torch.device, patience: timedelta = PATIENCE) -> torch.device:
    """Find the other processes that torchrun started, if it did; returns this process's own device.

    ``patience``: how long one waits for the others. One that is lost is noticed at once, unless its machine is, too.

    Raises:
        VOCError: fewer GPUs on this machine than processes.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return device
    if device.type == "cuda":
        local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= found:
            raise VOCError(
                f"torchrun started more processes here than there are GPUs ({found}); one for each is needed."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    global _store
    # now, because the defaults of its functions are the group that is there when it is imported, as optimisers do later
    importlib.import_module("torch.distributed.nn")
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))  # the store that PyTorch makes is its own
    store.set_timeout(patience)
    backend, kept = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=kept, rank=rank, world_size=size, timeout=patience)
    _store = dist.PrefixStore("deals", store)
    atexit.register(_leave)
    return device


def _leave() -> None:
    """End the group's threads while the interpreter is whole: one that lets go of a message later aborts the process.

    They end with the last reference to the group, so nothing else may keep it.
    """
    global _store
    _store = None
    if dist.is_initialized():  # a script may have done so itself
        dist.destroy_process_group()


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by their means over all processes, in place."""
    found = [tensor for tensor in tensors if tensor.is_floating_point()]
    size = ranks().size
    if size == 1 or not found:
        return
    flat = torch.cat([tensor.flatten().float() for tensor in found])
    with _others():
        dist.all_reduce(flat)
    for tensor, mean in zip(found, flat.div_(size).split([tensor.numel() for tensor in found]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter], numbers: Iterable[Tensor] = ()) -> None:
    """The mean gradient, and the means of detached ``numbers``, over all processes, in place; one message."""
    average([*(p.grad for p in parameters if p.grad is not None), *numbers])


def gather(own: Tensor, count: int) -> Tensor:
    """The rows (count, ...) whose ``Ranks.share`` each process has in ``own``."""
    size = ranks().size
    if size == 1:
        return own
    padded = own.new_zeros(-(-count // size), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(size)]
    if padded.numel():
        with _others():  # as bytes, because not every type can be sent
            dist.all_gather([part.view(torch.uint8) for part in parts], padded.view(torch.uint8))
    return torch.cat(parts)[:count]


def meet() -> None:
    """Wait until all processes are here."""
    average([torch.zeros(1)])


def dealt(count: int) -> Iterator[int]:
    """The numbers below ``count``, in order, each for one process: whoever asks first. All processes have to ask.

    Those that found each other without ``join`` get them in turn.
    """
    own, store = ranks(), _store
    if own.size == 1 or store is None:
        yield from range(own.rank, count, own.size)
        return
    deal = str(next(_deals))
    while True:
        with _others():
            number = store.add(deal, 1) - 1
        if number >= count:
            return
        yield number


def agreed(answer: bool) -> bool:
    """The first process's answer, for all of them; they wait for each other here."""
    if ranks().size == 1:
        return answer
    word = torch.tensor([int(answer)])
    with _others():
        dist.broadcast(word, 0)
    return bool(word.item())


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and nccl have no other class for it
        traceback.clear_frames(error.__traceback__)  # which hold the group for as long as somebody has the error
        raise VOCError(
            "Another process of this run was lost, or did not answer; start all of them again: the same command goes "
            "on from the last checkpoint."
        ) from error
