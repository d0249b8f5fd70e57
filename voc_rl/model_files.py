"""The parts of a VOC, and how they lie on disk: two descriptions (JSON) and two weight files (safetensors)."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from voc_rl.checkpoints import as_json, load_state_dict, load_tensors, read_json, save_tensors, weights_of, write_json
from voc_rl.configs import from_dict
from voc_rl.data import DataSpec
from voc_rl.errors import VOCError, check_gamma, known_gamma
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, ValueHead
from voc_rl.occupancy.decoding import forget
from voc_rl.precision import as_device, device_of, seeded, single_precision
from voc_rl.quantizers import Quantizer, load_quantizer, save_quantizer
from voc_rl.quantizers.registry import check_version
from voc_rl.values import RewardConfig, RewardHead

DESCRIPTION = "voc.json"
WEIGHTS = "voc.safetensors"
FORMAT_VERSION = 2  # of the description and its weights; the quantizer's files have their own


P = TypeVar("P", bound="Parts")


class Parts:
    """What a VOC is made of.

    Attributes:
        quantizer, occupancy, reward_head, value_head (None when trained without): the parts, in eval mode.
        spec: how its training frames were made.

    Raises:
        VOCError: an occupancy network of other codes than the quantizer's, or no reward head.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        occupancy: OccupancyTransformer,
        reward_head: RewardHead,
        value_head: ValueHead | None,
        gamma: float,
        spec: DataSpec,
    ) -> None:
        if reward_head is None:
            raise VOCError(
                "A VOC needs a reward head; voc_rl.values.fit_reward_head fits one to the rewards of episodes."
            )
        _check_codes_fit(quantizer, occupancy.config, "The parts of a VOC")
        self.quantizer, self.occupancy = quantizer.eval(), occupancy.eval()
        self.reward_head, self.value_head = reward_head.eval(), None if value_head is None else value_head.eval()
        self._gamma, self.spec = check_gamma(gamma), spec

    @property
    def gamma(self) -> float:
        """The discount that is meant where none is asked; its parts have learned it, so it cannot be set."""
        return self._gamma

    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        return device_of(self.occupancy)

    def to(self, device: torch.device | str) -> Self:
        """Move all networks to a device ("auto", "cpu", "cuda" or one of PyTorch's), in place.

        A model that shares networks with this one (``VOC.fit_reward``) is then on two devices: move it too.
        """
        there = as_device(device)
        for part in (self.quantizer, self.occupancy, self.reward_head, self.value_head):
            if part is not None:
                part.to(there)
        forget(self.occupancy)  # what a GPU kept to sample from it
        return self

    @property
    def gammas(self) -> tuple[float, float]:
        """Smallest and largest discount that its network knows; hops reach larger ones."""
        return self.occupancy.config.gammas or (self.gamma, self.gamma)

    def resolve_gamma(self, gamma: float | None) -> float:
        """The discount that is meant: the model's own where none is asked, and where one differs by rounding alone."""
        return self.gamma if gamma is None else known_gamma(gamma, self.gamma, *self.gammas)

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """Shape of an observation, (3K, H, W)."""
        return self.quantizer.observation_shape

    def check_spec(self, spec: DataSpec, whose: str = "this data") -> None:
        """Warn where frames were made in another way than those the model was trained on; ``whose`` they are."""
        _compare_specs(self.spec, spec, whose)


def _check_codes_fit(quantizer: Quantizer, config: OccupancyConfig, where: str) -> None:
    if (config.codebook_size, config.n_tokens) != (quantizer.codebook_size, quantizer.n_tokens):
        raise VOCError(
            f"{where}: the occupancy network speaks {config.n_tokens} tokens of {config.codebook_size} codes, the "
            f"quantizer {quantizer.n_tokens} of {quantizer.codebook_size}; they belong to different models."
        )


def check_spec_of(folder: str | Path, spec: DataSpec) -> None:
    """Warn as ``Parts.check_spec`` does, by what the VOC of a folder says, or else its quantizer, if that says it.

    Raises:
        VOCError: a damaged description.
    """
    for name, what in ((DESCRIPTION, "VOC"), ("quantizer.json", "quantizer")):
        if (path := Path(folder) / name).exists():
            trained = from_dict(DataSpec, read_json(path, f"{what} description").get("spec", {}), "spec")
            _compare_specs(trained, spec, "this data", what)
            break


def _compare_specs(trained: DataSpec, spec: DataSpec, whose: str, what: str = "VOC") -> None:
    for name, mine, other in trained.differences(spec):
        warnings.warn(f"The {what} was trained with {name} {mine!r}, {whose} has {other!r}.", stacklevel=3)


