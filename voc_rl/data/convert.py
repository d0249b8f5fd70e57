"""Turn a dataset of any format into a folder of ours, an episode at a time; a conversion that was cut goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from voc_rl.checkpoints import hold_folder, read_json, write_json
from voc_rl.data.fit import check_fit
from voc_rl.data.hdf5 import Episode, episode_shard, read_shard, write_episode
from voc_rl.data.spec import DataSpec
from voc_rl.errors import VOCError

SETTINGS = "convert.json"


def write_folder(
    out: str | Path, episodes: Callable[[int], Iterator[tuple[Episode, DataSpec]]], settings: dict[str, Any]
) -> int:
    """Write episodes as ``episode_000000.hdf5`` and so on; ``out`` appears when all are there.

    Until then they lie in a hidden folder beside it, from which the same call goes on; one without an episode is
    removed.

    Args:
        out: a folder that does not exist yet. settings: what makes the episodes; kept as ``convert.json``.
        episodes: given a number, all episodes from that one on.

    Returns:
        The number of episodes.

    Raises:
        VOCError: a folder that exists or that another process is writing, a cut conversion of something else, or
            episodes that are malformed, do not fit the first one, or none.
    """
    out = Path(out)
    partial = out.parent / f".{out.name}.part"
    _check_free(out)
    with hold_folder(partial, "folder for episodes"):
        try:
            _check_free(out)  # another conversion may have ended since
            return _write(out, partial, episodes, settings)
        except BaseException:
            if not _file(partial, 0).exists():  # nothing to go on from
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _check_free(out: Path) -> None:
    if out.exists():
        raise VOCError(f"{out} exists already; choose another folder.")


def _write(
    out: Path, partial: Path, episodes: Callable[[int], Iterator[tuple[Episode, DataSpec]]], settings: dict[str, Any]
) -> int:
    if not _file(partial, 0).exists():
        write_json(partial / SETTINGS, settings)
    elif read_json(partial / SETTINGS, "settings of a conversion") != settings:
        raise VOCError(
            f"{partial} holds a cut conversion of something else, or of files that have changed since; delete it, or "
            "choose another out."
        )
    count = 0
    while _file(partial, count).exists():
        count += 1
    first = replace(read_shard(_file(partial, 0)), path=_name(out, 0)) if count else None
    for episode, spec in episodes(count):
        made = episode_shard(episode, _name(out, count), spec)
        first = first or made
        check_fit([first, made])  # else the folder could not be opened
        write_episode(_file(partial, count), episode, spec)
        count += 1
    if count == 0:
        raise VOCError(f"{settings} gave no episode; at least one is needed.")
    for leftover in (*partial.glob(".episode_*.part"), partial / ".lock"):
        leftover.unlink(missing_ok=True)
    os.replace(partial, out)
    return count


def _name(out: Path, number: int) -> Path:
    """What messages call an episode."""
    return Path(f"{out}, episode {number}")


def _file(folder: Path, number: int) -> Path:
    return folder / f"episode_{number:06d}.hdf5"
