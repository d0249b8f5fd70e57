"""V-D4RL's 64 px episodes: one ``.npz`` each, with a row for every frame.

    image     uint8 (T, 64, 64, 3)   action  float32 (T, A)   reward, discount  float64 (T,)
    is_first, is_last, is_terminal   bool (T,)

Rows are aligned as in ``voc_rl.data.hdf5``: row 0 is the frame of the reset, with a zero action.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from voc_rl.data.border import MAX_EXPANSION, TO_FILES, check_memory, reading
from voc_rl.data.episodes import Episodes
from voc_rl.data.fit import check_ends
from voc_rl.data.hdf5 import Episode, checked_episode, whole_step_types
from voc_rl.data.spec import DataSpec
from voc_rl.errors import VOCError

_KEYS = ("image", "action", "reward", "discount", "is_first", "is_last")


def open_npz(files: Sequence[Path], path: Path, stack: int = 3) -> Episodes:
    """Read every episode of some files into memory; malformed ones are left out with a count and a warning.

    Raises:
        VOCError: no whole episode, or episodes that do not fit each other.
    """
    check_memory(sum(map(_frame_bytes, files)), f"Every frame of {path}", TO_FILES)
    dataset = Episodes.from_episodes(npz_episodes(files, path), npz_spec(files), path, stack)
    check_ends(dataset, path)
    return dataset


def _frame_bytes(path: Path) -> int:
    """Size of an episode's frames, by the archive's own word; 0 of a malformed one."""
    try:
        with reading(path, "npz", "an episode of V-D4RL"), zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("image.npy")
    except VOCError:
        return 0
    return entry.file_size if entry.file_size <= MAX_EXPANSION * entry.compress_size else 0


def npz_spec(files: Sequence[Path]) -> DataSpec:
    """What the files say of how they were made: the size of the frames."""
    for file in files:
        try:
            return DataSpec(size=read_npz(file).frames.shape[-1])
        except VOCError:
            continue  # malformed: the next one says it
    return DataSpec()


def npz_episodes(files: Sequence[Path], path: Path) -> Iterator[Episode]:
    """Episode after episode; at the end, a warning that counts the malformed ones."""
    skipped: list[VOCError] = []
    for file in files:
        try:
            yield read_npz(file)
        except VOCError as error:
            skipped.append(error)
    if skipped:
        first = str(skipped[0])
        if len(skipped) == len(files):
            raise VOCError(f"{path} holds no whole episode (the first: {first.rstrip('.')}); at least one is needed.")
        warnings.warn(
            f"{path}: {len(skipped)} malformed episode(s) of {len(files)} left out; the first: {first}", stacklevel=2
        )


def read_npz(path: Path) -> Episode:
    """Read one episode.

    Raises:
        VOCError: a damaged file, a missing key, arrays of unequal length, or rows that are not one whole episode.
    """
    with reading(path, "npz", "an episode of V-D4RL with image, action, reward, ..."):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            missing = [key for key in _KEYS if f"{key}.npy" not in names]
            if missing:
                raise VOCError(f"{path} lacks {', '.join(missing)}; the keys of a V-D4RL 64 px file are needed.")
            keys = [*_KEYS, *(["is_terminal"] if "is_terminal.npy" in names else [])]
            arrays = {key: _read_member(archive, key, path) for key in keys}
        return _episode(arrays, path)


def _read_member(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    """One array, once its header and the archive's own sizes agree; no pickle is ever read."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        shape, dtype = _header(file)
        if dtype.kind not in "biuf":
            raise VOCError(f"{path}: {key} has dtype {dtype}; numbers are needed.")
        declared = math.prod(shape) * dtype.itemsize
        # a size that deflate cannot reach was never written
        if min(shape, default=0) < 0 or declared + file.tell() != entry.file_size:
            raise VOCError(f"{path}: {key} declares shape {shape}, but {entry.file_size} bytes are there.")
        if entry.file_size > MAX_EXPANSION * max(entry.compress_size, 1):
            raise VOCError(f"{path}: {key} declares {declared} bytes in {entry.compress_size}; the file is damaged.")
        check_memory(declared, f"{path}: {key}")
    with archive.open(entry) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _episode(arrays: dict[str, np.ndarray], path: Path) -> Episode:
    image = arrays["image"]
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != 3:
        raise VOCError(f"{path}: image is {image.dtype} {image.shape}; uint8 (T, H, W, 3) is needed.")
    lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise VOCError(f"{path} has arrays of unequal length ({found}); one row for every frame is needed.")
    first, last = arrays["is_first"].astype(bool), arrays["is_last"].astype(bool)
    rows = len(image)
    if first.ndim != 1 or last.ndim != 1 or rows < 2:
        raise VOCError(f"{path} has {rows} rows of flags {first.shape}; one flag for each of two or more is needed.")
    if not (first[0] and last[-1]) or first[1:].any() or last[:-1].any():
        raise VOCError(f"{path}: is_first and is_last are not true at the first and the last row alone.")
    discount = arrays["discount"]
    terminal = arrays.get("is_terminal", discount == 0).astype(bool)
    if discount.shape != (rows,) or terminal.shape != (rows,) or (terminal[1:] != (discount == 0)[1:]).any():
        raise VOCError(f"{path}: is_terminal is not true where discount is 0, and there alone.")
    episode = Episode(
        frames=np.ascontiguousarray(image.transpose(0, 3, 1, 2)),
        action=arrays["action"],
        reward=arrays["reward"],
        discount=discount,
        step_type=whole_step_types(rows),
    )
    checked_episode(episode, str(path))
    return episode