def save_parts(folder: str | Path, voc: Parts) -> None:
    """Write ``voc`` into ``folder``; its description comes last, and says of which weights it is."""
    folder = Path(folder)
    parts: dict[str, torch.nn.Module] = {"occupancy": voc.occupancy, "reward": voc.reward_head}
    if (head := voc.value_head) is not None:
        parts["value"] = head
    tensors = {f"{part}.{name}": t for part, module in parts.items() for name, t in weights_of(module).items()}
    occupancy = as_json(asdict(voc.occupancy.config))
    description = as_json({  # refused before a file is written, or those of an older VOC would be lost
        "format_version": FORMAT_VERSION,
        "gamma": voc.gamma,
        "quantizer": weights_mark(voc.quantizer),
        "weights": (mark := tensors_mark(tensors)),
        "discounts": _discounts_mark(mark, voc.gamma, occupancy["gammas"]),
        "spec": asdict(voc.spec),
        "occupancy": occupancy,
        "reward": asdict(voc.reward_head.config),
        "reward_features": voc.reward_head.feature_dim,
        "value": None if head is None else {"hidden": head.hidden, "members": head.members},
    })  # fmt: skip
    save_quantizer(voc.quantizer, folder)
    save_tensors(folder / WEIGHTS, tensors)
    write_json(folder / DESCRIPTION, description)


@seeded(torch.device("cpu"), 0)  # weights that are read are not drawn from the caller's random numbers before
@single_precision()
def load_parts(folder: str | Path, kind: type[P]) -> P:
    """Read what ``save_parts`` wrote, as an object of ``kind``; loading never executes code from the files.

    Raises:
        VOCError: missing or damaged files, another format version, or weights of another quantizer or VOC, as they lie
            there while one is saved over another.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION, "VOC description")
    check_version(description, folder / DESCRIPTION, FORMAT_VERSION)
    quantizer = load_quantizer(folder)
    try:
        config = from_dict(OccupancyConfig, description["occupancy"], "occupancy")
        reward_config = from_dict(RewardConfig, description["reward"], "reward")
        if (reward_features := description["reward_features"]) not in (0, quantizer.feature_dim):
            raise TypeError(f"reward_features is {reward_features!r}, the quantizer's are {quantizer.feature_dim}")
        spec = from_dict(DataSpec, description["spec"], "spec")
        gamma, value = description["gamma"], description["value"]
        if value and set(value) != {"hidden", "members"}:
            raise TypeError(f"value has the keys {sorted(value)}")
    except KeyError as error:
        raise VOCError(f"{folder / DESCRIPTION} lacks the key {error}.") from error
    except TypeError as error:
        raise VOCError(f"{folder / DESCRIPTION} is damaged: {error}.") from error
    _check_codes_fit(quantizer, config, str(folder))
    if description.get("quantizer", mark := weights_mark(quantizer)) != mark:
        raise VOCError(
            f"{folder}: quantizer.safetensors is not the quantizer that this VOC was trained with; "
            "they belong to different models, train the VOC again."
        )
    occupancy = OccupancyTransformer(config)
    reward_head = RewardHead(quantizer.n_tokens, quantizer.code_dim, reward_config, reward_features)
    value_head = ValueHead(config.width, config.feature_dim, **value) if value else None
    tensors = load_tensors(folder / WEIGHTS)
    if description.get("weights", mark := tensors_mark(tensors)) != mark:
        raise VOCError(
            f"{folder}: {WEIGHTS} holds other weights than {DESCRIPTION} was written for (one VOC is being saved over "
            "another, or that was cut); load it again later, or train the VOC again."
        )
    if description.get("discounts", mark := _discounts_mark(mark, gamma, config.gammas)) != mark:
        raise VOCError(
            f"{folder / DESCRIPTION} has another gamma or other gammas than this VOC was trained for; undo that, and "
            "ask for other discounts by value(obs, gamma=...), or train for them."
        )
    _load_weights(folder / WEIGHTS, tensors, {"occupancy": occupancy, "reward": reward_head, "value": value_head})
    return kind(quantizer, occupancy, reward_head, value_head, gamma, spec)


def _discounts_mark(weights: str, gamma: float, gammas: Sequence[float] | None) -> str:
    """A short hash of the discounts that weights with the mark ``weights`` know."""
    return hashlib.sha256(json.dumps([weights, gamma, gammas]).encode()).hexdigest()[:16]


def weights_mark(*modules: torch.nn.Module | None) -> str:
    """Short hashes of the weights of modules, joined; a missing one (None) has none."""
    return "".join(tensors_mark(weights_of(module)) for module in modules if module is not None)


def tensors_mark(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _load_weights(path: Path, tensors: Mapping[str, Tensor], parts: dict[str, torch.nn.Module | None]) -> None:
    known = {name for name, module in parts.items() if module is not None}
    unexpected = sorted({name.split(".")[0] for name in tensors} - known)
    if unexpected:
        raise VOCError(f"{path} holds unexpected parts: {', '.join(unexpected)}.")
    for name in known:
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        load_state_dict(parts[name], own, f"{path} ({name})")
