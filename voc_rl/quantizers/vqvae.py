"""A small VQ-VAE of the joint frame stack, with few tokens.

Tokens. The bottleneck is flat: a handful of tokens that each see the whole stack, so that a code can hold motion.
The codebook is finite scalar quantization (Mentzer et al. 2023), which cannot collapse. The first few codes have to
tell as much as they can alone (nested dropout, Rippel et al. 2014), so codes go from coarse to fine. The occupancy
network writes them in that order: a future's pose is settled by codes that can be predicted, and detail that cannot be
comes last. In no order the first code, too, is a mixture of all, and futures are less coherent.

Encoder. Every frame is seen through the principal components of the training frames (a linear layer over the
whole frame, fixed once fitted), and, where ``conv_width`` is not zero, through convolutions of the stack. On a CPU
minute the components alone reach what convolutions reach in ten.

Loss. The components of the newest frame and of the differences between neighbouring frames (velocity moves few
pixels, and a plain squared error of the stack would drop it first), from all codes and from the first few of them, plus
pixels through a convolutional decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.distributed import gather, ranks
from voc_rl.errors import VOCError, check_at_least, check_count
from voc_rl.loop import StepLog
from voc_rl.precision import single_precision
from voc_rl.quantizers.base import (
    Quantizer,
    check_codebook_size,
    check_codes,
    check_rows_of_codes,
    frames_in_stack,
    scale,
    unscale,
    whole_batch,
)

CHUNK = 256  # observations that are floats at once: bounds memory
LARGEST_PATCH = 6


@dataclass(frozen=True)
class VQVAEConfig:
    """Sizes of the network.

    n_tokens: codes per observation. levels: steps of each scalar of a code; their product is the codebook size.
    components: principal components per frame, at most one for each of the pixels that they see. hidden: width of the
    layers around the bottleneck.
    conv_width: channels of the convolutional branch of the encoder; 0 leaves it out.
    decoder_width, patch: channels of the decoder, and the side in pixels of what one of its cells paints; twice the
    patch has to divide both sides of a frame.
    motion_weight: weight of frame differences against the newest frame.
    order_weight: weight of the loss of the first few codes alone; 0 leaves codes in no order.
    """

    n_tokens: int = 8
    levels: tuple[int, ...] = (8, 6, 5)
    components: int = 64
    hidden: int = 512
    conv_width: int = 0
    decoder_width: int = 64
    patch: int = LARGEST_PATCH
    motion_weight: float = 1.0
    order_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("n_tokens", "components", "hidden", "decoder_width", "patch"):
            check_count(getattr(self, name), name)
        for name in ("conv_width", "motion_weight", "order_weight"):
            check_at_least(getattr(self, name), 0, name)
        if not self.levels or min(self.levels) < 3:
            raise VOCError(f"levels are {self.levels}; one whole number of at least 3 per scalar of a code is needed.")
        check_codebook_size(math.prod(self.levels), f"The product of the levels {self.levels}")


def fitting_patch(observation_shape: tuple[int, int, int]) -> int:
    """The largest patch from 2 to 6 whose double divides both sides of (3K, H, W); 6 where there is none."""
    sides = math.gcd(*observation_shape[1:])
    fitting = [patch for patch in range(2, LARGEST_PATCH + 1) if sides % (2 * patch) == 0]
    return max(fitting, default=LARGEST_PATCH)


class PrincipalComponents(nn.Module):
    """Frames (B, K, 3, H, W) uint8 -> coefficients (B, K, components), of every second row and column of pixels."""

    def __init__(self, frame_shape: tuple[int, int, int], components: int) -> None:
        super().__init__()
        channels, height, width = frame_shape
        pixels = channels * math.ceil(height / 2) * math.ceil(width / 2)
        components = min(components, pixels)
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, components))
        self.register_buffer("spread", torch.ones(components))
        self.mean: Tensor
        self.basis: Tensor
        self.spread: Tensor

    def pixels(self, frames: Tensor) -> Tensor:
        return scale(frames[..., ::2, ::2]).flatten(-3)

    @torch.no_grad()
    def fit(self, frames: Tensor, generator: torch.Generator) -> None:
        """Components of uint8 (N, 3, H, W) by a randomized singular value decomposition (Halko et al. 2011)."""
        pixels = self.pixels(frames)
        self.mean.copy_(pixels.mean(0))
        pixels -= self.mean
        count = self.basis.shape[1]
        if len(pixels) < count:
            raise VOCError(
                f"{len(pixels)} frames are too few for {count} principal components; give more data, a quantizer "
                "without them (--quantizer dino), or fewer `components` in the quantizer's config."
            )
        probe = torch.randn(pixels.shape[1], count + 16, generator=generator, device=generator.device)
        probe = probe.to(pixels.device)
        for _ in range(3):
            span = torch.linalg.qr(pixels @ probe).Q
            probe = torch.linalg.qr(pixels.T @ span).Q
        values, vectors = torch.linalg.svd(pixels @ probe, full_matrices=False)[1:]
        self.basis.copy_((probe @ vectors.T)[:, :count])
        self.spread.copy_(values[:count] / len(pixels) ** 0.5)

    def forward(self, frames: Tensor) -> Tensor:
        return (self.pixels(frames) - self.mean) @ self.basis


class VQVAE(Quantizer):
    """The quantizer ``vqvae``."""

    name = "vqvae"

    def __init__(self, observation_shape: tuple[int, int, int], config: VQVAEConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ  # takes longer than all the rest of voc_rl

        channels, height, width = observation_shape
        stack = frames_in_stack(observation_shape)
        if height % (2 * config.patch) or width % (2 * config.patch):
            raise VOCError(
                f"Observations of shape {observation_shape} do not fit {self.name} with a patch of {config.patch}; "
                f"sides that are multiples of {2 * config.patch} are needed, or both of 4, 6 or 10 and another `patch` "
                "(one that fits is chosen where the quantizer's config has none), or a quantizer that resizes frames "
                "(--quantizer dino)."
            )
        self.observation_shape, self.config = (channels, height, width), config
        self.n_tokens, self.codebook_size = config.n_tokens, math.prod(config.levels)
        self.code_dim = len(config.levels)
        self.grid = (height // config.patch // 2, width // config.patch // 2)
        self.register_buffer("mean_picture", torch.zeros(observation_shape))
        self.register_buffer("pixel_variance", torch.ones(()))
        self.mean_picture: Tensor
        self.pixel_variance: Tensor
        self.components = PrincipalComponents((3, height, width), config.components)
        self.feature_dim = stack * len(self.components.spread)
        hidden, bottleneck = config.hidden, self.n_tokens * self.code_dim
        self.convolutions = _convolutions(channels, config) if config.conv_width else None
        flat = 2 * config.conv_width * self.grid[0] * self.grid[1]
        self.encoder = nn.Sequential(
            nn.Linear(self.feature_dim + flat, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        # the codebook squashes with tanh: start with outputs that reach beyond its middle levels
        nn.init.normal_(self.encoder[-1].weight, std=2.0 / hidden**0.5)  # type: ignore[arg-type]
        self.codebook = FSQ(list(config.levels))
        self.trunk = nn.Sequential(nn.Linear(bottleneck, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.to_features = nn.Linear(hidden, self.feature_dim)
        w = config.decoder_width
        self.to_grid = nn.Sequential(nn.Linear(hidden, 2 * w * self.grid[0] * self.grid[1]), nn.GELU())
        self.upsample = nn.Sequential(nn.ConvTranspose2d(2 * w, w, 4, stride=2, padding=1), nn.GELU())
        self.to_pixels = nn.Linear(w, channels * config.patch**2)

    @staticmethod
    def from_published(path: str | Path, stack: int = 1) -> Quantizer:
        """The paper's VQ-VAE file: the full network, a ``VQGAN`` (see its ``from_published``)."""
        from voc_rl.quantizers.vqgan import VQGAN

        return VQGAN.from_published(path, stack)

    @property
    def initialised(self) -> bool:
        return bool(self.components.basis.any())  # zeros until it is fitted

    def initialise(self, obs: Tensor, generator: torch.Generator, log: StepLog | None = None) -> None:
        """Mean picture, spread of the pixels around it, and the components of the newest frames."""
        parts = obs.split(CHUNK)
        self.mean_picture.copy_(torch.stack([scale(part).sum(0) for part in parts]).sum(0) / len(obs))
        squares = [scale(part).sub_(self.mean_picture).square_().sum() for part in parts]
        self.pixel_variance.copy_((torch.stack(squares).sum() / obs.numel()).clamp(min=1e-4))
        self.components.fit(obs[:, -3:], generator)

    def features(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> float32 (B, K * components): those of the newest frame, then of the differences."""
        coefficients = self.components(rearrange(obs, "b (k c) h w -> b k c h w", c=3)) / self.components.spread[0]
        return _newest_and_motion(coefficients).flatten(1).float()

    def latents(self, obs: Tensor) -> Tensor:
        features = self.features(obs)
        # each component at its own scale, but none blown up from less than a twentieth of the largest
        gain = 1.0 / (self.components.spread / self.components.spread[0]).clamp(min=0.05)
        inputs = features * gain.repeat(features.shape[1] // len(gain))
        if self.convolutions is not None:
            inputs = torch.cat([inputs, self.convolutions(scale(obs) - self.mean_picture)], 1)
        return rearrange(self.encoder(inputs), "b (n d) -> b n d", n=self.n_tokens).float()

    @single_precision()  # for FSQ, whose levels are of the default type
    def quantize(self, latents: Tensor) -> Tensor:
        return self.codebook(latents)[1].long()

    @single_precision()
    def embed(self, codes: Tensor) -> Tensor:
        codes = check_codes(codes, self)
        return self.codebook.indices_to_codes(codes.reshape(-1, self.n_tokens)).reshape(*codes.shape, self.code_dim)

    @single_precision()
    def code_vectors(self) -> Tensor:
        codes = torch.arange(self.codebook_size, device=self.mean_picture.device)
        return self.codebook.indices_to_codes(codes[:, None]).flatten(1).float()

    def decode(self, codes: Tensor) -> Tensor:
        vectors = self.embed(codes)
        check_rows_of_codes(codes)
        pixels = self.to_pixels(self._cells(self.trunk(vectors.flatten(1))))
        rows, patch = 2 * self.grid[0], self.config.patch
        picture = rearrange(pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=patch, q=patch)
        return unscale(picture.float() + self.mean_picture)

    def _cells(self, trunk: Tensor) -> Tensor:
        """(B, hidden) -> (B, cells, decoder_width): what the decoder knows of each patch of pixels."""
        grid = rearrange(self.to_grid(trunk), "b (c h w) -> b c h w", h=self.grid[0], w=self.grid[1])
        return self.upsample(grid).flatten(2).transpose(1, 2)

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        vectors, _ = self.codebook(self.latents(batch))
        trunk, target = self.trunk(vectors.flatten(1)), self.features(batch)
        variance = gather(target, whole_batch(len(target))[0]).var().clamp(min=1e-8)  # one unit for all processes
        features = self._feature_loss(trunk, target) / variance
        pixels = self._painting_loss(batch, trunk, generator)
        loss, numbers = features + pixels, {"features": features.detach(), "pixels": pixels.detach()}
        if self.config.order_weight and self.n_tokens > 1:
            few = self.trunk(self._first_codes(vectors, generator).flatten(1))
            first = self._feature_loss(few, target) / variance
            loss, numbers["first_codes"] = loss + self.config.order_weight * first, first.detach()
        return loss, numbers

    def _feature_loss(self, trunk: Tensor, target: Tensor) -> Tensor:
        """Squared error of features (B, feature_dim) told from (B, hidden); motion, which is small, has a weight."""
        weight = target.new_ones(self.feature_dim)
        weight[len(self.components.spread) :] = self.config.motion_weight
        return (F.mse_loss(self.to_features(trunk).float(), target, reduction="none") * weight).mean()

    def _first_codes(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Vectors (B, n_tokens, code_dim), of each row but the first 1 to n_tokens - 1 replaced by zeros."""
        count, own = whole_batch(len(vectors))
        kept = torch.randint(1, self.n_tokens, (count, 1, 1), generator=generator, device=generator.device)
        places = torch.arange(self.n_tokens, device=vectors.device)[:, None]
        return vectors * (places < kept[own].to(vectors.device))

    def _painting_loss(self, batch: Tensor, trunk: Tensor, generator: torch.Generator) -> Tensor:
        """``_pixel_loss`` of the first quarter of the rows; of several processes, of what each has of that quarter.

        So the mean over processes is the loss of one that has the whole batch.
        """
        count, own = whole_batch(len(batch))
        quarter = max(count // 4, 1)
        mine = min(max(quarter - own.start, 0), len(batch))
        return self._pixel_loss(batch[:mine], trunk, generator) * (mine * ranks().size / quarter)

    def _pixel_loss(self, batch: Tensor, trunk: Tensor, generator: torch.Generator) -> Tensor:
        """Error of a quarter of the patches, drawn anew for each batch: as good a gradient at a third of the cost."""
        patch = self.config.patch
        patches = rearrange(batch, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch)
        mean = rearrange(self.mean_picture, "c (h p) (w q) -> h w (c p q)", p=patch, q=patch)
        rows, columns = patches.shape[1:3]
        cells = torch.randperm(rows * columns, generator=generator, device=generator.device).to(batch.device)
        cells = cells[: max(rows * columns // 4, 1)]
        target = scale(patches[:, cells // columns, cells % columns]) - mean[cells // columns, cells % columns]
        pixels = self.to_pixels(self._cells(trunk[: len(batch)])[:, cells]).float()
        error = F.mse_loss(pixels, target) if len(batch) else pixels.sum()  # without rows 0, and gradients of 0
        return error / self.pixel_variance


def _convolutions(channels: int, config: VQVAEConfig) -> nn.Module:
    width, patch = config.conv_width, config.patch
    return nn.Sequential(
        nn.Conv2d(channels, width, patch, stride=patch), nn.GELU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GELU(), nn.Flatten(),
    )  # fmt: skip


def _newest_and_motion(x: Tensor) -> Tensor:
    """(B, K, F), oldest first -> (B, K, F): the newest, then the differences of neighbours, newest first."""
    return torch.cat([x[:, -1:], x.diff(dim=1).flip(1)], 1)
