"""What the quantizer ``dino`` is trained with: a frozen teacher, and the decoder that is compared with it.

Vector-quantized knowledge distillation (VQ-KD; Peng et al. 2022, BEiT v2): a shallow transformer decodes the codes of
a picture into the features that a frozen teacher has at the same patches, and cosine distance compares the two.

Teachers. Either a timm backbone with weights that the user names, or a small vision transformer that learned from the
dataset's own frames by self-distillation (DINO; Caron et al. 2021): two shifted views of a frame, a student that
predicts what a slow average of itself says of the other view, centred and sharpened so that it cannot say one thing
of every frame.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from voc_rl.checkpoints import load_state_dict, load_tensors
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig, StepLog, Trainee, optimise
from voc_rl.precision import autocast, seeded
from voc_rl.quantizers.published import IMAGENET_MEAN, IMAGENET_STD, read_published
from voc_rl.quantizers.shift import random_shift

HEAD_WIDTH = 32  # of the attention heads of teachers trained here
TEACHER_DEPTH = 3
DOWNLOAD = "download"


def vision_transformer(
    side: int, patch: int, channels: int, width: int, depth: int, heads: int, layer_scale: bool = False
) -> nn.Module:
    """timm's plain ViT without a classifier: class token, learned positions, pre-norm blocks, a norm at the end.

    ``patch_tokens`` reads it.
    """
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=side, patch_size=patch, in_chans=channels, embed_dim=width, depth=depth, num_heads=heads,
        num_classes=0, global_pool="token", init_values=1e-5 if layer_scale else None,
    )  # fmt: skip


def patch_tokens(transformer: Any, pictures: Tensor) -> Tensor:
    """float (B, channels, side, side) -> (B, patches, width) in raster order, after the final norm."""
    return transformer.forward_features(pictures)[:, 1:]


def imagenet_frames(frames: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, side, side): (x / 255 - mean) / std with ImageNet's numbers."""
    pictures = frames.float()
    if pictures.shape[2:] != (side, side):
        pictures = F.interpolate(pictures, size=side)
    mean, std = (pictures.new_tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures / 255 - mean) / std


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 1 - cos over (..., D) and (..., D), in float32."""
    return (1 - F.cosine_similarity(a.float(), b.float(), dim=-1)).mean()


class CodeToFeatures(nn.Module):
    """The decoder of VQ-KD: vectors of codes (B, grid * grid, code_dim) -> teacher's features (B, grid * grid, out).

    One transformer block over the patches, then Linear-Tanh-Linear.
    """

    def __init__(self, grid: int, code_dim: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.grid = grid
        self.decoder = vision_transformer(grid, 1, code_dim, width, 1, heads)
        self.to_features = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))

    def forward(self, vectors: Tensor) -> Tensor:
        picture = rearrange(vectors, "b (h w) d -> b d h w", h=self.grid)
        return self.to_features(patch_tokens(self.decoder, picture))


class FrameTeacher(nn.Module):
    """A small frozen ViT over frames; ``train_teacher`` teaches it.

    Its features are centred: what all patches of all frames share would make any two of them look alike.
    """

    def __init__(self, side: int, patch: int, width: int) -> None:
        super().__init__()
        if width < 1 or width % HEAD_WIDTH:
            raise VOCError(f"teacher_width is {width}; a multiple of {HEAD_WIDTH} is needed for a self-distilled one.")
        self.side = side
        self.transformer = vision_transformer(side, patch, 3, width, TEACHER_DEPTH, width // HEAD_WIDTH)
        self.register_buffer("mean", torch.zeros(width))
        self.mean: Tensor
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, patches, width)."""
        return patch_tokens(self.transformer, imagenet_frames(frames, self.side)).float() - self.mean


