"""The networks that all offline agents share: encoders of frames, an actor and a critic."""

from __future__ import annotations

import itertools
import math
from typing import Self

import torch
from torch import Tensor, nn

from voc_rl.errors import VOCError
from voc_rl.plugin import LARGEST
from voc_rl.precision import autocast
from voc_rl.quantizers import Quantizer, check_features, seen_as_stored

_LEAST_LOG_STD, _MOST_LOG_STD = math.log(0.05), math.log(1.0)
_NEARLY_LEAST = -10.0  # of the spread's sigmoid: .05 to four digits, and still to be learned from


def layers(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with layer norm and ReLU between them."""
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        parts.append(nn.Linear(before, after))
        if i < len(widths) - 2:
            parts += [nn.LayerNorm(after), nn.ReLU()]
    return nn.Sequential(*parts)


class FrozenEncoder(nn.Module):
    """A trained quantizer's continuous features, or the vectors of its codes, in standard deviations of the data.

    Raises:
        VOCError: the features of a quantizer that has none.
    """

    def __init__(self, quantizer: Quantizer, tokens: bool) -> None:
        super().__init__()
        if not tokens:
            check_features(quantizer)
        self.quantizer, self.of_tokens = quantizer.eval().requires_grad_(False), tokens
        self.width = quantizer.n_tokens * quantizer.code_dim if tokens else quantizer.feature_dim
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))
        self.mean: Tensor
        self.std: Tensor

    def train(self, mode: bool = True) -> Self:
        """The quantizer never trains."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def fit(self, codes: Tensor, features: Tensor | None) -> None:
        """Take mean and spread of the data's codes (N, n_tokens) and features (N, feature_dim)."""
        raw = self.raw(codes, features)
        self.mean.copy_(raw.mean(0))
        self.std.copy_(raw.std(0).clamp(min=1e-3))

    def raw(self, codes: Tensor, features: Tensor | None) -> Tensor:
        """What is standardised, float32 (B, width)."""
        if self.of_tokens:
            with torch.no_grad():
                return self.quantizer.embed(codes.long()).flatten(1).float()
        assert features is not None
        return features.float()

    def inputs(self, codes: Tensor, features: Tensor | None) -> Tensor:
        """Codes and features (not needed by an encoder of tokens) of some observations -> float32 (B, width)."""
        return ((self.raw(codes, features) - self.mean) / self.std).clamp(-LARGEST, LARGEST)

    def forward(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> float32 (B, width)."""
        return self.inputs(*seen_as_stored(self.quantizer, obs))


class ConvEncoder(nn.Module):
    """DrQ-v2's encoder (Yarats et al. 2022): uint8 (B, 3K, H, W) -> float32 (B, 50).

    Raises:
        VOCError: a side of less than 15, of which the convolutions leave nothing.
    """

    width = 50

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        if min(shape[1:]) < 15:
            raise VOCError(f"Frames {shape} are too small for convolutions; sides of at least 15 are needed.")
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape[0], 32, 3, 2), nn.ReLU(),
            nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.convolutions.to(memory_format=torch.channels_last)  # twice as fast on CPUs with bfloat16
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *shape)).shape[1]
        self.trunk = nn.Sequential(nn.Linear(flat, self.width), nn.LayerNorm(self.width), nn.Tanh())

    @property
    def learns(self) -> bool:
        """Whether it is trained with the agent that has it."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, obs: Tensor) -> Tensor:
        with autocast(self):
            scaled = (obs.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last)
            return self.trunk(self.convolutions(scaled)).float()


class Actor(nn.Module):
    """Inputs float (B, F) -> mean action (B, A) in [-1, 1]; around it a Gaussian whose spread depends on the inputs."""

    def __init__(self, inputs: int, actions: int, width: int) -> None:
        super().__init__()
        self.body = layers(inputs, width, width, 2 * actions)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, both (B, A)."""
        mean, spread = self.body(inputs).chunk(2, -1)
        log_std = _LEAST_LOG_STD + (_MOST_LOG_STD - _LEAST_LOG_STD) * spread.sigmoid()
        return mean.tanh(), log_std.exp()

    @torch.no_grad()
    def least_spread(self) -> None:
        """Make the spread the least there is, .05, at all inputs; the mean stays as it is."""
        last = self.body[-1]
        assert isinstance(last, nn.Linear)
        last.weight.chunk(2)[1].zero_()
        last.bias.chunk(2)[1].fill_(_NEARLY_LEAST)

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Log-density (B,) of actions (B, A), before clipping."""
        mean, std = self(inputs)
        return log_density(actions, mean, std)


def log_density(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density (...) of actions (..., A) under independent Gaussians."""
    z = (actions - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class Critic(nn.Module):
    """Two networks: inputs (B, F) and actions (B, A) -> Q (B, 2)."""

    def __init__(self, inputs: int, actions: int, width: int) -> None:
        super().__init__()
        self.both = nn.ModuleList(layers(inputs + actions, width, width, 1) for _ in range(2))

    def forward(self, inputs: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([inputs, actions], 1)
        return torch.cat([one(x) for one in self.both], 1)
