"""The public VQ-KD tokenizer of BEiT v2, by the names of a ``DINOTokenizer``."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.quantizers.dino_config import DINOConfig
from voc_rl.quantizers.published import read_published

PARTS = ("encoder.", "to_code.", "codebook.vectors")  # of a ``DINOTokenizer``, that such a file holds
# theirs, ours; a file has one of the two names of the last norm, by whether its model pools patches
_RENAMED = {
    "encode_task_layer.": "to_code.",
    "quantize.embedding.weight": "codebook.vectors",
    "encoder.fc_norm.": "encoder.norm.",
    ".gamma_1": ".ls1.gamma",
    ".gamma_2": ".ls2.gamma",
}
# what belonged to training
_IGNORED = re.compile(
    r"(decoder|decode_task_layer)\..*|(loss|teacher|scaling).*"
    r"|quantize\.(embedding\.)?(cluster_size|embed_avg|initted)"
)
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\..*")


def read_vqkd(path: str | Path, n_head: int) -> tuple[DINOConfig, dict[str, Tensor]]:
    """Sizes and weights of the public tokenizer; see ``DINOTokenizer.from_published``."""
    tensors = _renamed(read_published(path))
    return _config(tensors, path, n_head), tensors


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By our names, and without what belonged to training; what has no name of ours keeps its own."""
    kept = {}
    for name, tensor in tensors.items():
        if not _IGNORED.fullmatch(name):
            renamed = name
            for theirs, ours in _RENAMED.items():
                renamed = renamed.replace(theirs, ours)
            kept[name if renamed in tensors else renamed] = tensor.float()
    for name in [name for name in kept if name.endswith(".attn.q_bias")]:
        attention = name.removesuffix("q_bias")
        if attention + "v_bias" in kept and attention + "qkv.bias" not in kept:  # keys have no bias in this layout
            query, value = kept.pop(name), kept.pop(attention + "v_bias")
            kept[attention + "qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    return kept


def _config(tensors: dict[str, Tensor], path: str | Path, n_head: int) -> DINOConfig:
    needed = {"encoder.pos_embed": 3, "encoder.patch_embed.proj.weight": 4, "codebook.vectors": 2}
    blocks = [int(found[1]) for name in tensors if (found := _BLOCK.fullmatch(name))]
    if not blocks or any(name not in tensors or tensors[name].dim() != n for name, n in needed.items()):
        raise VOCError(
            f"{path} is not a VQ-KD tokenizer: encoder.pos_embed, encoder.patch_embed.proj.weight, encoder.blocks and "
            "quantize.embedding.weight are needed."
        )
    width, _, patch, _ = tensors["encoder.patch_embed.proj.weight"].shape
    if n_head < 1 or width % n_head:
        raise VOCError(f"n_head is {n_head}; {path} has a width of {width}, which it must divide.")
    codebook_size, code_dim = tensors["codebook.vectors"].shape
    return DINOConfig(
        width=width, depth=max(blocks) + 1, heads=n_head, patch=patch,
        side=math.isqrt(max(tensors["encoder.pos_embed"].shape[1] - 1, 1)) * patch,
        codebook_size=codebook_size, code_dim=code_dim,
        layer_scale="encoder.blocks.0.ls1.gamma" in tensors, published=True,
    )  # fmt: skip
