"""Weights in the layout of taming-transformers, by the names of a ``VQGAN``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from voc_rl.errors import VOCError, few
from voc_rl.quantizers.published import read_published
from voc_rl.quantizers.vqgan_network import VQGANConfig

_IGNORED = ("loss.", "discriminator.", "perceptual_loss.", "model_ema.")  # what belonged to training
# ours, theirs; in this order
_NAMES = {
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


def read_vqgan(path: str | Path) -> tuple[VQGANConfig, dict[str, Tensor]]:
    """Sizes and weights, by their names, of such a file; see ``VQGAN.from_published``."""
    tensors = {name: tensor for name, tensor in read_published(path).items() if not name.startswith(_IGNORED)}
    return _config(tensors, path), tensors


def _their_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace(".resample.1.", ".downsample.conv." if name.startswith("encoder.") else ".upsample.conv.")


def _config(tensors: Mapping[str, Tensor], path: str | Path) -> VQGANConfig:
    found = [(int(match[1]), match[2], int(match[3])) for name in tensors if (match := _DOWN.fullmatch(name))]
    levels = range(len({level for level, _, _ in found}))
    needed = {"encoder.conv_in.weight": 4, "encoder.conv_out.weight": 4, "quantize.embedding.weight": 2}
    needed |= {f"encoder.down.{i}.block.0.conv1.weight": 4 for i in levels or [0]}
    wrong = [name for name, n in needed.items() if name not in tensors or tensors[name].dim() != n]
    if wrong:
        raise VOCError(f"{path} is not a VQGAN: {few(wrong)} missing or of another shape than a layer's.")
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


def by_our_names(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors of a published file under the names of ``ours``, the state of a fresh ``VQGAN`` of its sizes.

    Raises:
        VOCError: names, shapes or dtypes that do not fit exactly.
    """
    own = {_their_name(name): (name, tensor) for name, tensor in ours.items() if name not in _OWN}
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unexpected:
        raise VOCError(f"{path} does not fit a VQGAN: missing {few(missing)}, unexpected {few(unexpected)}.")
    for name, tensor in tensors.items():
        needed = own[name][1].shape
        if tensor.shape != needed or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise VOCError(f"{path}: {name} is {kind} {tuple(tensor.shape)}; float {tuple(needed)} is needed.")
    return {own[name][0]: tensor.float() for name, tensor in tensors.items()}
