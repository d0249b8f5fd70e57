"""Writing futures code by code, with shapes that never change: weights cast once, buffers allocated once.

A ``Decoder`` is made for one network and one number of states and samples. Its steps are a few large operations: a
product for queries, keys and values, attention over the shared context and each future's own codes, the products after
it, and the choice of the next code. On a CPU they are PyTorch's; on a GPU attention, norms and the choice are one
kernel each (``decoding_triton``), and from the second call on, the decoding of a whole frame is one CUDA graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from voc_rl.graphs import capture
from voc_rl.occupancy.contexts import Prefix
from voc_rl.occupancy.decoding_memory import bytes_of_state, default_memory, room
from voc_rl.occupancy.kernels import Kernels, TorchKernels, sample_codes
from voc_rl.occupancy.transformer import OccupancyTransformer
from voc_rl.precision import current


@dataclass(frozen=True)
class Layer:
    """A block's weights: matrices (inputs, outputs) and biases in the decoder's precision; norms in float32."""

    norm_1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    norm_2: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class Decoder:
    """Futures of ``states`` contexts, ``samples`` of each, by one network; those who share it take turns.

    Attributes:
        dtype: of the products. states, samples: as given. bytes: about what it takes while it works.
    """

    @torch.inference_mode(False)  # buffers that were made inside of it could not be written to outside
    def __init__(
        self, model: OccupancyTransformer, states: int, samples: int, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        config, weight = model.config, model.codes.weight
        self.states, self.samples, self.dtype, self.kernels = states, samples, dtype, kernels
        self.config, self.bytes = config, states * bytes_of_state(config, samples, dtype)
        self._parameters = list(model.parameters())
        self._pairs: list[tuple[Tensor, Tensor]] = []  # copies, and the parameters themselves: their data may move
        self.layers = [self._layer(block) for block in model.blocks]
        self.norm = self._kept(model.norm.weight, torch.float32), self._kept(model.norm.bias, torch.float32)
        self.codes = self._kept(weight, torch.float32)
        self.positions = self._kept(model.positions.weight, torch.float32)
        # rows are filled up: products are slow where a row does not start at a multiple of 16 bytes
        self.head = weight.new_zeros(math.ceil(len(weight) / 64) * 64, config.width, dtype=dtype)
        self._pairs.append((self.head[: len(weight)], weight))
        shape = (states, config.n_head, config.n_tokens, config.width // config.n_head)
        block = kernels.block or config.n_tokens
        own = (-(-config.n_tokens // block), states * samples, config.n_head, block, shape[-1])
        self.context = [
            (weight.new_zeros(shape, dtype=dtype), weight.new_zeros(shape, dtype=dtype)) for _ in self.layers
        ]
        self.cache = [(weight.new_zeros(own, dtype=dtype), weight.new_zeros(own, dtype=dtype)) for _ in self.layers]
        self.last = weight.new_zeros(states, config.width)
        self.noise = weight.new_zeros(config.n_tokens, states, samples)
        self.futures = torch.zeros(config.n_tokens, states * samples, dtype=torch.long, device=weight.device)
        self._lock, self._calls = Lock(), 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captures = weight.is_cuda
        self._done = torch.cuda.Event() if weight.is_cuda else None  # what it was asked for last, on whichever stream
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(weight.device))

    def _kept(self, parameter: Tensor, dtype: torch.dtype, turn: bool = False) -> Tensor:
        """A copy that every call renews, which a graph needs; ``turn``: seen as (inputs, outputs)."""
        if parameter.dtype == dtype and not parameter.is_cuda:
            return parameter.detach().T if turn else parameter.detach()
        copy = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        self._pairs.append((copy, parameter))
        return copy.T if turn else copy

    def _layer(self, block: Any) -> Layer:
        def linear(module: Any, bias: torch.dtype) -> tuple[Tensor, Tensor]:
            return self._kept(module.weight, self.dtype, turn=True), self._kept(module.bias, bias)

        def norm(module: Any) -> tuple[Tensor, Tensor]:
            return self._kept(module.weight, torch.float32), self._kept(module.bias, torch.float32)

        return Layer(
            norm(block.norm_1), linear(block.attention.qkv, self.dtype), linear(block.attention.out, torch.float32),
            norm(block.norm_2), linear(block.mlp[0], self.dtype), linear(block.mlp[2], torch.float32),
        )  # fmt: skip

    def fits(self, model: OccupancyTransformer) -> bool:
        """Whether the network still has the parameters that it had, which may have moved; they can be replaced."""
        own, now = self._parameters, list(model.parameters())
        return len(own) == len(now) and all(one is other for one, other in zip(own, now, strict=True))

    def finish(self) -> None:
        """Wait until its memory may be given to others."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time, and of a GPU one stream after another: they write to the same buffers."""
        with self._lock, current(self.last.device):
            if self._done is not None:
                self._done.wait()
            try:
                yield
            finally:
                if self._done is not None:
                    self._done.record()

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """Codes int64 (B, samples, n_tokens) for contexts already read, B at most ``states``; ``noise`` float
        (n_tokens, B, samples)."""
        count = len(prefix)
        with self._turn(), torch.autocast(self.last.device.type, enabled=False):
            torch._foreach_copy_([copy for copy, _ in self._pairs], [own.detach() for _, own in self._pairs])
            for (keys, values), k, v in zip(self.context, prefix.keys, prefix.values, strict=True):
                keys[:count].copy_(k)
                values[:count].copy_(v)
            self.last[:count].copy_(prefix.last)
            self.noise[:, :count].copy_(noise)
            self._run()
            return self.futures.view(-1, self.states, self.samples)[:, :count].permute(1, 2, 0).clone()

    def _run(self) -> None:
        """Write all futures; on a GPU as a graph, from the second call on, where one can be captured."""
        self._calls += 1
        if self._captures and self._calls == 2:
            self._graph = self._captured()
        if self._graph is None:
            self._write()
        else:
            self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with capture(graph, self.last.device):
                self._write()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"No CUDA graph of sampling ({reason}); it runs slower without.", stacklevel=2)
            return None
        return graph

    def _write(self) -> None:
        config = self.config
        logits = (self.last.to(self.dtype) @ self.head.T).float()
        # END is a whole sequence: decided by its first code, where there is one
        logits = logits[:, None, : config.codebook_size + config.ends]
        first = sample_codes(logits, self.noise[0, :, None], config.top_k)
        self.futures[0].copy_(first.flatten())
        for place in range(1, config.n_tokens):
            last = self.futures[place - 1]
            logits = self._hidden(last, place - 1) @ self.head.T
            noise = self.noise[place].view(-1)
            if config.top_k is None:
                code = self.kernels.choose(logits, config.codebook_size, noise, last)
            else:
                code = sample_codes(logits[:, : config.codebook_size].float(), noise[:, None], config.top_k)[:, 0]
                code = torch.where(last == config.end_code, last, code)
            self.futures[place].copy_(code)

    def _hidden(self, last: Tensor, place: int) -> Tensor:
        """Output (N, C) after codes ``last`` (N,), the ``place``-th of each future."""
        kernels, layers = self.kernels, self.layers
        x = F.embedding(last, self.codes).add_(self.positions[self.config.n_tokens + place])
        normed = F.layer_norm(x, x.shape[-1:], *layers[0].norm_1).to(self.dtype)
        for i, layer in enumerate(layers):
            qkv = torch.addmm(layer.qkv[1], normed, layer.qkv[0])
            attended = kernels.attend(qkv, *self.context[i], self.cache[i], place)
            normed = kernels.add_norm(x, attended @ layer.out[0], layer.out[1], layer.norm_2)
            wide = kernels.widen(normed, *layer.up)
            after = layers[i + 1].norm_1 if i + 1 < len(layers) else self.norm
            normed = kernels.add_norm(x, wide @ layer.down[0], layer.down[1], after)
        return normed


