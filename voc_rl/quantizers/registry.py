"""Quantizers by name: building, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from voc_rl.checkpoints import as_json, load_state_dict, load_tensors, read_json, save_tensors, weights_of, write_json
from voc_rl.configs import from_dict
from voc_rl.data import DataSpec
from voc_rl.errors import VOCError
from voc_rl.precision import seeded, single_precision
from voc_rl.quantizers.base import Quantizer
from voc_rl.quantizers.dino import DINOTokenizer
from voc_rl.quantizers.dino_config import DINOConfig
from voc_rl.quantizers.musik import MUSIK, MUSIKConfig
from voc_rl.quantizers.vqgan import VQGAN
from voc_rl.quantizers.vqgan_network import VQGANConfig
from voc_rl.quantizers.vqvae import VQVAE, VQVAEConfig

FORMAT_VERSION = 1  # of a quantizer's files

# name -> (class, its config)
QUANTIZERS: dict[str, tuple[type[Quantizer], type[Any]]] = {
    "dino": (DINOTokenizer, DINOConfig),
    "musik": (MUSIK, MUSIKConfig),
    "vqgan": (VQGAN, VQGANConfig),
    "vqvae": (VQVAE, VQVAEConfig),
}


def known_quantizer(name: str) -> tuple[type[Quantizer], type[Any]]:
    """The class of a name, and of its config.

    Raises:
        VOCError: an unknown name.
    """
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise VOCError(
            f"Unknown quantizer {name!r}; accepted: {', '.join(sorted(QUANTIZERS))}; one of your own is "
            f"{_entered(name)}."
        )
    entry = QUANTIZERS[name]
    if not isinstance(entry, tuple) or len(entry) != 2:
        raise VOCError(f"QUANTIZERS[{name!r}] is {entry!r}; a quantizer is {_entered(name)}.")
    return entry


def _entered(name: str) -> str:
    return f"entered first: voc_rl.quantizers.QUANTIZERS[{name!r}] = (its class, the dataclass of its config)"


@single_precision()
def build_quantizer(name: str, observation_shape: tuple[int, int, int], config: Any = None) -> Quantizer:
    """A fresh quantizer; ``config`` is its dataclass, a mapping for it, or None for the defaults.

    Raises:
        VOCError: an unknown name, unknown config keys, frames that do not fit, or a class that calls itself otherwise.
    """
    cls, config_cls = known_quantizer(name)
    if not isinstance(config, config_cls):
        config = from_dict(config_cls, {} if config is None else config, f"config of quantizer {name}")
    quantizer = cls(observation_shape, config)
    if quantizer.name != name:  # by which its files would be read
        raise VOCError(f"QUANTIZERS[{name!r}] calls itself {quantizer.name!r}; its `name` has to be {name!r}.")
    return quantizer


def save_quantizer(quantizer: Quantizer, folder: str | Path, spec: DataSpec | None = None) -> None:
    """Write quantizer.json and quantizer.safetensors into ``folder``; ``spec``: how its training frames were made.

    Raises:
        VOCError: one that ``load_quantizer`` could not make again.
    """
    if quantizer.name not in QUANTIZERS:
        raise VOCError(
            f"No quantizer {quantizer.name!r} is known, so it could not be loaded again; it has to be "
            f"{_entered(quantizer.name)}."
        )
    description = as_json({  # refused before a file is written
        "format_version": FORMAT_VERSION,
        "name": quantizer.name,
        "observation_shape": list(quantizer.observation_shape),
        "config": asdict(quantizer.config),
        **({} if spec is None else {"spec": asdict(spec)}),
    })  # fmt: skip
    save_tensors(Path(folder) / "quantizer.safetensors", weights_of(quantizer))
    write_json(Path(folder) / "quantizer.json", description)


@seeded(torch.device("cpu"), 0)  # weights that are read are not drawn from the caller's random numbers before
@single_precision()
def load_quantizer(folder: str | Path) -> Quantizer:
    """Read a quantizer that ``save_quantizer`` wrote, in eval mode, on the CPU.

    Raises:
        VOCError: missing or damaged files, another format version, or tensors that do not fit the config.
    """
    path = Path(folder) / "quantizer.json"
    description = read_json(path, "quantizer description")
    check_version(description, path)
    try:
        shape = description["observation_shape"]
        if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) for n in shape):
            raise VOCError(f"{path}: observation_shape is {shape!r}; three whole numbers (3K, H, W) are needed.")
        quantizer = build_quantizer(description["name"], (shape[0], shape[1], shape[2]), description["config"])
    except KeyError as error:
        raise VOCError(f"{path} lacks the key {error}.") from error
    weights = Path(folder) / "quantizer.safetensors"
    load_state_dict(quantizer, load_tensors(weights), str(weights))
    return quantizer.eval()


def check_version(description: Mapping[str, Any], path: Path, version: int = FORMAT_VERSION) -> None:
    """Refuse files of another format version."""
    found = description.get("format_version")
    if found != version:
        raise VOCError(f"{path} has format version {found!r}; this voc_rl reads version {version}: make it anew.")
