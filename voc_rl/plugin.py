"""What environment wrappers and agents share: a VOC given as a run folder, and its features as flat vectors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.errors import VOCError, check_choice, check_observations
from voc_rl.model import VOC
from voc_rl.model_files import DESCRIPTION, WEIGHTS
from voc_rl.precision import as_tensor, autocast
from voc_rl.quantizers.base import check_codes

Features = Literal["context", "successor", "tokens"]
FEATURES: tuple[Features, ...] = ("context", "successor", "tokens")
Seen = Features | Literal["codes"]  # what a wrapper can show instead of frames
FEATURE_SAMPLES = 16  # futures per state behind the successor features
LARGEST = 10.0  # standard deviations; keeps what a frame unlike the training data shows in bounds


def open_voc(voc: VOC | str | Path) -> VOC:
    """A VOC itself, or the one of a run folder; a folder is loaded once per process and shared: do not train it.

    Raises:
        VOCError: something else, or a folder that is missing, damaged or holds no VOC.
    """
    if isinstance(voc, str | Path):
        folder = Path(voc)
        try:
            changed = tuple((folder / name).stat().st_mtime_ns for name in (DESCRIPTION, WEIGHTS))
        except PermissionError as error:
            raise VOCError(f"{folder} cannot be read (permission denied).") from error
        except OSError:
            raise VOCError(
                f"{folder} holds no VOC ({DESCRIPTION} and {WEIGHTS} are needed); give a run folder that "
                "`voc-rl demo`, `voc-rl train` or VOC.save wrote."
            ) from None
        return _load(folder.resolve(), changed)
    if not all(hasattr(voc, name) for name in ("value", "observation_shape", "gamma", "spec")):
        raise VOCError(f"voc is {type(voc).__name__}; a VOC or the path of a run folder is needed.")
    return voc


@lru_cache(maxsize=4)
def _load(folder: Path, changed: tuple[int, ...]) -> VOC:
    with torch.random.fork_rng(devices=[]):  # a seeded agent is the same whether the VOC is loaded now or was before
        return VOC.load(folder)


def pixels_of(seen: Any) -> Any:
    """The frames of an observation, of a batch of them or of their space: what a Dict has under "pixels", else all."""
    named = isinstance(seen, Mapping) and "pixels" in set(seen)  # `in` of a space asks for its members
    return seen["pixels"] if named else seen


def check_space(space: Any, shape: tuple[int, int, int], whose: str) -> None:
    """An observation space (a Gymnasium ``Box``) of uint8 frames of ``shape`` (3K, H, W).

    Raises:
        VOCError: another space; says how to get there.
    """
    found = getattr(space, "shape", None)
    if found == shape and space.dtype == np.uint8:
        return
    channels, height, width = shape
    hint = f"PixelObservation(env, size={height}, stack={channels // 3}) makes them"
    if height != width:
        hint = "PixelObservation makes square ones alone, so the environment has to return these"
    if found == (channels // 3, 3, height, width):
        hint = "join the first two axes (gymnasium.wrappers.ReshapeObservation)"
    elif found == (height, width, channels):
        hint = "put the channels first"
    elif found == shape and np.issubdtype(space.dtype, np.floating):
        hint = "leave them as they are drawn, whole numbers from 0 to 255 (under VecNormalize by norm_obs=False)"
    elif len(found or ()) == 1 and np.issubdtype(space.dtype, np.floating):
        hint += (
            " of an environment that renders (render_only=False keeps the state beside them), and a value wrapper has "
            "to show features='codes' or the frames too"
        )
    elif isinstance(space, Mapping):
        hint += ", with render_only=False beside what else is observed, and those in a Dict are read under 'pixels'"
    raise VOCError(
        f"{whose} observations are {f'{space.dtype} {found}' if found else space}, but this VOC reads uint8 {shape} "
        f"frames; {hint}."
    )


def shows_codes(space: Any, voc: VOC) -> bool:
    """Whether observations of a space are what a VOC reads of frames, ``codes_as_vectors``, and not the frames."""
    shape = getattr(space, "shape", None) or ()
    return len(shape) == 1 and np.issubdtype(space.dtype, np.floating) and shape == (codes_size(voc),)


def check_readable(space: Any, voc: VOC, whose: str) -> None:
    """An observation space of the VOC's frames, or of their codes (``shows_codes``).

    Raises:
        VOCError: another space; says how to get there.
    """
    if not shows_codes(space, voc):
        check_space(space, voc.observation_shape, whose)


def codes_size(voc: VOC) -> int:
    """Width of ``codes_as_vectors``."""
    return voc.quantizer.n_tokens + voc.occupancy.config.feature_dim


def codes_as_vectors(codes: Tensor, features: Tensor | None) -> Tensor:
    """All that a VOC reads of frames (``VOC.context``) as float32 (B, D): the codes' numbers, then the features as the
    quantizer gives them. ``read`` takes them apart again."""
    parts = [codes.float()] if features is None else [codes.float(), features.float()]
    return torch.cat(parts, 1)


def read(voc: VOC, obs: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
    """Codes int64 and features (or None) of frames uint8 (B, 3K, H, W), or of their ``codes_as_vectors``, float (B, D).

    Where the VOC is.

    Raises:
        VOCError: other observations, or codes that something changed on the way.
    """
    rows = as_tensor(obs)
    if not (rows.ndim == 2 and rows.is_floating_point() and rows.shape[1] == codes_size(voc)):
        check_observations(rows, voc.observation_shape)
        return voc.context(obs)
    n = voc.quantizer.n_tokens
    codes = rows[:, :n].to(voc.device).long()
    if not torch.equal(codes.to(rows.dtype), rows[:, :n].to(voc.device)):
        raise VOCError("The codes in the observations are no whole numbers; they must not be scaled (VecNormalize).")
    check_codes(codes, voc.quantizer)
    return codes, rows[:, n:].to(voc.device, torch.float32) if voc.occupancy.config.feature_dim else None


def feature_size(voc: VOC, kind: Features) -> int:
    """Width of ``feature_vectors``."""
    check_choice(kind, FEATURES, "kind of features")
    if kind == "context":
        return voc.occupancy.config.width + voc.occupancy.config.feature_dim
    return voc.quantizer.n_tokens * voc.quantizer.code_dim


def feature_vectors(voc: VOC, obs: np.ndarray | Tensor, kind: Features) -> Tensor:
    """Features float32 (B, D) of observations, each a function of its observation alone: of frames uint8
    (B, 3K, H, W), or of their codes (``codes_as_vectors``).

    Computed where the VOC is. But for rounding: batches above ``precision.SMALL_BATCH`` are computed in bfloat16 where
    the processor has it.

    - ``context``: the occupancy network's last output of the context, then the quantizer's continuous features in
      standard deviations of the training data, cut at 10 (the value head reads the same, uncut).
    - ``tokens``: the vectors of the codes.
    - ``successor``: successor features times 1 - gamma (the mean future's vectors), of 16 sampled futures drawn with
      the same random numbers for every state. Five to eight times the cost of the others, of frames.

    Gradients reach the occupancy network (``context``) and the quantizer's encoder, straight through the rounding
    (``tokens``, of frames); wrap the call in ``torch.no_grad()`` where none are wanted.

    Raises:
        VOCError: another kind, or observations of another shape or dtype.
    """
    check_choice(kind, FEATURES, "kind of features")
    codes, features = read(voc, obs)
    if kind == "tokens" and torch.is_grad_enabled() and obs.ndim == 4:  # straight-through (Bengio et al. 2013)
        with autocast(voc.quantizer):
            latents = voc.quantizer.latents(as_tensor(obs).to(voc.device))
        return (latents + (voc.quantizer.embed(codes) - latents).detach()).flatten(1).float()
    return vectors_of_codes(voc, codes, features, kind)


def vectors_of_codes(voc: VOC, codes: Tensor, features: Tensor | None, kind: Features) -> Tensor:
    """``feature_vectors`` of states that are already codes (B, n_tokens) and features (``VOC.context``)."""
    if kind == "tokens":
        return voc.quantizer.embed(codes).flatten(1).float()
    if kind == "successor":
        psi = voc.successor_features_of_codes(codes, features, FEATURE_SAMPLES, common=True)
        return torch.from_numpy(psi).to(voc.device) * (1.0 - voc.gamma)
    model = voc.occupancy
    with autocast(model, len(codes)):
        last = model.last(codes, features, voc.condition(len(codes))).float()
    if features is None:
        return last
    return torch.cat([last, model.standard(features).clamp(-LARGEST, LARGEST)], 1)


def pictures_of(voc: VOC, codes: Tensor) -> np.ndarray:
    """Newest frames uint8 (N, 3, H, W) of futures int64 (N, n_tokens); black where the episode had ended before."""
    ended = codes[:, 0] == voc.occupancy.config.end_code
    decoded = voc.quantizer.decode(codes.masked_fill(ended[:, None], 0)).detach().cpu().numpy()[:, -3:]
    return np.where(ended.cpu().numpy()[:, None, None, None], np.uint8(0), decoded)