Key = tuple[int, int, torch.dtype, torch.device]
# the decoders of networks on GPUs, which hold a graph each; networks and decoders that were used last come last
_DECODERS: WeakKeyDictionary[OccupancyTransformer, dict[Key, Decoder]] = WeakKeyDictionary()
_LOCK = Lock()
KEPT = 6  # decoders of a network


def decoder(model: OccupancyTransformer, states: int, samples: int, dtype: torch.dtype) -> Decoder:
    """A decoder for at least ``states`` contexts; on a GPU a kept one where there is one (``room``)."""
    if not model.codes.weight.is_cuda:
        forget(model)
        return Decoder(model, states, samples, dtype, TorchKernels())
    return kept_decoder(model, states, samples, dtype)


def forget(model: OccupancyTransformer) -> None:
    """Let go of a network's decoders and their memory."""
    with _LOCK:
        for each in _DECODERS.pop(model, {}).values():
            each.finish()


def kept_decoder(model: OccupancyTransformer, states: int, samples: int, dtype: torch.dtype) -> Decoder:
    """The decoder that is kept for such a number of states, or a new one that is kept from now on.

    At most ``KEPT`` are, all of them where the network is now. Together they take at most twice of what sampling may
    take at once, and so do those of all networks on a GPU.
    """
    key = (room(states, samples), samples, dtype, model.codes.weight.device)
    with _LOCK:
        kept = _DECODERS[model] = _DECODERS.pop(model, {})
        found = kept.get(key)
        if found is None or not found.fits(model):
            _make_room(model, kept, key)
            found = Decoder(model, *key[:3], _kernels(model, dtype))
        kept.pop(key, None)
        kept[key] = found
    return found


