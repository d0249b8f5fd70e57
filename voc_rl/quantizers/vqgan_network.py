"""The network of VQGAN (Esser et al. 2021): residual blocks, self-attention at the coarse levels, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.errors import VOCError, check_count, check_positive
from voc_rl.quantizers.base import check_codebook_size

NORM_GROUPS = 32


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of the network. The defaults are the published ones; ``small`` can be trained on a CPU.

    channels: of the finest level; multipliers: of them, per level, the finest first. Every level halves the picture.
    residual_blocks: per level of the encoder; the decoder has one more.
    attention_levels: where every residual block is followed by self-attention, 0 being the finest.
    latent_channels: between the encoder and the codebook. codebook_size, code_dim: of the codebook.
    side: of the square pictures that the network sees, a multiple of 2 ** (levels - 1).
    codebook_weight: of the distance that moves codes to latents; the one that moves latents to codes has weight 1,
        as in the published code.
    published: inputs as the paper's code made them, in float32, and no code moved for want of use.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    latent_channels: int = 256
    codebook_size: int = 1024
    code_dim: int = 256
    side: int = 80
    codebook_weight: float = 0.25
    published: bool = False

    def __post_init__(self) -> None:
        sizes = ("channels", "residual_blocks", "latent_channels", "codebook_size", "code_dim", "side")
        for name in sizes:
            check_count(getattr(self, name), name)
        check_positive(self.codebook_weight, "codebook_weight")
        check_codebook_size(self.codebook_size)
        if not self.multipliers or min(self.multipliers) < 1:
            raise VOCError(f"multipliers are {self.multipliers}; one whole number above zero per level is needed.")
        if not set(self.attention_levels) <= set(range(len(self.multipliers))):
            last = len(self.multipliers) - 1
            raise VOCError(f"attention_levels are {self.attention_levels}; levels from 0 to {last} are accepted.")
        if self.side % self.reduction:
            raise VOCError(
                f"The side {self.side} of a vqgan is not a multiple of {self.reduction}, what its "
                f"{len(self.multipliers)} levels make of a cell."
            )
        for width in self.widths:
            if width % min(NORM_GROUPS, width):
                raise VOCError(
                    f"A level of a vqgan has {width} channels; at most {NORM_GROUPS}, or a multiple of it, is needed."
                )

    @property
    def widths(self) -> list[int]:
        """Channels per level, the finest first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    @property
    def reduction(self) -> int:
        """Pixels along a side of a cell of the grid of codes."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def small(cls, **changes: Any) -> VQGANConfig:
        """The same 25 tokens per frame from a hundredth of the arithmetic."""
        sizes = {
            "channels": 16, "multipliers": (1, 1, 2, 2, 4), "residual_blocks": 1, "latent_channels": 32,
            "codebook_size": 256, "code_dim": 16,
        }  # fmt: skip
        return cls(**{**sizes, **changes})


class ResidualBlock(nn.Module):
    """(B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class SelfAttention(nn.Module):
    """(B, channels, h, w) -> the same: one head over all cells, and what it says added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.value, self.output = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (
            rearrange(layer(normed), "b c h w -> b (h w) c") for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))


class Level(nn.Module):
    """``count`` residual blocks at one resolution, each with attention after it if wanted; then another resolution."""

    def __init__(self, inputs: int, outputs: int, count: int, attention: bool, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(count))
        self.attention = nn.ModuleList(SelfAttention(outputs) for _ in range(count if attention else 0))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attention:
                x = self.attention[i](x)
        return self.resample(x)


class Encoder(nn.Module):
    """float (B, 3, side, side) -> (B, latent_channels, grid, grid)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.stem = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(inputs, width, config.residual_blocks, i in config.attention_levels, _halve(width, i < last))
            for i, (inputs, width) in enumerate(zip([config.channels, *widths], widths, strict=False))
        )
        self.middle = _middle(widths[-1])
        self.last_norm = _norm(widths[-1])
        self.head = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level in self.levels:
            x = level(x)
        return self.head(F.silu(self.last_norm(self.middle(x))))


class Decoder(nn.Module):
    """float (B, latent_channels, grid, grid) -> (B, 3, side, side). Levels are counted as in the encoder."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1])
        self.levels = nn.ModuleList(
            Level(inputs, width, config.residual_blocks + 1, i in config.attention_levels, _double(width, i > 0))
            for i, (inputs, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.last_norm = _norm(widths[0])
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        for level in reversed(self.levels):
            x = level(x)
        return self.head(F.silu(self.last_norm(x)))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(NORM_GROUPS, channels), channels, eps=1e-6)


def _middle(channels: int) -> nn.Module:
    return nn.Sequential(ResidualBlock(channels, channels), SelfAttention(channels), ResidualBlock(channels, channels))


def _halve(channels: int, wanted: bool) -> nn.Module:
    if not wanted:
        return nn.Identity()
    # padded on the right and below only, as the published weights were trained
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def _double(channels: int, wanted: bool) -> nn.Module:
    if not wanted:
        return nn.Identity()
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))
