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

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.errors import VOCError, check_positive
from voc_rl.quantizers.base import Quantizer, check_codes
from voc_rl.quantizers.published import IMAGENET_MEAN, IMAGENET_STD, published_frames, read_published
from voc_rl.quantizers.vqvae import scale, unscale

CHUNK = 32  # frames that pass the network at once where no gradient is wanted: bounds memory
NORM_GROUPS = 32
USE_RATE = 0.03  # of the average of a code's use: without latents it is moved after 100 steps


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
        for name in (*sizes, "codebook_weight"):
            check_positive(getattr(self, name), name)
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


class VQGAN(Quantizer):
    """The quantizer ``vqgan``."""

    name = "vqgan"
    feature_dim = 0

    def __init__(self, observation_shape: tuple[int, int, int], config: VQGANConfig) -> None:
        super().__init__()
        if observation_shape[0] < 3 or observation_shape[0] % 3:
            raise VOCError(f"Observations of shape {observation_shape} are not stacked frames of 3 channels.")
        self.observation_shape, self.config = observation_shape, config
        self.stack, self.grid = observation_shape[0] // 3, config.side // config.reduction
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
        tensors = {n: t for n, t in read_published(path).items() if not n.startswith(_IGNORED)}
        config = _published_config(tensors, path)
        quantizer = cls((3 * stack, 84, 84), config)
        quantizer.load_state_dict({**quantizer.state_dict(), **_by_our_names(quantizer, tensors, path)})
        quantizer.fitted.fill_(True)
        return quantizer.eval()

    @torch.no_grad()
    def initialise(self, obs: Tensor, generator: torch.Generator) -> None:
        """Spread of the pixels, and codes drawn from the latents of some frames unless there are codes already."""
        frames = obs[:, -3:]
        pictures = torch.cat([self._pictures(part) for part in frames.split(CHUNK)])
        self.pixel_variance.copy_(pictures.sub_(pictures.mean(0)).square_().mean().clamp(min=1e-4))
        if self.fitted:
            return
        enough = -(-4 * self.codebook_size // self.grid**2)
        some = torch.randperm(len(frames), generator=generator)[:enough]
        latents = self._latents(frames[some.to(frames.device)]).flatten(0, 1)
        drawn = torch.randperm(len(latents), generator=generator)
        if len(latents) < self.codebook_size:
            drawn = torch.randint(len(latents), (self.codebook_size,), generator=generator)
        self.codebook.weight.copy_(latents[drawn[: self.codebook_size].to(latents.device)])
        self.fitted.fill_(True)

    def features(self, obs: Tensor) -> Tensor:
        """None, (B, 0): contexts are tokens alone, as in the paper."""
        return torch.zeros(len(obs), 0, device=obs.device)

    def latents(self, obs: Tensor) -> Tensor:
        latents = self._latents(rearrange(obs, "b (k c) h w -> (b k) c h w", c=3))
        return rearrange(latents, "(b k) n d -> b (k n) d", k=self.stack)

    @torch.no_grad()
    def quantize(self, latents: Tensor) -> Tensor:
        """float (..., code_dim) -> int64 (...), the codes whose vectors are nearest."""
        vectors = self.codebook.weight
        lengths = vectors.square().sum(1)
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 would confuse neighbours
            codes = [
                (part.square().sum(1, keepdim=True) + lengths - 2 * part @ vectors.T).argmin(1)
                for part in latents.float().flatten(0, -2).split(4096)
            ]
        return torch.cat(codes).view(latents.shape[:-1])

    def embed(self, codes: Tensor) -> Tensor:
        check_codes(codes, self)
        return self.codebook(codes)

    def code_vectors(self) -> Tensor:
        return self.codebook.weight.detach()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int64 (B, n_tokens) -> uint8 (B, 3K, H, W), every frame painted by itself."""
        vectors = rearrange(self.embed(codes), "b (k n) d -> (b k) n d", k=self.stack)
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
            self._move_unused(latents.detach().flatten(0, 1), codes.flatten(), generator)
        share = torch.bincount(codes.flatten(), minlength=self.codebook_size) / codes.numel()
        perplexity = torch.special.entr(share).sum().exp()
        numbers = {"pixels": pixels, "codebook": codebook, "commitment": commitment, "perplexity": perplexity}
        total = pixels + commitment + self.config.codebook_weight * codebook
        return total, {name: number.detach() for name, number in numbers.items()}

    @torch.no_grad()
    def _move_unused(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Codes that hardly any of the latents (N, code_dim) choose go to latents that no code serves well."""
        counts = torch.bincount(codes, minlength=self.codebook_size)
        self.use.lerp_(counts / len(codes), USE_RATE)
        unused = (self.use < 0.05 / self.codebook_size).nonzero().flatten()
        if len(unused):
            error = (latents - self.codebook.weight[codes]).square().sum(1).clamp(min=1e-12)
            drawn = torch.multinomial(error.cpu(), len(unused), replacement=True, generator=generator)
            self.codebook.weight[unused] = latents[drawn.to(latents.device)]
            self.use[unused] = 1 / self.codebook_size

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
        if not self.config.published:
            return unscale(pictures)
        shift = torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
        levels = (pictures + shift.to(pictures.device)[:, None, None]) * 255
        return levels.round().clamp(0, 255).to(torch.uint8)


def _read_back(size: int, side: int) -> Tensor:
    """int64 (size,): for every pixel of a frame the pixel of the picture that was read nearest to it.

    Resizing to the nearest pixel rounds down, so doing it twice would shift the frame by almost a pixel.
    """
    read = F.interpolate(torch.arange(float(size)).view(1, 1, -1), size=side)[0, 0]
    return (torch.arange(size)[:, None] - read).abs().argmin(1)


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


_IGNORED = ("loss.", "discriminator.", "perceptual_loss.", "model_ema.")  # what belonged to training
# ours, theirs; in this order
_PUBLISHED_NAMES = {
    "codebook.": "quantize.embedding.",
    "to_code.": "quant_conv.",
    "from_code.": "post_quant_conv.",
    "encoder.levels.": "encoder.down.",
    "decoder.levels.": "decoder.up.",
    ".blocks.": ".block.",
    ".shortcut.": ".nin_shortcut.",
    ".attention.": ".attn.",
    ".middle.0.": ".mid.block_1.",
    ".middle.1.": ".mid.attn_1.",
    ".middle.2.": ".mid.block_2.",
    ".query.": ".q.",
    ".key.": ".k.",
    ".value.": ".v.",
    ".output.": ".proj_out.",
    ".stem.": ".conv_in.",
    ".last_norm.": ".norm_out.",
    ".head.": ".conv_out.",
}
_DOWN = re.compile(r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\..*")
_OWN = ("fitted", "use", "pixel_variance")


def _published_name(name: str) -> str:
    for ours, theirs in _PUBLISHED_NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace(".resample.1.", ".downsample.conv." if name.startswith("encoder.") else ".upsample.conv.")


def _published_config(tensors: Mapping[str, Tensor], path: str | Path) -> VQGANConfig:
    found = [(int(match[1]), match[2], int(match[3])) for name in tensors if (match := _DOWN.fullmatch(name))]
    levels = range(len({level for level, _, _ in found}))
    needed = {"encoder.conv_in.weight": 4, "encoder.conv_out.weight": 4, "quantize.embedding.weight": 2}
    needed |= {f"encoder.down.{i}.block.0.conv1.weight": 4 for i in levels or [0]}
    wrong = [name for name, n in needed.items() if name not in tensors or tensors[name].dim() != n]
    if wrong:
        raise VOCError(f"{path} is not a VQGAN: {_few(wrong)} missing or of another shape than a layer's.")
    channels = tensors["encoder.conv_in.weight"].shape[0]
    widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
    if not channels or any(width % channels for width in widths):
        raise VOCError(f"{path}: levels of {widths} channels are not multiples of the {channels} of encoder.conv_in.")
    codebook_size, code_dim = tensors["quantize.embedding.weight"].shape
    try:
        return VQGANConfig(
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            residual_blocks=len({block for level, kind, block in found if (level, kind) == (0, "block")}),
            attention_levels=tuple(sorted({level for level, kind, _ in found if kind == "attn"})),
            latent_channels=tensors["encoder.conv_out.weight"].shape[0],
            codebook_size=codebook_size, code_dim=code_dim, published=True,
        )  # fmt: skip
    except VOCError as error:
        raise VOCError(f"{path}: {error}") from error


def _by_our_names(quantizer: VQGAN, tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors of a published file under our names; names and shapes must fit exactly."""
    own = {_published_name(name): (name, t) for name, t in quantizer.state_dict().items() if name not in _OWN}
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unexpected:
        raise VOCError(f"{path} does not fit a VQGAN: missing {_few(missing)}, unexpected {_few(unexpected)}.")
    for name, tensor in tensors.items():
        needed = own[name][1].shape
        if tensor.shape != needed or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise VOCError(f"{path}: {name} is {kind} {tuple(tensor.shape)}; float {tuple(needed)} is needed.")
    return {own[name][0]: tensor.float() for name, tensor in tensors.items()}


def _few(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
