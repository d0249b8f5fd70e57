"""A training step's loss and gradients as one CUDA graph.

Of a small network's step a GPU spends most of its time waiting for the next of some hundred kernels. A graph launches
them all at once. What is captured reads its inputs and the weights where they lie and adds to the gradients where they
lie, so nothing in it may depend on anything else: no number that Python made for this step, no copy from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from voc_rl.precision import current

WARM_UP = 3  # calls before the capture, in which libraries choose kernels and take their memory
_CAPTURING = Lock()


class Inputs(Protocol):
    """The tensors that a loss is a function of, beside weights; rows of a batch come first in each."""

    def __len__(self) -> int: ...
    def __getitem__(self, some: slice) -> Self: ...
    def tensors(self) -> list[Tensor]: ...
    def copy(self) -> Self: ...


T = TypeVar("T", bound=Inputs)


def add_gradients(
    loss_of: Callable[[T], tuple[Tensor, dict[str, Tensor]]], inputs: T, scale: float
) -> dict[str, Tensor]:
    """Add the gradients of ``scale`` times the loss to those of the parameters; returns the numbers, the loss too."""
    loss, numbers = loss_of(inputs)
    (loss if scale == 1.0 else loss * scale).backward()
    return {"loss": loss.detach(), **numbers}


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Inside of it, what ``device``, the current one, is asked to do becomes ``graph``. One thread captures at a time;
    others may work meanwhile."""
    with _CAPTURING:
        before = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, stream=_capture_stream(device), capture_error_mode="thread_local"):
                yield
        finally:
            torch.cuda.set_stream(before)  # where capturing fails, PyTorch can leave the thread on the other one


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """PyTorch's own is on whichever GPU the first capture of the process was on."""
    return torch.cuda.Stream(device)


class StepGraph(Generic[T]):
    """``add_gradients`` of one loss as a CUDA graph; inputs of later calls have the shapes of the first ones."""

    def __init__(
        self,
        loss_of: Callable[[T], tuple[Tensor, dict[str, Tensor]]],
        parameters: list[nn.Parameter],
        inputs: T,
        scale: float,
    ) -> None:
        """Captures; gradients are zero afterwards.

        Raises:
            RuntimeError: something in the loss cannot be captured.
        """
        self.inputs, self.device = inputs.copy(), parameters[0].device
        with current(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    add_gradients(loss_of, self.inputs, scale)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with capture(self.graph, self.device):
                self.numbers = add_gradients(loss_of, self.inputs, scale)
        self.gradients = [(p, p.grad) for p in parameters if p.grad is not None]  # the graph writes to these alone
        torch._foreach_zero_([grad for _, grad in self.gradients])

    def __call__(self, inputs: T) -> dict[str, Tensor]:
        """Add the gradients of ``inputs``; returns the numbers. Gradients that were replaced, or taken away, are put
        back where the graph knows them."""
        for parameter, grad in self.gradients:
            if parameter.grad is not grad:
                parameter.grad = grad.zero_() if parameter.grad is None else grad.copy_(parameter.grad)
        for own, new in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            own.copy_(new)
        with current(self.device):
            self.graph.replay()
        return {name: number.clone() for name, number in self.numbers.items()}
