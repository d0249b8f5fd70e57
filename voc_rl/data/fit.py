"""Whether some files make one dataset of whole episodes, and what they say together of how it was made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voc_rl.data.border import gaps
from voc_rl.data.hdf5 import FIRST, LAST, MID, Shard
from voc_rl.data.spec import DataSpec
from voc_rl.errors import VOCError

if TYPE_CHECKING:
    from voc_rl.data.episodes import Episodes

_MAKING = {"task": "task", "render": "render profile", "camera": "camera", "action_repeat": "action repeat"}  # in words
_SIMULATOR = ("backend", "mujoco")


def shared_spec(shards: Sequence[Shard]) -> DataSpec:
    """What all of some files say; a field in which they differ is left unsaid, but for versions of dm_control."""
    specs = {shard.spec for shard in shards}
    values = {f.name: {getattr(spec, f.name) for spec in specs} for f in fields(DataSpec)}
    if "" not in values["dm_control"]:  # that there is one, whichever, says what a step pays at most
        values["dm_control"] = {", ".join(sorted(values["dm_control"]))}
    return DataSpec(**{name: found.pop() for name, found in values.items() if len(found) == 1})


def warn_of_makings(shards: Sequence[Shard]) -> None:
    """Warn of files whose frames were drawn, or steps simulated, by something else than those of another file."""
    if pair := _of_two_makings(shards, _SIMULATOR):
        first, shard = pair
        others = first.spec.differences(shard.spec, _SIMULATOR)
        made = " and ".join(f"{name} {other} (not {one})" for name, one, other in others)
        warnings.warn(
            f"{shard.path} was made with {made}, other than {first.path}; frames or steps may differ slightly.",
            stacklevel=4,
        )


def _of_two_makings(shards: Sequence[Shard], names: Sequence[str]) -> tuple[Shard, Shard] | None:
    """The first two files that both say one of some names of their specs, and not the same; what is unsaid fits all."""
    for name in names:
        said = [shard for shard in shards if getattr(shard.spec, name) != getattr(DataSpec(), name)]
        for shard in said:
            if getattr(shard.spec, name) != getattr(said[0].spec, name):
                return said[0], shard
    return None


def check_fit(shards: Sequence[Shard]) -> None:
    """Refuse files that do not make one dataset.

    Raises:
        VOCError: other shapes than the first file's, two makings, or an episode whose beginning is in no file.
    """
    wide = [key for key in ("state", "physics", "unclipped_action") if all(key in shard.arrays for shard in shards)]
    for shard in shards:
        for what, value, first in (
            ("frames of shape", shard.frame_shape, shards[0].frame_shape),
            ("actions of size", shard.arrays["action"].shape[1], shards[0].arrays["action"].shape[1]),
            *((f"{key} of size", shard.arrays[key].shape[1], shards[0].arrays[key].shape[1]) for key in wide),
        ):
            if value != first:
                raise VOCError(f"{shard.path} has {what} {value}, but {shards[0].path} has {first}; keep them apart.")
    if pair := _of_two_makings(shards, tuple(_MAKING)):
        name, one, other = pair[0].spec.differences(pair[1].spec, tuple(_MAKING))[0]
        raise VOCError(f"{pair[1].path} has {_MAKING[name]} {other}, but {pair[0].path} has {one}; keep them apart.")
    folders = [place for place, (one, other) in enumerate(pairwise(shards), 1) if one.path.parent != other.path.parent]
    for place in (*folders, *gaps([(shard.path, shard.rows) for shard in shards])):
        before, shard = shards[place - 1 : place + 1]
        if shard.rows and shard.arrays["step_type"][0] != FIRST:
            raise VOCError(
                f"{shard.path} begins inside an episode, and {before.path.name} is not the file before it; "
                "the files between them are needed."
            )


def check_ends(dataset: Episodes, path: Path) -> None:
    """Warn of episodes without a last step, and of an action or a reward in a first row.

    Raises:
        VOCError: a last step inside an episode.
    """
    last = dataset.ends - 1
    if (np.delete(dataset.step_type, np.concatenate([dataset.starts, last])) != MID).any():
        raise VOCError(f"{path}: rows inside an episode have step type 2; each episode needs exactly one, at its end.")
    cut = int(((dataset.step_type != LAST) & ~dataset.terminal)[last].sum())
    if cut:
        warnings.warn(
            f"{path}: {cut} episode(s) without a last step are taken as cut by a time limit.",
            stacklevel=3,
        )
    acted = dataset.action[dataset.starts].any(1) | (dataset.reward[dataset.starts] != 0)
    if acted.any():
        warnings.warn(
            f"{path}: {acted.sum()} of {len(acted)} episodes have an action or a reward in their first row, where "
            "nothing led to: rows may be aligned to the next action, one step off.",
            stacklevel=3,
        )
