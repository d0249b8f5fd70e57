"""Frames of a dataset: they stay in their files until they are asked for, or are held in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from voc_rl.data.border import TO_FILES, check_memory, check_unchanged, reading
from voc_rl.data.hdf5 import FRAMES, Shard

_NEEDED = "a file whose every frame can be read"
_FROM_FILES = "without load_frames() they are read from their files"
_AT_ONCE = 2**25  # bytes of frames that one read of a file takes
_OPEN_FILES = 64


class FrameStore:
    """Frames of some files one after another; a row is counted from the first row of the first file.

    Subsets of a dataset share one. What is pickled opens the files anew.

    Attributes:
        paths: the files. shape: of one frame, (3, H, W). at_once: how many frames one read of a file takes at most.
        memory: every frame, uint8 (N, 3, H, W), or None. on_disk: whether the files hold the frames, loaded or not.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.paths = [shard.path for shard in shards]
        self.shape = shards[0].frame_shape
        self.at_once = max(_AT_ONCE // max(int(np.prod(self.shape)), 1), 1)
        self.memory: np.ndarray | None = None
        self._stamps = [shard.stamp for shard in shards]
        self.on_disk = any(stamp is not None for stamp in self._stamps)
        self._slow = any(shard.chunk > 1 for shard in shards)
        self._first = np.cumsum([0, *(shard.rows for shard in shards)])
        self._handles: dict[Path, h5py.File] = {}
        self._owner = os.getpid()

    @property
    def in_memory(self) -> bool:
        """Whether every frame is held."""
        return self.memory is not None

    @property
    def reads_slowly(self) -> bool:
        """Whether reading a frame decompresses others with it."""
        return self._slow and self.memory is None

    @property
    def file_rows(self) -> list[int]:
        """How many rows each file had when it was opened."""
        return np.diff(self._first).tolist()

    def hold(self, frames: list[np.ndarray], source: Path) -> None:
        """Take over the frames of every shard; ``source`` is what messages call them, and the list is emptied.

        Raises:
            VOCError: more than the machine's memory.
        """
        memory = self._empty(source, TO_FILES)
        while frames:  # from the back, so that what is copied can be let go
            part = frames.pop()
            memory[self._first[len(frames)] :][: len(part)] = part
        # all are the source's
        self.paths, self._first, self.memory = [source], self._first[[0, -1]], memory

    def load(self) -> None:
        """Decompress every frame into memory, once.

        Raises:
            VOCError: more than the machine's memory, a frame that cannot be read, or a file that changed.
        """
        if self.in_memory:
            return
        source = self.paths[0] if len(self.paths) == 1 else self.paths[0].parent
        memory = self._empty(source, _FROM_FILES)
        for path, stamp, (first, end) in zip(self.paths, self._stamps, pairwise(self._first), strict=True):
            with reading(path, "HDF5", _NEEDED), h5py.File(path, "r") as file:
                file[FRAMES].read_direct(memory[first:end])
            check_unchanged(path, stamp)
        self.memory = memory

    def _empty(self, source: Path, advice: str) -> np.ndarray:
        shape = (int(self._first[-1]), *self.shape)
        check_memory(int(np.prod(shape)), f"Every frame of {source}", advice)
        return np.empty(shape, np.uint8)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Frames uint8 (..., 3, H, W) of rows of any shape, none of them negative; each distinct one is read once.

        Rows of one chunk of a file, or next to each other, are read together: a compressed chunk may hold a part of
        each of hundreds of frames, and is decompressed for each read.

        Raises:
            VOCError: a frame that cannot be read, or a file that changed.
        """
        if self.memory is not None:
            return self.memory[rows]
        distinct, inverse = np.unique(rows, return_inverse=True)
        out = np.empty((len(distinct), *self.shape), np.uint8)
        shards = np.searchsorted(self._first, distinct, side="right") - 1
        for shard in np.unique(shards):
            path, mine = self.paths[shard], np.flatnonzero(shards == shard)
            here = distinct[mine] - self._first[shard]
            with reading(path, "HDF5", _NEEDED):
                stored = self._file(path)[FRAMES]
                for part in _together(here, stored.chunks[0] if stored.chunks else 1, self.at_once):
                    first, last = here[part][[0, -1]]
                    out[mine[part]] = stored[first : last + 1][here[part] - first]
            check_unchanged(path, self._stamps[shard])
        return out[inverse.reshape(rows.shape)]

    def _file(self, path: Path) -> h5py.File:
        if self._owner != os.getpid():  # HDF5 handles must not cross a fork
            self._handles, self._owner = {}, os.getpid()
        if path not in self._handles:
            if len(self._handles) >= _OPEN_FILES:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[path] = h5py.File(path, "r")
        return self._handles[path]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": {}}


class JoinedFrames:
    """Frames of several stores one after another, each held or read as its own.

    It answers what a ``FrameStore`` does. ``first``: the row at which each store begins, and the number of all rows.
    """

    def __init__(self, stores: Sequence[FrameStore | JoinedFrames]) -> None:
        self._stores = list(stores)
        self.first = np.cumsum([0, *(sum(store.file_rows) for store in stores)])
        self.shape: tuple[int, int, int] = stores[0].shape
        self.at_once: int = stores[0].at_once
        self.on_disk: bool = any(store.on_disk for store in stores)

    @property
    def paths(self) -> list[Path]:
        return [path for store in self._stores for path in store.paths]

    @property
    def file_rows(self) -> list[int]:
        return [rows for store in self._stores for rows in store.file_rows]

    @property
    def in_memory(self) -> bool:
        return all(store.in_memory for store in self._stores)

    @property
    def reads_slowly(self) -> bool:
        return any(store.reads_slowly for store in self._stores)

    def load(self) -> None:
        """As ``FrameStore.load``."""
        check_memory(int(self.first[-1] * np.prod(self.shape)), "Every frame of all the datasets", _FROM_FILES)
        for store in self._stores:
            store.load()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As ``FrameStore.read``."""
        out = np.empty((*rows.shape, *self.shape), np.uint8)
        whose = np.searchsorted(self.first, rows, side="right") - 1
        for number in np.unique(whose):
            mine = whose == number
            out[mine] = self._stores[number].read(rows[mine] - self.first[number])
        return out


def _together(rows: np.ndarray, gap: int, most: int) -> list[slice]:
    """Which of some rising rows one read takes: neighbours at most ``gap`` apart, from a span of ``most`` at most."""
    apart = (np.diff(rows) > gap) | (np.diff(rows // most) > 0)
    return [slice(*ends) for ends in pairwise([0, *(np.flatnonzero(apart) + 1), len(rows)])]