def train_teacher(
    teacher: FrameTeacher,
    frames: Tensor,
    generator: torch.Generator,
    steps: int = 200,
    batch_size: int = 64,
    log: StepLog | None = None,
) -> None:
    """Teach ``teacher`` by self-distillation on uint8 frames (N, 3, H, W), in place; 0 steps leave it random.

    ``log`` takes the numbers of stage ``teacher``.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if steps:
        trainee = _SelfDistillation(teacher, frames, batch_size, seed)
        config = LoopConfig(steps=steps, batch_size=batch_size, learning_rate=5e-4, weight_decay=0.04)
        optimise(trainee, config, seed, "teacher", log=log)
        teacher.transformer.load_state_dict(trainee.slow[0].state_dict())
    teacher.mean.zero_()
    some = torch.randperm(len(frames), generator=generator, device=generator.device)[:512].to(frames.device)
    parts = [teacher(part).mean((0, 1)) * len(part) for part in frames[some].split(batch_size)]
    teacher.mean.copy_(torch.stack(parts).sum(0) / len(some))


class _SelfDistillation(Trainee):
    """What ``optimise`` trains: the student, a transformer and its head, after which the slow average follows.

    The head reads the mean of the patches rather than the class token: patch features are what is used afterwards.
    """

    prototypes, student_temperature, slow_temperature = 64, 0.1, 0.04
    momentum, center_momentum = 0.98, 0.9

    def __init__(self, teacher: FrameTeacher, frames: Tensor, batch_size: int, seed: int) -> None:
        self.frames, self.side, self.batch_size = frames, teacher.side, batch_size
        with seeded(torch.device("cpu"), seed):
            head = _PrototypeHead(len(teacher.mean), self.prototypes)
        self.fast = nn.ModuleList([deepcopy(teacher.transformer), head.to(teacher.mean.device)]).requires_grad_(True)
        self.slow = deepcopy(self.fast).requires_grad_(False)
        self.center = teacher.mean.new_zeros(self.prototypes)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.fast.parameters())

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(self.frames), (self.batch_size,), generator=generator, device=generator.device)
        frames = self.frames[rows.to(self.frames.device)].to(self.center.device)
        pad = max(frames.shape[-1] // 12, 1)
        views = torch.cat([random_shift(frames, pad, generator) for _ in range(2)])
        views = imagenet_frames(views, self.side)
        with autocast(self.fast):
            said = self._logits(self.fast, views) / self.student_temperature
            with torch.no_grad():
                logits = self._logits(self.slow, views)
        goal = ((logits - self.center) / self.slow_temperature).softmax(-1).roll(self.batch_size, 0)  # the other view
        self.center.lerp_(logits.mean(0), 1 - self.center_momentum)
        return -(goal * said.log_softmax(-1)).sum(-1).mean(), {}

    @staticmethod
    def _logits(networks: nn.ModuleList, views: Tensor) -> Tensor:
        transformer, head = networks
        return head(patch_tokens(transformer, views).mean(1)).float()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)


class _PrototypeHead(nn.Module):
    """(B, width) -> cosines with each prototype (B, prototypes)."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.prototypes = nn.Parameter(torch.randn(prototypes, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class TimmTeacher:
    """Any timm backbone, frozen. Not a module, so that its weights stay out of the quantizer's files.

    Args:
        name: timm's name of the model. weights: a file of its state dict (.safetensors, or a torch file, in which
            nothing is executed); "download": timm fetches its pretrained weights from the network.
        grid: patches along a side of the tokenizer's pictures. width: of the features, which must be the model's.

    Raises:
        VOCError: an unknown name, no weights, another width, or weights that do not fit.
    """

    def __init__(self, name: str, weights: str, grid: int, width: int) -> None:
        import timm

        if not timm.is_model(name):
            raise VOCError(f"timm has no model {name!r}; timm.list_models() lists those it has.")
        if not weights:
            raise VOCError(
                f"Teacher {name} has no weights; name a file of them, or {DOWNLOAD!r} to have timm fetch them."
            )
        self.grid = grid
        self.model = cast(Any, timm.create_model(name, pretrained=weights == DOWNLOAD, num_classes=0))
        if self.model.num_features != width:
            raise VOCError(f"teacher_width is {width}; {name} has features of width {self.model.num_features}.")
        if weights != DOWNLOAD:
            load_state_dict(self.model, self._without_head(weights), weights)
        self.model.eval().requires_grad_(False)
        settings = self.model.pretrained_cfg
        self.size = tuple(settings["input_size"][1:])
        self.normal = [torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std")]

    def _without_head(self, path: str) -> dict[str, Tensor]:
        tensors = load_tensors(Path(path), "teacher") if path.endswith(".safetensors") else read_published(Path(path))
        heads = self.model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        return {name: t for name, t in tensors.items() if not name.startswith(tuple(f"{head}." for head in heads))}

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, grid * grid, width)."""
        pictures = F.interpolate(frames.float() / 255, size=self.size, mode="bilinear", antialias=True)
        mean, std = (numbers.to(frames.device) for numbers in self.normal)
        features = self.model.to(frames.device).forward_features((pictures - mean) / std).float()
        if features.dim() == 3:
            tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
            features = rearrange(tokens, "b (h w) d -> b d h w", h=round(tokens.shape[1] ** 0.5))
        elif getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            features = rearrange(features, "b h w d -> b d h w")
        if features.shape[2:] != (self.grid, self.grid):
            features = F.interpolate(features, size=self.grid, mode="bilinear", antialias=True)
        return features.flatten(2).transpose(1, 2)
