"""V-D4RL's datasets: HDF5 shards of 84 px frames, and folders of 64 px episodes (``voc_rl.data.vd4rl_npz``).

A shard has ``observation`` (N, 3, 84, 84) uint8, ``action``, ``reward``, ``discount`` and ``step_type`` (float64: 0,
1, 2), rows aligned as in ``voc_rl.data.hdf5``, episodes one after another. Malformed episodes exist in the wild: they
are left out with a count and a warning, where our own files are refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from voc_rl.data.border import data_files, gaps
from voc_rl.data.episodes import Episodes
from voc_rl.data.fit import check_ends
from voc_rl.data.hdf5 import (
    FIRST,
    FRAMES,
    LAST,
    MID,
    SUFFIXES,
    Shard,
    check_shape,
    checked_columns,
    hdf5_files,
    new_hdf5,
    read_raw,
)
from voc_rl.data.malformed import single_rows, without
from voc_rl.data.vd4rl_npz import open_npz
from voc_rl.errors import VOCError
from voc_rl.progress import progress_bar

_HEADLESS = "rows before its first step type 0 belong to no episode"


def open_vd4rl(path: str | Path, stack: int = 3, untrusted: bool = False) -> Episodes:
    """Open a folder of V-D4RL (``84px`` or ``64px``), or one file of it.

    Raises:
        VOCError: nothing of V-D4RL there, no whole episode, damaged files, or files that do not fit each other.
    """
    path = Path(path)
    if not path.exists():
        raise VOCError(f"{path} does not exist; a folder of V-D4RL (84px or 64px) is needed.")
    archives, shards = vd4rl_files(path, untrusted)
    if archives:
        return open_npz(archives, path, stack)
    inside = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    if path.is_dir() and not shards and inside:
        raise VOCError(f"{path} holds the folders {', '.join(inside)}; name one that holds .hdf5 or .npz files.")
    return _open_shards(path, stack, untrusted)


def vd4rl_files(path: Path, untrusted: bool = False) -> tuple[list[Path], list[Path]]:
    """The .npz files (64 px) and the HDF5 files (84 px) that a path stands for, of which there is one kind.

    Raises:
        VOCError: a folder with both, or ``untrusted``, and a file is a link that leaves the folder.
    """
    if not path.is_dir():
        return ([path], []) if path.suffix == ".npz" else ([], [path])
    archives, shards = data_files(path, (".npz",), untrusted), data_files(path, SUFFIXES, untrusted)
    if archives and shards:
        raise VOCError(f"{path} holds .npz and .hdf5 files; 64 px and 84 px episodes are two datasets, open one.")
    return archives, shards


def _open_shards(path: Path, stack: int, untrusted: bool) -> Episodes:
    reasons: dict[tuple[int, int], str] = {}  # (shard, first row) of a malformed episode -> what is wrong
    shards: list[Shard] = []
    headless: list[bool] = []
    for number, file in enumerate(hdf5_files(path, untrusted)):
        raw = read_raw(file)
        arrays, found = _salvaged(raw.arrays, raw.rows, str(file))
        reasons.update({(number, row): reason for row, reason in found.items()})
        headless.append(raw.rows > 0 and raw.arrays["step_type"][0] != FIRST)
        shards.append(replace(raw, arrays=arrays))
    missing = gaps([(shard.path, shard.rows) for shard in shards])
    for number in (0, *missing):
        if headless[number]:  # and no file before it begins the episode
            shards[number].arrays["step_type"][0], reasons[number, 0] = FIRST, _HEADLESS
    dataset = Episodes.from_shards(shards, path, stack)
    offsets = np.cumsum([0, *(shard.rows for shard in shards)])
    malformed = {int(offsets[number] + row): reason for (number, row), reason in reasons.items()}
    inside = np.ones(len(dataset), bool)
    inside[dataset.starts], inside[dataset.ends - 1] = False, False
    for episode in np.unique(dataset.episode[inside & (dataset.step_type != MID)]):
        malformed.setdefault(int(dataset.starts[episode]), "a last step inside the episode")
    malformed = {**single_rows(dataset), **malformed}
    torn = [number for number, row in reasons if row == 0 and headless[number]]  # its rest is malformed
    for number in sorted({*missing, *torn}):
        end = offsets[number] - 1
        if end >= 0 and dataset.step_type[end] != LAST and not dataset.terminal[end]:
            start = int(dataset.starts[dataset.episode[end]])
            malformed.setdefault(
                start, f"no last step, and {shards[number].path.name} does not hold a sound rest of it"
            )
    dataset = without(dataset, malformed, path)
    check_ends(dataset, path)
    return dataset


def _salvaged(arrays: dict[str, np.ndarray], rows: int, where: str) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """The arrays of a shard with zeros for malformed episodes, and what is wrong by their first row."""
    for name, array in arrays.items():
        check_shape(array, name, rows, where)
    try:
        return checked_columns(arrays, rows, where), {}
    except VOCError:
        pass  # at least one episode is malformed: look at each
    starts = np.union1d([0], np.flatnonzero(arrays["step_type"] == FIRST)).astype(int)
    parts, reasons = [], {}
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        part = {name: array[start:end] for name, array in arrays.items()}
        try:
            parts.append(checked_columns(part, end - start, where))
        except VOCError as error:
            reasons[int(start)] = str(error).removeprefix(f"{where}: ").rstrip(".")
            parts.append(checked_columns(_blank(part), end - start, where))
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}, reasons


def _blank(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An episode of zeros in the place of a malformed one, so that the rows after it stay where they are."""
    blank = {name: np.zeros(array.shape, np.float32) for name, array in part.items()}
    blank["step_type"][:] = MID
    blank["step_type"][-1] = LAST
    blank["step_type"][0] = FIRST
    return blank


def write_vd4rl(
    path: str | Path, dataset: Episodes, extra: dict[str, np.ndarray] | None = None, progress: bool = False
) -> None:
    """Write a dataset as one shard with exactly the keys and dtypes of V-D4RL's 84 px files, in one step.

    The compressed shard is in memory, for a moment twice.

    States, log-probabilities and the like have no place there and are lost; ``extra`` adds arrays with a row for
    every frame.

    Raises:
        VOCError: a dataset without frames.
    """
    dataset.check_frames()
    arrays = {
        "action": dataset.action,
        "discount": dataset.discount.astype(np.float64),
        "reward": dataset.reward.astype(np.float64),
        "step_type": dataset.step_type.astype(np.float64),
        **(extra or {}),
    }
    with new_hdf5(Path(path)) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        shape = (len(dataset), *dataset.frame_shape)
        frames = file.create_dataset(FRAMES, shape, np.uint8, chunks=(1, *dataset.frame_shape), compression="gzip")
        for rows in progress_bar(dataset.blocks(), desc="frames", unit="block", show=progress):
            frames[rows[0] : rows[-1] + 1] = dataset.frames(rows)
