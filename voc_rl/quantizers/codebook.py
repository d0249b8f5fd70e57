"""Codebooks: the nearest vector, where vectors start, and where those go that nothing chooses.

Of several processes each has a share of a batch; a codebook is moved by the latents of all of them, so that it stays
the same in every process, and what it is in one that has the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.distributed import average, gather, ranks

USE_RATE = 0.03  # of the average of a code's use: without latents it is moved after 100 steps
LATENTS_AT_ONCE = 4096


@torch.no_grad()
def nearest_codes(latents: Tensor, vectors: Tensor) -> Tensor:
    """float (..., D) and vectors (V, D) -> int64 (...), the codes at the smallest distance.

    PyTorch can only be told for the whole process how precise products in float32 are, so that is left as it is:
    ``torch.set_float32_matmul_precision("medium")`` or TF32 confuse neighbours too (.5 % of the codes were measured).
    """
    lengths = vectors.square().sum(1)
    with torch.autocast(latents.device.type, enabled=False):  # bfloat16 would confuse neighbours
        codes = [
            (part.square().sum(1, keepdim=True) + lengths - 2 * part @ vectors.T).argmin(1)
            for part in latents.float().flatten(0, -2).split(LATENTS_AT_ONCE)
        ]
    return torch.cat(codes).view(latents.shape[:-1])


def draw_vectors(latents: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(size, D) of latents (N, D): different ones, or with repetition where there are too few."""
    drawn = torch.randperm(len(latents), generator=generator, device=generator.device)
    if len(latents) < size:
        drawn = torch.randint(len(latents), (size,), generator=generator, device=generator.device)
    return latents[drawn[:size].to(latents.device)]


@torch.no_grad()
def move_unused(
    vectors: Tensor, share: Tensor, latents: Tensor, codes: Tensor, error: Tensor, generator: torch.Generator
) -> None:
    """Vectors (V, D) that hardly any latent chooses go to latents (N, D) that no vector serves well, in place.

    ``share`` (V,) is the moving average of what share of latents goes to each; it follows the ``codes`` (N,) of this
    batch. A latent is drawn in proportion to its ``error`` (N,), above zero. Errors that are not finite count as 1, so
    that it is the loop that says that training diverged.
    """
    size = len(vectors)
    chosen = torch.bincount(codes, minlength=size) / len(codes)
    average([chosen])
    share.lerp_(chosen, USE_RATE)
    unused = (share < 0.05 / size).nonzero().flatten()
    if len(unused):  # the same ones in every process, so all of them come here
        latents, error = (gather(part, len(part) * ranks().size) for part in (latents, error))
        weight = error.to(generator.device).nan_to_num(nan=1.0, posinf=1.0)
        drawn = torch.multinomial(weight, len(unused), replacement=True, generator=generator)
        vectors[unused] = latents[drawn.to(latents.device)]
        share[unused] = 1 / size


class CosineCodebook(nn.Module):
    """Unit vectors that follow the mean direction of what is assigned to them; unused ones move to where they help.

    Latents are scaled to length 1, so the nearest vector is the one of the smallest angle.
    """

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.size, self.decay = size, decay
        self.register_buffer("vectors", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("share", torch.full((size,), 1 / size))
        self.vectors: Tensor
        self.share: Tensor  # of latents that go to each code, a moving average

    def nearest(self, latents: Tensor) -> Tensor:
        """float (..., dim) -> int64 (...): the code at the smallest distance from the latent at length 1."""
        return nearest_codes(F.normalize(latents.float(), dim=-1), self.vectors)

    @torch.no_grad()
    def fit(self, latents: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """k-means of the directions of (N, dim), from vectors drawn from them."""
        unit = F.normalize(latents.float(), dim=-1)
        self.vectors.copy_(draw_vectors(unit, self.size, generator))
        for _ in range(rounds):
            sums, counts = self._sums(unit, self.nearest(unit))
            self.vectors.copy_(torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), self.vectors))
        self.share.fill_(1 / self.size)

    @torch.no_grad()
    def follow(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Move towards the latents (N, dim) of a batch and their ``codes`` (N)."""
        unit = F.normalize(latents.float(), dim=-1)
        error = 1 - (unit * self.vectors[codes]).sum(1)
        sums, counts = self._sums(unit, codes)
        average([sums, counts])
        moved = F.normalize(self.vectors.lerp(F.normalize(sums, dim=-1), 1 - self.decay), dim=-1)
        self.vectors.copy_(torch.where(counts[:, None] > 0, moved, self.vectors))
        move_unused(self.vectors, self.share, unit, codes, error.clamp(min=1e-6), generator)

    def _sums(self, unit: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (size, dim) of the latents of each code, and how many there are, float (size)."""
        sums = torch.zeros_like(self.vectors).index_add_(0, codes, unit)
        return sums, torch.bincount(codes, minlength=self.size).float()
