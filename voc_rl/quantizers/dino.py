"""Codes of frames that stand for what a vision transformer sees: the tokenizer of BEiT v2 (VQ-KD; Peng et al. 2022).

Tokens. One per patch, frame by frame, oldest frame first and row by row within a frame: many tokens, each local.

Network. A ViT over patches, Linear-Tanh-Linear down to the width of a code, and the code of the nearest direction in
a codebook of unit vectors, which follows what is assigned to it instead of a gradient.

Loss. Cosine distance between what a shallow transformer decodes from the codes and the patch features of a frozen
teacher (``teacher.py``), plus the squared distance to the codes' vectors. Pictures come from a small decoder that
learns from vectors cut off from the rest: they show what codes hold, and never decide it.

``from_published`` reads the public tokenizer that the paper's DINO variant used.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.checkpoints import load_state_dict
from voc_rl.distributed import average
from voc_rl.errors import check_observations
from voc_rl.loop import StepLog
from voc_rl.precision import single_precision
from voc_rl.quantizers.base import (
    Quantizer,
    check_codes,
    check_rows_of_codes,
    frames_in_stack,
    scale,
    unscale,
)
from voc_rl.quantizers.codebook import CosineCodebook
from voc_rl.quantizers.dino_config import DINOConfig
from voc_rl.quantizers.dino_published import PARTS, read_vqkd
from voc_rl.quantizers.published import published_frames
from voc_rl.quantizers.teacher import (
    CodeToFeatures,
    FrameTeacher,
    TimmTeacher,
    cosine_distance,
    imagenet_frames,
    patch_tokens,
    train_teacher,
    vision_transformer,
)

CHUNK = 64  # frames that pass the encoder at once where no gradient is wanted: bounds memory


class DINOTokenizer(Quantizer):
    """The quantizer ``dino``."""

    name = "dino"

    def __init__(self, observation_shape: tuple[int, int, int], config: DINOConfig) -> None:
        super().__init__()
        channels, height, width = observation_shape
        self.observation_shape, self.config = (channels, height, width), config
        self.stack, self.grid = frames_in_stack(observation_shape), config.side // config.patch
        self.n_tokens = self.stack * self.grid**2
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        self.feature_dim = self.stack * config.width if config.features else 0
        self.encoder = vision_transformer(
            config.side, config.patch, 3, config.width, config.depth, config.heads, config.layer_scale
        )
        self.to_code = nn.Sequential(
            nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, config.code_dim)
        )
        self.codebook = CosineCodebook(config.codebook_size, config.code_dim, config.decay)
        self.painter = _painter(config, math.ceil(max(height, width) / self.grid))
        self.register_buffer("mean_frame", torch.zeros(3, height, width))
        self.register_buffer("pixel_variance", torch.ones(()))
        self.register_buffer("feature_mean", torch.zeros(config.width))
        self.register_buffer("feature_variance", torch.ones(config.width))
        self.mean_frame: Tensor
        self.pixel_variance: Tensor
        self.feature_mean: Tensor
        self.feature_variance: Tensor
        self.teacher: FrameTeacher | None = None
        self._timm_teacher: TimmTeacher | None = None  # read when training needs it, and kept out of our files
        if config.published:
            self.encoder.requires_grad_(False)
            self.to_code.requires_grad_(False)
            return
        self.distillation = CodeToFeatures(self.grid, config.code_dim, config.width, config.heads, config.teacher_width)
        if not config.teacher:
            self.teacher = FrameTeacher(config.side, config.patch, config.teacher_width)

    @classmethod
    @single_precision()
    def from_published(cls, path: str | Path, n_head: int = 12, stack: int = 1) -> DINOTokenizer:
        """The public VQ-KD tokenizer (BEiT v2's names), for frames of 84 pixels, as the paper's code ran it.

        Sizes are read off the shapes; only the number of heads cannot be. Codes are those of the public code; there
        are no continuous features, and ``decode`` paints plain grey until ``train_quantizer`` has trained it.

        Args:
            path: a torch file with a state dict, bare or under ``model`` or ``state_dict``; nothing in it is executed.
            stack: frames per observation.

        Raises:
            VOCError: a missing or refused file, or names and shapes that are not such a tokenizer's.
        """
        config, tensors = read_vqkd(path, n_head)
        tokenizer = cls((3 * stack, 84, 84), config)
        fresh = {name: tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith(PARTS)}
        load_state_dict(tokenizer, {**tensors, **fresh}, str(path))
        return tokenizer.eval()

    @property
    def initialised(self) -> bool:
        return bool(self.mean_frame.any())

    def initialise(self, obs: Tensor, generator: torch.Generator, log: StepLog | None = None) -> None:
        """Mean frame; unless published also the self-distilled teacher, and a codebook of what the encoder says."""
        frames = obs[:, -3:]
        pictures = scale(frames)
        self.mean_frame.copy_(pictures.mean(0))
        self.pixel_variance.copy_(pictures.sub_(self.mean_frame).square_().mean().clamp(min=1e-4))
        if self.config.published:
            return
        if self.teacher is not None:
            train_teacher(self.teacher, frames, generator, self.config.teacher_steps, log=log)
        enough = math.ceil(max(16_384, 2 * self.codebook_size) / self.grid**2)
        some = torch.randperm(len(frames), generator=generator, device=generator.device)[:enough]
        with torch.no_grad():
            latents = self.to_code(self._patches(frames[some.to(frames.device)]))
        self.codebook.fit(latents.flatten(0, 1), generator)

    def features(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> (B, K * width): mean patch of the newest frame, then differences; or (B, 0).

        In units of the spread over the frames of training; differences of neighbouring frames, newest first.
        """
        if not self.config.features:
            return torch.zeros(len(obs), 0, device=obs.device)
        return self._features(self._patches(self._frames(obs)))

    def latents(self, obs: Tensor) -> Tensor:
        return self._stacked_latents(self._patches(self._frames(obs)))

    def codes_and_features(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.features:
            return super().codes_and_features(obs)
        check_observations(obs, self.observation_shape)
        patches = self._patches(self._frames(obs))
        return self.quantize(self._stacked_latents(patches)), self._features(patches)

    def quantize(self, latents: Tensor) -> Tensor:
        return self.codebook.nearest(latents)

    def embed(self, codes: Tensor) -> Tensor:
        return self.codebook.vectors[check_codes(codes, self)]

    def code_vectors(self) -> Tensor:
        return self.codebook.vectors

    def decode(self, codes: Tensor) -> Tensor:
        """int (B, n_tokens) -> uint8 (B, 3K, H, W), every frame painted by itself."""
        vectors = self.embed(codes)
        check_rows_of_codes(codes)
        vectors = rearrange(vectors, "b (k n) d -> (b k) n d", k=self.stack)
        pictures = unscale(self._paint(vectors).float() + self.mean_frame)
        return rearrange(pictures, "(b k) c h w -> b (k c) h w", k=self.stack)

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """VQ-KD on the newest frame of each observation, plus the pictures' loss; published: the pictures' alone."""
        if self.config.published:
            pixels = self.decoder_loss(batch)
            return pixels, {"pixels": pixels.detach()}
        frames = batch[:, -3:]
        patches = self._patches(frames)
        latents = F.normalize(self._latents(patches), dim=-1)
        codes = self.codebook.nearest(latents)
        vectors = self.codebook.vectors[codes]
        straight = latents + (vectors - latents).detach()  # the vector forwards, the latent's gradient backwards
        cosine = cosine_distance(self.distillation(straight), self._teach(frames))
        commitment = F.mse_loss(latents, vectors)
        pixels = self._pixel_loss(frames, vectors)
        if self.training:
            self.codebook.follow(latents.detach().flatten(0, 1), codes.flatten(), generator)
            self._follow_features(patches.detach().float().mean(1))
        numbers = {"cosine": cosine.detach(), "commitment": commitment.detach(), "pixels": pixels.detach()}
        return cosine + self.config.commitment * commitment + pixels, numbers

    def decoder_loss(self, batch: Tensor) -> Tensor:
        """Error of the pictures painted from the codes of uint8 (B, 3K, H, W), newest frames; moves no code."""
        frames = batch[:, -3:]
        with torch.no_grad():
            vectors = self.codebook.vectors[self.codebook.nearest(self._latents(self._patches(frames)))]
        return self._pixel_loss(frames, vectors)

    def _frames(self, obs: Tensor) -> Tensor:
        return rearrange(obs, "b (k c) h w -> (b k) c h w", c=3)

    def _patches(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, patches, width), what the encoder sees in each patch."""
        if torch.is_grad_enabled() and not self.config.published:
            return patch_tokens(self.encoder, imagenet_frames(frames, self.config.side))
        # published codes are those of float32; ours may be computed in bfloat16, as everything else
        lower = torch.is_autocast_enabled(frames.device.type) and not self.config.published
        prepare = published_frames if self.config.published else imagenet_frames
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=lower):
            parts = [patch_tokens(self.encoder, prepare(part, self.config.side)) for part in frames.split(CHUNK)]
        return torch.cat(parts)

    def _latents(self, patches: Tensor) -> Tensor:
        """(..., width) -> float32 (..., code_dim)."""
        with torch.autocast(patches.device.type, enabled=False):
            return self.to_code(patches.float())

    def _stacked_latents(self, patches: Tensor) -> Tensor:
        """(B * K, patches, width) -> float32 (B, n_tokens, code_dim)."""
        return rearrange(self._latents(patches), "(b k) n d -> b (k n) d", k=self.stack)

    def _features(self, patches: Tensor) -> Tensor:
        """(B * K, patches, width) -> (B, feature_dim)."""
        pooled = rearrange(patches.mean(1), "(b k) d -> b k d", k=self.stack)
        spread = self.feature_variance.sqrt().clamp(min=1e-4)
        newest, motion = pooled[:, -1:] - self.feature_mean, pooled.diff(dim=1).flip(1)
        return (torch.cat([newest, motion], 1) / spread).flatten(1)

    def _teach(self, frames: Tensor) -> Tensor:
        if self.teacher is not None:
            return self.teacher(frames)
        if self._timm_teacher is None:
            config, name = self.config, self.config.teacher.removeprefix("timm:")
            self._timm_teacher = TimmTeacher(name, config.teacher_weights, self.grid, config.teacher_width)
        return self._timm_teacher(frames)

    @torch.no_grad()
    def _follow_features(self, pooled: Tensor) -> None:
        """Running mean and variance of the mean patches (B, width) of a batch."""
        average([mean := pooled.mean(0)])  # of all processes, whose variances around it are averaged after the step
        self.feature_mean.lerp_(mean, 0.05)
        self.feature_variance.lerp_((pooled - self.feature_mean).square().mean(0), 0.05)

    def _paint(self, vectors: Tensor) -> Tensor:
        """(B, patches, code_dim) -> (B, 3, H, W), what is added to the mean frame."""
        picture = self.painter(rearrange(vectors, "b (h w) d -> b d h w", h=self.grid))
        size = self.observation_shape[1:]
        return picture if picture.shape[2:] == size else F.interpolate(picture, size=size)

    def _pixel_loss(self, frames: Tensor, vectors: Tensor) -> Tensor:
        return F.mse_loss(self._paint(vectors.detach()).float(), scale(frames) - self.mean_frame) / self.pixel_variance


def _painter(config: DINOConfig, pixels: int) -> nn.Module:
    """Grid of vectors -> picture of ``pixels`` a cell; it starts by painting nothing."""
    width = config.decoder_width
    last = nn.Conv2d(width, 3 * pixels**2, 1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(
        nn.Conv2d(config.code_dim, width, 3, padding=1), nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1), nn.GELU(), last, nn.PixelShuffle(pixels),
    )  # fmt: skip
