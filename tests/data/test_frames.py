"""Frames: from their files or from memory, together where they are stored together, and across processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import numbered_frames, toy_dataset, toy_episode

from voc_rl.benchmarks.layouts import write_84px
from voc_rl.data import Episodes, load_dataset
from voc_rl.data import frames as frames_module
from voc_rl.data.frames import _together
from voc_rl.errors import VOCError


def test_lazy_frames_equal_frames_in_memory(folder: Path) -> None:
    lazy, rows = Episodes.open(folder), np.array([[17, 0, 8], [8, 8, 3]])
    read = lazy.frames(rows)
    assert read.shape == (2, 3, 3, 2, 2)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(Episodes.open(folder).load_frames().frames(rows), read)
    # a subset of a loaded dataset, and a loaded subset
    before = Episodes.open(folder).load_frames().subset([2, 0])
    after = Episodes.open(folder).subset([2, 0]).load_frames()
    plain = Episodes.open(folder).subset([2, 0])
    everything = np.arange(16)
    np.testing.assert_array_equal(before.frames(everything)[:, 0, 0, 0], [*range(80, 89), *range(7)])
    np.testing.assert_array_equal(before.observations(everything), plain.observations(everything))
    np.testing.assert_array_equal(after.observations(everything), plain.observations(everything))


def test_subsets_hold_frames_once(dataset: Episodes) -> None:
    train, test = dataset.subset([0, 2]), dataset.subset([1])
    train.load_frames()
    test.load_frames()
    assert test._store.memory is train._store.memory is dataset._store.memory
    assert len(train._store.memory) == 18  # those of both


def open_files(folder: Path) -> int:
    """How many file descriptors of this process are of files in a folder."""
    files = (Path(f"/proc/self/fd/{number}").resolve() for number in os.listdir("/proc/self/fd"))
    return sum(file.parent == folder for file in files)


def test_pickled_with_open_handles(dataset: Episodes, folder: Path) -> None:
    rows = np.arange(18)
    frames = dataset.frames(rows)
    assert open_files(folder) == 3
    copy = pickle.loads(pickle.dumps(dataset))  # an open HDF5 file would be refused
    np.testing.assert_array_equal(copy.frames(rows), frames)
    np.testing.assert_array_equal(dataset.frames(rows), frames)


def _read_in_child(dataset: Episodes, queue: Any) -> None:
    file, opened = h5py.File, list[Path]()
    h5py.File = lambda path, mode: (opened.append(path), file(path, mode))[1]  # of this process alone
    queue.put((dataset.frames(np.arange(18)), opened))


def test_a_forked_process_opens_files_anew(dataset: Episodes, folder: Path) -> None:
    """HDF5 handles must not cross a fork."""
    rows = np.arange(18)
    frames = dataset.frames(rows)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(dataset, queue))
    process.start()
    in_child, opened = queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0
    assert sorted(opened) == sorted(folder.iterdir())
    np.testing.assert_array_equal(in_child, frames)
    np.testing.assert_array_equal(dataset.frames(rows), frames)


def test_more_files_than_open_handles(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (2,) * 70)
    frames = dataset.frames(np.arange(140))
    assert 0 < open_files(tmp_path) <= 64
    np.testing.assert_array_equal(frames[:, 0, 0, 0], [(40 * i + t) % 256 for i in range(70) for t in (0, 1)])


# --- frames that are stored together


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two of V-D4RL's: 40 rows in chunks of 15, each with a part of every one of its frames, and 6 rows unchunked."""
    write_84px(tmp_path / "0.hdf5", [toy_episode(i, 20, frames=numbered_frames(20 * i, 20)) for i in range(2)])
    write_84px(tmp_path / "1.hdf5", [toy_episode(0, 6)], observation=numbered_frames(100, 6))
    for name, rows in (("0", (15, 1, 1, 2)), ("1", None)):
        with h5py.File(tmp_path / f"{name}.hdf5", "a") as file:
            frames = file["observation"][()]
            del file["observation"]
            file.create_dataset("observation", data=frames, chunks=rows)
    return tmp_path


def reads(dataset: Episodes, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a file is read for some frames, which have to be the right ones."""
    get, taken = h5py.Dataset.__getitem__, []

    def counted(self: h5py.Dataset, some: Any, *more: Any) -> Any:
        taken.append(some)
        return get(self, some, *more)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", counted)
        found = dataset.frames(np.array(rows))
    numbers = np.r_[np.arange(40), np.arange(100, 106)]
    np.testing.assert_array_equal(found[:, 2, 1, 1], numbers[rows])
    return len(taken)


def test_rows_of_a_chunk_are_read_together(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read for each frame decompresses every chunk of its rows anew: minutes for a shard of 5000."""
    dataset = load_dataset(f"vd4rl:{shards}")
    assert reads(dataset, list(range(46)), monkeypatch) == 2
    assert reads(dataset, [39, 3, 3, 17, 0, 30], monkeypatch) == 1  # none is farther from the next than a chunk
    assert reads(dataset, [0, 20, 44, 41, 42], monkeypatch) == 4
    monkeypatch.setattr(frames_module, "_AT_ONCE", 8 * 12)  # bytes; a frame has 12
    few = load_dataset(f"vd4rl:{shards}")
    assert [len(rows) for rows in few.blocks()] == [8] * 5 + [6]
    assert reads(few, list(range(46)), monkeypatch) == 6
    np.testing.assert_array_equal(few.load_frames().frames(np.array([45, 0]))[:, 0, 0, 0], [105, 0])


@given(
    rows=st.sets(st.integers(0, 300), min_size=1, max_size=60).map(sorted), gap=st.integers(1, 40),
    most=st.integers(1, 50),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_pieces_of_rows(rows: list[int], gap: int, most: int) -> None:
    pieces = [np.array(rows)[part] for part in _together(np.array(rows), gap, most)]
    assert np.concatenate(pieces).tolist() == rows
    for piece in pieces:
        assert piece[-1] - piece[0] < most
        assert (np.diff(piece) <= gap).all()
    assert len(pieces) <= 1 + (np.diff(rows) > gap).sum() + rows[-1] // most


def test_frames_that_memory_cannot_hold_are_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Episodes.open(folder)
    monkeypatch.setattr("voc_rl.data.border.machine_memory", lambda: 18 * 12 - 1)
    with pytest.raises(VOCError, match=r"^Every frame of .* takes 0\.0 GiB of mem.*; without load_frames\(\) they"):
        dataset.load_frames()
    monkeypatch.setattr("voc_rl.data.border.machine_memory", lambda: 18 * 12)
    np.testing.assert_array_equal(dataset.load_frames().frames(np.array([17, 0]))[:, 0, 0, 0], [88, 0])
