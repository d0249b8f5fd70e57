"""The parts of a decoding step that are not plain products: what a ``Decoder`` asks of them, and PyTorch's."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from voc_rl.occupancy.blocks import gelu, softmax


class Kernels(Protocol):
    """The parts of a step that are not plain products; B states, M samples, N = B * M, C the width, d of a head.

    Attributes:
        block: places of a future that lie together in the cache, (blocks, N, heads, block, d); None: all of them.
    """

    block: int | None

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, cache: tuple[Tensor, Tensor], place: int) -> Tensor:
        """(N, 3 C) of the newest codes, context (B, heads, P, d) twice -> (N, C); the newest keys and values are added
        to the cache at ``place``, and all before them are read."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        """x (N, C) float32 grows by y (N, C) + bias (C,), in place; returns its norm in the precision of y."""
        ...

    def widen(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """tanh-GELU of x (N, C) @ weight (C, 4 C) + bias."""
        ...

    def choose(self, logits: Tensor, codes: int, noise: Tensor, before: Tensor) -> Tensor:
        """Logits (N, >= codes) and noise (N,) -> int64 (N,): one of the first ``codes``, or END where ``before``
        is."""
        ...


def sample_codes(logits: Tensor, noise: Tensor, top_k: int | None = None) -> Tensor:
    """Logits (..., V) and uniform noise (..., samples) -> int64 (..., samples), by inverting the distribution."""
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]  # not exactly 1 in float32
    # side "right": a code of probability zero is never taken, not even at uniform 0
    return torch.searchsorted(cumulative, noise * total, right=True).clamp(max=logits.shape[-1] - 1)


class TorchKernels(Kernels):
    """The parts of a step in PyTorch, for any device.

    The cache is read in blocks, each of them whole: a product of the places written so far alone would copy them all
    at every step, because they do not lie together.
    """

    block: int | None = 16

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, cache: tuple[Tensor, Tensor], place: int) -> Tensor:
        B, heads, P, d = keys.shape
        N, size = len(qkv), cache[0].shape[3]
        last, inside = divmod(place, size)
        q, k, v = qkv.view(N, 3, heads, d).unbind(1)
        cache[0][last, :, :, inside], cache[1][last, :, :, inside] = k, v
        q = q * (1.0 / math.sqrt(d))
        shared = q.view(B, N // B, heads, d).transpose(1, 2) @ keys.transpose(-2, -1)  # (B, heads, M, P)
        own = [(block @ q[..., None])[..., 0] for block in cache[0][: last + 1]]  # (N, heads, block) each
        own[-1][..., inside + 1 :] = -torch.inf
        scores = torch.cat([shared.transpose(1, 2).reshape(N, heads, P), *own], -1)
        weights = softmax(scores).to(v.dtype)
        context = weights[..., :P].view(B, N // B, heads, P).transpose(1, 2) @ values  # (B, heads, M, d)
        y = context.transpose(1, 2).reshape(N, heads, d)
        for block, part in zip(cache[1][: last + 1], weights[..., P:].split(size, -1), strict=True):
            y = y + (part[..., None, :] @ block)[..., 0, :]
        return y.reshape(N, heads * d)

    def add_norm(self, x: Tensor, y: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        x.add_(y).add_(bias)
        return F.layer_norm(x, x.shape[-1:], *norm).to(y.dtype)

    def widen(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gelu(torch.addmm(bias, x, weight))

    def choose(self, logits: Tensor, codes: int, noise: Tensor, before: Tensor) -> Tensor:
        code = sample_codes(logits[:, :codes].float(), noise[:, None])[:, 0]
        return torch.where(before == codes, before, code)
