"""A VOC on disk: two descriptions (JSON) and two weight files (safetensors)."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from voc_rl.checkpoints import FORMAT_VERSION, load_state_dict, load_tensors, read_json, save_tensors, write_json
from voc_rl.configs import from_dict, to_dict
from voc_rl.data import DataSpec
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, ValueHead
from voc_rl.quantizers import Quantizer, load_quantizer, save_quantizer
from voc_rl.quantizers.registry import check_version
from voc_rl.values import RewardConfig, RewardHead

DESCRIPTION = "voc.json"
WEIGHTS = "voc.safetensors"


@dataclass(frozen=True)
class Parts:
    """What a VOC is made of; see ``voc_rl.VOC``."""

    quantizer: Quantizer
    occupancy: OccupancyTransformer
    reward_head: RewardHead
    value_head: ValueHead | None
    gamma: float
    spec: DataSpec


def save_parts(folder: str | Path, voc: Parts) -> None:
    """Write ``voc`` into ``folder``."""
    folder = Path(folder)
    save_quantizer(voc.quantizer, folder)
    parts: dict[str, torch.nn.Module] = {"occupancy": voc.occupancy, "reward": voc.reward_head}
    if voc.value_head is not None:
        parts["value"] = voc.value_head
    tensors = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    save_tensors(folder / WEIGHTS, tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "gamma": voc.gamma,
        "quantizer": weights_mark(voc.quantizer),
        "spec": asdict(voc.spec),
        "occupancy": to_dict(voc.occupancy.config),
        "reward": to_dict(voc.reward_head.config),
        "value": voc.value_head and {"hidden": voc.value_head.hidden, "members": voc.value_head.members},
    }
    write_json(folder / DESCRIPTION, description)


def load_parts(folder: str | Path) -> Parts:
    """Read what ``save_parts`` wrote; loading never executes code from the files.

    Raises:
        VOCError: missing or damaged files, another format version, or weights of another quantizer.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION, "VOC description")
    check_version(description, folder / DESCRIPTION)
    quantizer = load_quantizer(folder)
    try:
        config = from_dict(OccupancyConfig, description["occupancy"], "occupancy")
        reward_config = from_dict(RewardConfig, description["reward"], "reward")
        spec = from_dict(DataSpec, description["spec"], "spec")
        gamma, value = description["gamma"], description["value"]
        if value and set(value) != {"hidden", "members"}:
            raise TypeError(f"value has the keys {sorted(value)}")
    except KeyError as error:
        raise VOCError(f"{folder / DESCRIPTION} lacks the key {error}.") from error
    except TypeError as error:
        raise VOCError(f"{folder / DESCRIPTION} is damaged: {error}.") from error
    if (config.codebook_size, config.n_tokens) != (quantizer.codebook_size, quantizer.n_tokens):
        raise VOCError(
            f"{folder}: the occupancy network speaks {config.n_tokens} tokens of {config.codebook_size} codes, the "
            f"quantizer {quantizer.n_tokens} of {quantizer.codebook_size}; they belong to different models."
        )
    if description.get("quantizer", mark := weights_mark(quantizer)) != mark:
        raise VOCError(
            f"{folder}: quantizer.safetensors is not the quantizer that this VOC was trained with; "
            "they belong to different models."
        )
    occupancy = OccupancyTransformer(config)
    reward_head = RewardHead(quantizer.n_tokens, quantizer.code_dim, reward_config)
    value_head = ValueHead(config.width, config.feature_dim, **value) if value else None
    _load_weights(folder / WEIGHTS, {"occupancy": occupancy, "reward": reward_head, "value": value_head})
    return Parts(quantizer, occupancy, reward_head, value_head, gamma, spec)


def weights_mark(module: torch.nn.Module) -> str:
    """A short hash of the weights of ``module``."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _load_weights(path: Path, parts: dict[str, torch.nn.Module | None]) -> None:
    tensors = load_tensors(path)
    known = {name for name, module in parts.items() if module is not None}
    unexpected = sorted({name.split(".")[0] for name in tensors} - known)
    if unexpected:
        raise VOCError(f"{path} holds unexpected parts: {', '.join(unexpected)}.")
    for name in known:
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        load_state_dict(parts[name], own, f"{path} ({name})")
