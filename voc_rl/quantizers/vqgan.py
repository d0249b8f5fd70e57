"""The paper's full VQ-VAE: the autoencoder of VQGAN (Esser et al. 2021), frame by frame, with local codes.

Tokens. One per cell of a coarse grid (5 x 5 for frames of 80 pixels and five levels), frame by frame, oldest frame
first and row by row within a frame.

Network. Residual blocks with group norm, halving the picture from level to level, self-attention at the coarse ones;
the nearest of a codebook's vectors; and the mirror image back to pixels.

Loss. Absolute and squared error of the pixels, in units of their spread, plus the two distances between latents and
code vectors. Neither a discriminator nor a perceptual network: the paper's adversarial loss had the wrong sign, and
pictures only show what codes hold.

``from_published`` reads weights in the layout of taming-transformers, ``vqgan_imagenet_f16_1024`` among them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.distributed import average
from voc_rl.loop import StepLog
from voc_rl.precision import single_precision
from voc_rl.quantizers.base import Quantizer, check_codes, check_rows_of_codes, frames_in_stack, scale, unscale
from voc_rl.quantizers.codebook import draw_vectors, move_unused, nearest_codes
from voc_rl.quantizers.published import levels_of_published, published_frames
from voc_rl.quantizers.vqgan_network import Decoder, Encoder, VQGANConfig
from voc_rl.quantizers.vqgan_published import by_our_names, read_vqgan

CHUNK = 32  # frames that pass the network at once where no gradient is wanted: bounds memory


class VQGAN(Quantizer):
    """The quantizer ``vqgan``."""

    name = "vqgan"
    feature_dim = 0

    def __init__(self, observation_shape: tuple[int, int, int], config: VQGANConfig) -> None:
        super().__init__()
        channels, height, width = observation_shape
        self.observation_shape, self.config = (channels, height, width), config
        self.stack, self.grid = frames_in_stack(observation_shape), config.side // config.reduction
        self.n_tokens = self.stack * self.grid**2
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_code = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.from_code = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.codebook = nn.Embedding(config.codebook_size, config.code_dim)
        nn.init.uniform_(self.codebook.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("use", torch.full((config.codebook_size,), 1 / config.codebook_size))
        self.register_buffer("pixel_variance", torch.ones(()))
        self.fitted: Tensor  # whether the codebook says anything yet
        self.use: Tensor  # share of latents that go to each code, a moving average
        self.pixel_variance: Tensor

    @classmethod
    @single_precision()
    def from_published(cls, path: str | Path, stack: int = 1) -> VQGAN:
        """Weights in the layout of taming-transformers, for frames of 84 pixels, as the paper's code ran them.

        All sizes are read off names and shapes; discriminator and perceptual network are left out. Nothing in the
        file is executed, so a checkpoint that holds objects of Lightning beside its weights is refused.

        Args:
            path: a torch file with a state dict, bare or under ``state_dict`` or ``model``.
            stack: frames per observation.

        Raises:
            VOCError: a missing or refused file, or names and shapes that are not such a network's.
        """
        config, tensors = read_vqgan(path)
        quantizer = cls((3 * stack, 84, 84), config)
        own = quantizer.state_dict()
        quantizer.load_state_dict({**own, **by_our_names(tensors, own, path)})
        quantizer.fitted.fill_(True)
        return quantizer.eval()

    @property
    def initialised(self) -> bool:
        return bool(self.fitted) and bool(self.pixel_variance != 1)  # published files have codes, and no variance

    @torch.no_grad()
    def initialise(self, obs: Tensor, generator: torch.Generator, log: StepLog | None = None) -> None:
        """Spread of the pixels, and codes drawn from the latents of some frames unless there are codes already."""
        frames = obs[:, -3:]
        pictures = torch.cat([self._pictures(part) for part in frames.split(CHUNK)])
        self.pixel_variance.copy_(pictures.sub_(pictures.mean(0)).square_().mean().clamp(min=1e-4))
        if self.fitted:
            return
        enough = -(-4 * self.codebook_size // self.grid**2)
        some = torch.randperm(len(frames), generator=generator, device=generator.device)[:enough]
        latents = self._latents(frames[some.to(frames.device)]).flatten(0, 1)
        self.codebook.weight.copy_(draw_vectors(latents, self.codebook_size, generator))
        self.fitted.fill_(True)

    def features(self, obs: Tensor) -> Tensor:
        """None, (B, 0): contexts are tokens alone, as in the paper."""
        return torch.zeros(len(obs), 0, device=obs.device)

    def latents(self, obs: Tensor) -> Tensor:
        latents = self._latents(rearrange(obs, "b (k c) h w -> (b k) c h w", c=3))
        return rearrange(latents, "(b k) n d -> b (k n) d", k=self.stack)

    def quantize(self, latents: Tensor) -> Tensor:
        """float (..., code_dim) -> int64 (...), the codes whose vectors are nearest."""
        return nearest_codes(latents, self.codebook.weight)

    def embed(self, codes: Tensor) -> Tensor:
        return self.codebook(check_codes(codes, self))

    def code_vectors(self) -> Tensor:
        return self.codebook.weight.detach()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int (B, n_tokens) -> uint8 (B, 3K, H, W), every frame painted by itself."""
        vectors = self.embed(codes)
        check_rows_of_codes(codes)
        vectors = rearrange(vectors, "b (k n) d -> (b k) n d", k=self.stack)
        frames = torch.cat([self._frames(self._paint(part)) for part in vectors.split(CHUNK)])
        return rearrange(frames, "(b k) c h w -> b (k c) h w", k=self.stack)

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the newest frame of each observation, uint8 (B, 3K, H, W): frames are coded one by one."""
        frames = batch[:, -3:]
        latents = self._latents(frames)
        codes = self.quantize(latents)
        vectors = self.codebook(codes)
        straight = latents + (vectors - latents).detach()  # the vector forwards, the latent's gradient backwards
        error = self._paint(straight) - self._pictures(frames)
        pixels = error.abs().mean() / self.pixel_variance.sqrt() + error.square().mean() / self.pixel_variance
        codebook, commitment = F.mse_loss(vectors, latents.detach()), F.mse_loss(latents, vectors.detach())
        if self.training and not self.config.published:
            error = (latents - vectors).detach().square().sum(-1).clamp(min=1e-12)
            move_unused(
                self.codebook.weight.data, self.use, latents.detach().flatten(0, 1), codes.flatten(), error.flatten(),
                generator,
            )  # fmt: skip
        share = torch.bincount(codes.flatten(), minlength=self.codebook_size) / codes.numel()
        average([share])  # before the entropy, which is not that of a mean
        perplexity = torch.special.entr(share).sum().exp()
        numbers = {"pixels": pixels, "codebook": codebook, "commitment": commitment, "perplexity": perplexity}
        total = pixels + commitment + self.config.codebook_weight * codebook
        return total, {name: number.detach() for name, number in numbers.items()}

    def _latents(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, grid * grid, code_dim)."""
        return self._in_parts(lambda part: self.to_code(self.encoder(self._pictures(part))), frames).flatten(2).mT

    def _paint(self, vectors: Tensor) -> Tensor:
        """(B, grid * grid, code_dim) -> float32 (B, 3, side, side), as the network's inputs."""
        grid = rearrange(vectors, "b (h w) d -> b d h w", h=self.grid)
        return self._in_parts(lambda part: self.decoder(self.from_code(part)), grid)

    def _in_parts(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        parts = inputs.split(len(inputs) if torch.is_grad_enabled() and len(inputs) else CHUNK)
        # published codes are those of float32; ours may be computed in bfloat16, as everything else
        lower = torch.is_autocast_enabled(inputs.device.type) and not self.config.published
        with torch.autocast(inputs.device.type, enabled=lower):
            return torch.cat([network(part) for part in parts]).float()

    def _pictures(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, side, side), what the network sees."""
        if self.config.published:
            return published_frames(frames, self.config.side)
        return scale(F.interpolate(frames.float(), size=self.config.side))

    def _frames(self, pictures: Tensor) -> Tensor:
        """float (B, 3, side, side) -> uint8 (B, 3, H, W): ``_pictures`` undone."""
        rows, columns = (_read_back(size, self.config.side).to(pictures.device) for size in self.observation_shape[1:])
        pictures = pictures[..., rows[:, None], columns]
        return levels_of_published(pictures) if self.config.published else unscale(pictures)


def _read_back(size: int, side: int) -> Tensor:
    """int64 (size,): for every pixel of a frame the pixel of the picture that was read nearest to it.

    Resizing to the nearest pixel rounds down, so doing it twice would shift the frame by almost a pixel.
    """
    read = F.interpolate(torch.arange(float(size)).view(1, 1, -1), size=side)[0, 0]
    return (torch.arange(size)[:, None] - read).abs().argmin(1)