def _make_room(model: OccupancyTransformer, kept: dict[Key, Decoder], key: Key) -> None:
    """Let go of a network's decoders that are elsewhere or of other parameters, then of those used longest ago, its own
    and at last any network's, until a new one has room."""
    for other in [other for other, each in kept.items() if other[-1] != key[-1] or not each.fits(model)]:
        kept.pop(other).finish()
    new, usual = key[0] * bytes_of_state(model.config, key[1], key[2]), default_memory(key[-1])
    while kept and (len(kept) >= KEPT or new + sum(each.bytes for each in kept.values()) > 2 * (model.memory or usual)):
        kept.pop(next(iter(kept))).finish()
    here = [(own, other) for own in _DECODERS.values() for other in own if other[-1] == key[-1]]
    taken = new + sum(own[other].bytes for own, other in here)
    for own, other in here:
        if taken <= 2 * max(model.memory or 0, usual):
            break
        taken -= own[other].bytes
        own.pop(other).finish()


def _kernels(model: OccupancyTransformer, dtype: torch.dtype) -> Kernels:
    """Triton's on a GPU in bfloat16, PyTorch's elsewhere, and where Triton does not work."""
    config, device = model.config, model.codes.weight.device
    if dtype == torch.bfloat16 and triton_works(config.n_head, config.width // config.n_head, device):
        from voc_rl.occupancy.decoding_triton import TritonKernels

        return TritonKernels()
    return TorchKernels()


def _try_triton(heads: int, d: int, device: torch.device) -> None:
    from voc_rl.occupancy.decoding_triton import TritonKernels

    kernels, C = TritonKernels(), heads * d
    low: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x = torch.zeros(2, C, dtype=torch.float32, device=device)
    context, cache = torch.zeros(1, heads, 2, d, **low), torch.zeros(1, 2, heads, 2, d, **low)
    y = kernels.attend(torch.zeros(2, 3 * C, **low), context, context, (cache, cache.clone()), 1)
    normed = kernels.add_norm(x, y, x[0], (x[0], x[0]))
    before = torch.zeros(2, dtype=torch.long, device=device)
    kernels.choose(normed, 2, x[:, 0].contiguous(), before).cpu()


@lru_cache(maxsize=16)
def triton_works(heads: int, d: int, device: torch.device) -> bool:
    """Whether the kernels compile and run for heads of width ``d`` on a device; warns where they do not."""
    try:
        with current(device):
            _try_triton(heads, d, device)
    except Exception as error:  # a missing compiler, an old driver, too little shared memory: each its own class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"Triton does not work here ({reason}); sampling takes PyTorch's slower kernels.", stacklevel=2)
        return False
    return True
