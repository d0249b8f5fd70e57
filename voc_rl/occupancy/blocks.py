"""A block of the occupancy network: attention of futures that share a context, and what follows it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.occupancy.contexts import OccupancyConfig

VECTOR = 16  # float32 numbers in a register (AVX-512)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's tanh-GELU of x, of any shape.

    In bfloat16 on a CPU the exact GELU (Hendrycks and Gimpel 2016), which PyTorch computes there in a third of the
    time: the two are at most 5e-4 apart, less than bfloat16 rounds (docs/speed.md).
    """
    exact = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return F.gelu(x, approximate="none" if exact else "tanh")


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, of any size, in float32.

    On a CPU, PyTorch takes rows of fewer than 16 numbers one by one, rows of 16 together: 5 to 10 times as fast. So
    short rows are filled up with what has no weight.
    """
    size = scores.shape[-1]
    if scores.device.type == "cpu" and size < VECTOR:
        scores = F.pad(scores, (0, VECTOR - size), value=-torch.inf)
    return scores.softmax(-1, dtype=torch.float32)[..., :size]


class GELU(nn.Module):
    """``gelu`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class Attention(nn.Module):
    """Causal self-attention of M futures (B, M, T, C), which also see a prefix shared by all M of a row."""

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self, x: Tensor, prefix: tuple[Tensor, Tensor] | None, cache: tuple[Tensor, Tensor, int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, M, T, C = x.shape
        q, k, v = (
            self.qkv(x).view(B, M, T, 3, self.n_head, C // self.n_head).permute(3, 0, 1, 4, 2, 5)
        )  # (B, M, h, T, d)
        if cache is not None:
            keys, values, seen = cache
            keys[:, :, :, seen : seen + T], values[:, :, :, seen : seen + T] = k, v
            k, v = keys[:, :, :, : seen + T], values[:, :, :, : seen + T]
        scale = 1.0 / math.sqrt(q.shape[-1])
        scores = (q @ k.transpose(-2, -1)) * scale  # (B, M, h, T, seen + T)
        if T > 1:
            future = torch.ones(T, k.shape[-2], dtype=torch.bool, device=x.device).triu(k.shape[-2] - T + 1)
            scores = scores.masked_fill(future, -torch.inf)
        if prefix is None:
            y = self.dropout(softmax(scores).to(v.dtype)) @ v
        else:
            shared_k, shared_v = prefix  # (B, h, P, d)
            flat = q.transpose(1, 2).flatten(2, 3)  # (B, h, M T, d): all futures of a row in one product
            shared = (flat @ shared_k.transpose(-2, -1) * scale).unflatten(2, (M, T)).transpose(1, 2)
            weights = softmax(torch.cat([shared, scores], -1)).to(v.dtype)
            weights = self.dropout(weights)
            P = shared_k.shape[-2]
            from_prefix = weights[..., :P].transpose(1, 2).flatten(2, 3) @ shared_v
            y = from_prefix.unflatten(2, (M, T)).transpose(1, 2) + weights[..., P:] @ v
        return self.out(y.transpose(2, 3).reshape(B, M, T, C)), k, v

    def last(self, x: Tensor) -> Tensor:
        """Output (B, M, 1, C) at the last place of x (B, M, T, C) alone."""
        B, M, T, C = x.shape
        weight, bias, heads = self.qkv.weight, self.qkv.bias, (self.n_head, C // self.n_head)
        q = F.linear(x[:, :, -1:], weight[:C], bias[:C]).view(B, M, 1, *heads).transpose(2, 3)
        k, v = F.linear(x, weight[C:], bias[C:]).view(B, M, T, 2, *heads).permute(3, 0, 1, 4, 2, 5)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(heads[1])
        weights = self.dropout(softmax(scores).to(v.dtype))
        return self.out((weights @ v).transpose(2, 3).reshape(B, M, 1, C))


class Block(nn.Module):
    """Pre-norm transformer block of GPT-2."""

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        prefix: tuple[Tensor, Tensor] | None = None,
        cache: tuple[Tensor, Tensor, int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.attention(self.norm_1(x), prefix, cache)
        return self._after(x, attended), k, v

    def last(self, x: Tensor) -> Tensor:
        """Output (B, M, 1, C) at the last place of x (B, M, T, C) alone, at a third of the cost of all places."""
        return self._after(x[:, :, -1:], self.attention.last(self.norm_1(x)))

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm_2(x)))
