"""Sizes and training of the quantizer ``dino``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from voc_rl.errors import VOCError, check_at_least, check_count, check_decay
from voc_rl.quantizers.base import check_codebook_size


@dataclass(frozen=True)
class DINOConfig:
    """Sizes of the network, and how it is trained. The defaults are the published sizes; ``small`` runs on a CPU.

    width, depth, heads: the encoder, a ViT. patch: pixels along a side of a patch; side: of the pictures that it sees.
    codebook_size, code_dim: number of codes, and width of their vectors.
    features: offer continuous features of frames, the mean of their patches. decoder_width: channels of the painter.
    decay: of the codebook's moving average. commitment: weight of the distance to the codes' vectors.
    layer_scale: a learned scale per channel on every branch of the encoder.
    published: inputs as the paper's code made them, and encoder and codebook frozen; only the pictures are trained.
    teacher: "" for a small ViT, self-distilled on the frames for teacher_steps before training, or "timm:NAME".
    teacher_weights: of a timm teacher: a file, or "download". teacher_width: of its features.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    side: int = 224
    codebook_size: int = 8192
    code_dim: int = 32
    features: bool = False
    decoder_width: int = 64
    decay: float = 0.99
    commitment: float = 1.0
    layer_scale: bool = False
    published: bool = False
    teacher: str = ""
    teacher_weights: str = ""
    teacher_width: int = 96
    teacher_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "side", "codebook_size", "code_dim", "decoder_width"):
            check_count(getattr(self, name), name)
        check_decay(self.decay, "decay")
        check_at_least(self.commitment, 0, "commitment")
        check_codebook_size(self.codebook_size)
        if self.width % self.heads:
            raise VOCError(f"The width {self.width} of a dino tokenizer is not a multiple of its {self.heads} heads.")
        if self.side % self.patch:
            raise VOCError(f"The side {self.side} of a dino tokenizer is not a multiple of its patch {self.patch}.")
        if self.teacher and not self.teacher.startswith("timm:"):
            raise VOCError(f"teacher is {self.teacher!r}; '' (self-distilled) or 'timm:NAME' is needed.")

    @classmethod
    def small(cls, **changes: Any) -> DINOConfig:
        """49 tokens per frame of 84 pixels, with continuous features."""
        sizes = {
            "width": 96, "depth": 3, "heads": 3, "patch": 12, "side": 84, "codebook_size": 256, "code_dim": 16,
            "features": True,
        }  # fmt: skip
        return cls(**{**sizes, **changes})
