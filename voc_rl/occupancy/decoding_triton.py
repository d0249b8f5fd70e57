# mypy: disable-error-code="no-untyped-def"
"""The parts of a decoding step as one GPU kernel each (Triton); what they compute is said in ``kernels.Kernels``."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from voc_rl.occupancy.kernels import Kernels

SAMPLES = 16  # futures of one state and head that a program attends for: as few as a tensor core takes
CONTEXT = 32  # places of the context at once; more would fill the shared memory with one program
OWN = 512  # numbers of each future's own keys at once: 4 codes at the paper's 96 a head, filled up to 128


@triton.jit(do_not_specialize=["place"])
def _attend(
    qkv, keys, values, own_keys, own_values, out, M, P, place, T, scale,
    heads: tl.constexpr, d: tl.constexpr, D: tl.constexpr, SAMPLES: tl.constexpr, CONTEXT: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, SAMPLES)
    row = tl.program_id(0) // blocks  # state and head
    b, head = row // heads, row % heads
    m = (tl.program_id(0) % blocks) * SAMPLES + tl.arange(0, SAMPLES)
    i = tl.arange(0, D)
    n = (b * M + m).to(tl.int64)
    inside = (m < M)[:, None] & (i < d)[None, :]
    newest = n[:, None] * (3 * heads * d) + head * d + i[None, :]
    q = tl.load(qkv + newest, inside, 0.0)
    k = tl.load(qkv + newest + heads * d, inside, 0.0)
    v = tl.load(qkv + newest + 2 * heads * d, inside, 0.0)
    mine = (n * heads + head) * T * d
    here = mine[:, None] + place * d + i[None, :]
    tl.store(own_keys + here, k, inside)
    tl.store(own_values + here, v, inside)

    # softmax over the newest code itself, then the context, then the codes before; kept relative to the largest score
    scaled = q.to(tl.float32) * scale
    largest = tl.sum(scaled * k.to(tl.float32), 1)
    total = tl.full((SAMPLES,), 1.0, tl.float32)
    y = v.to(tl.float32)
    for first in range(0, P, CONTEXT):
        p = first + tl.arange(0, CONTEXT)
        some = (p < P)[:, None] & (i < d)[None, :]
        places = (row.to(tl.int64) * P + p)[:, None] * d + i[None, :]
        scores = tl.dot(q, tl.trans(tl.load(keys + places, some, 0.0))) * scale
        scores = tl.where((p < P)[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(largest - higher)
        total = total * shrink + tl.sum(weights, 1)
        part = tl.load(values + places, some, 0.0)
        y = y * shrink[:, None] + tl.dot(weights.to(part.dtype), part)
        largest = higher
    for first in range(0, place, OWN):
        t = first + tl.arange(0, OWN)
        some = (m < M)[:, None, None] & (t < place)[None, :, None] & (i < d)[None, None, :]
        places = mine[:, None, None] + t[None, :, None] * d + i[None, None, :]
        own = tl.load(own_keys + places, some, 0.0).to(tl.float32)
        scores = tl.sum(scaled[:, None, :] * own, 2)
        scores = tl.where((t < place)[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(largest - higher)
        total = total * shrink + tl.sum(weights, 1)
        own = tl.load(own_values + places, some, 0.0).to(tl.float32)
        y = y * shrink[:, None] + tl.sum(weights[:, :, None] * own, 1)
        largest = higher
    y = y / total[:, None]
    tl.store(out + n[:, None] * (heads * d) + head * d + i[None, :], y.to(out.dtype.element_ty), inside)


@triton.jit
def _add_norm(x, y, bias, weight, shift, out, C, WIDTH: tl.constexpr):
    i = tl.arange(0, WIDTH)
    inside = i < C
    at = tl.program_id(0).to(tl.int64) * C + i
    row = tl.load(x + at, inside, 0.0) + tl.load(y + at, inside, 0.0).to(tl.float32) + tl.load(bias + i, inside, 0.0)
    tl.store(x + at, row, inside)
    mean = tl.sum(row, 0) / C
    off = tl.where(inside, row - mean, 0.0)
    spread = tl.sqrt(tl.sum(off * off, 0) / C + 1e-5)
    normed = off / spread * tl.load(weight + i, inside, 0.0) + tl.load(shift + i, inside, 0.0)
    tl.store(out + at, normed.to(out.dtype.element_ty), inside)


@triton.jit
def _choose(logits, noise, before, out, codes, stride, CODES: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, CODES)
    row = tl.load(logits + n * stride + i, i < codes, float("-inf")).to(tl.float32)
    cumulative = tl.cumsum(tl.exp(row - tl.max(row, 0)), 0)
    total = tl.max(cumulative, 0)
    # a code of probability zero is never taken, not even at noise 0
    passed = (cumulative <= tl.load(noise + n) * total) & (i < codes)
    code = tl.minimum(tl.sum(passed.to(tl.int32), 0), codes - 1).to(tl.int64)
    last = tl.load(before + n)
    tl.store(out + n, tl.where(last == codes, last, code))


class TritonKernels(Kernels):
    """One kernel for each part."""

    block: int | None = None

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, cache: tuple[Tensor, Tensor], place: int) -> Tensor:
        B, heads, P, d = keys.shape
        N, T = len(qkv), cache[0].shape[3]
        out = qkv.new_empty(N, heads * d)
        grid: Any = (B * heads * triton.cdiv(N // B, SAMPLES),)
        D = max(triton.next_power_of_2(d), 16)
        _attend[grid](
            qkv, keys, values, *cache, out, N // B, P, place, T, d**-0.5,
            heads=heads, d=d, D=D, SAMPLES=SAMPLES, CONTEXT=CONTEXT, OWN=max(OWN // D, 1), num_warps=4, num_stages=2,
        )  # fmt: skip
        return out

    def add_norm(self, x: Tensor, y: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        out = torch.empty_like(y)
        _add_norm[(len(x),)](x, y, bias, *norm, out, x.shape[1], WIDTH=triton.next_power_of_2(x.shape[1]))
        return out

    def widen(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # cuBLAS adds the bias and applies the activation, which on a GPU is the one with tanh, in the same kernel
        return torch._addmm_activation(bias, x, weight, use_gelu=True)

    def choose(self, logits: Tensor, codes: int, noise: Tensor, before: Tensor) -> Tensor:
        out = torch.empty_like(before)
        size = triton.next_power_of_2(codes)
        _choose[(len(logits),)](
            logits, noise, before, out, codes, logits.stride(0), CODES=size, num_warps=8 if size > 2048 else 4
        )
        return out
