"""GPT-2 weights in Hugging Face's names, as the paper's code saved them, by the names of our network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from voc_rl.checkpoints import load_torch_file
from voc_rl.errors import VOCError
from voc_rl.occupancy.contexts import OccupancyConfig

# what Hugging Face calls a block's parts, and what we call them
_PARTS = {
    "ln_1": "norm_1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm_2",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}
_TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # Conv1D keeps weights as (in, out)
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which older versions saved
_BLOCK = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")


def read_gpt2(
    path: Path, n_head: int, n_tokens: int | None, top_k: int | None
) -> tuple[OccupancyConfig, dict[str, Tensor]]:
    """Sizes and weights of a GPT-2 state dict; see ``OccupancyTransformer.from_published``."""
    tensors = _state_dict(path)
    try:
        vocabulary, width = tensors["wte.weight"].shape
        positions = len(tensors["wpe.weight"])
    except (KeyError, ValueError):
        raise VOCError(
            f"{path} is not a GPT-2 state dict: transformer.wte.weight and transformer.wpe.weight, both matrices, are "
            "needed."
        ) from None
    if n_tokens is not None and not 0 < 2 * n_tokens <= positions:
        raise VOCError(f"n_tokens is {n_tokens}; {path} has {positions} positions, for 1 to {positions // 2} tokens.")
    n_tokens = n_tokens or positions // 2
    layers = [int(found[1]) for name in tensors if (found := _BLOCK.fullmatch(name))]
    n_layer = max(layers, default=-1) + 1
    config = OccupancyConfig(vocabulary, n_tokens, n_layer=n_layer, n_head=n_head, width=width, ends=False, top_k=top_k)
    head = tensors.pop("lm_head.weight", tensors["wte.weight"])
    if not torch.equal(head, tensors["wte.weight"]):
        raise VOCError(f"{path}: lm_head.weight is not transformer.wte.weight; a tied head is needed.")
    return config, _renamed(tensors, 2 * n_tokens)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by their names without the prefix ``transformer.``, and without buffers."""
    loaded = load_torch_file(path, "GPT-2 file")
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise VOCError(f"{path} holds no state dict; names and tensors of a GPT-2 are needed.")
    named = {str(name).removeprefix("transformer."): tensor.float() for name, tensor in loaded.items()}
    return {name: tensor for name, tensor in named.items() if not _BUFFERS.fullmatch(name)}


def _renamed(tensors: Mapping[str, Tensor], positions: int) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if name == "wte.weight":  # our vocabulary has END as its last code
            found["codes.weight"] = torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
        elif name == "wpe.weight":
            found["positions.weight"] = tensor[:positions]
        elif name in ("ln_f.weight", "ln_f.bias"):
            found[name.replace("ln_f", "norm")] = tensor
        elif block and block[2] in _PARTS:
            turned = tensor.T if block[2] in _TRANSPOSED and block[3] == "weight" and tensor.dim() == 2 else tensor
            found[f"blocks.{block[1]}.{_PARTS[block[2]]}.{block[3]}"] = turned.contiguous()
        else:
            found[name] = tensor  # named as it is where it does not fit
    return found
