"""Which frames a run holds in memory, and what is said of those that are read slowly."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from worlds import small_config

from voc_rl import Episodes, frame_memory
from voc_rl.data import write_vd4rl
from voc_rl.distributed import Ranks
from voc_rl.pipeline import Pipeline
from voc_rl.runs import RunFolder

CONFIG = small_config(gamma=0.5, quantizer=10, steps=10)


def test_frames_are_loaded_where_they_take_a_quarter_of_the_memory(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they stay in their files: training has to do with what memory there is."""
    size = 6 * 30 * 3 * 24 * 24
    for memory, most, held in ((4 * size, size, True), (4 * size - 1, size, False), (4 * size, size - 1, False)):
        monkeypatch.setattr(frame_memory, "machine_memory", lambda memory=memory: memory)
        monkeypatch.setattr(frame_memory, "FRAMES_IN_MEMORY", most)
        said: list[str] = []
        with RunFolder(tmp_path) as run:
            assert Pipeline(run, data, CONFIG, say=said.append).dataset.in_memory == held
        assert said == []  # a frame of ours is read by itself


@pytest.mark.parametrize("size", [1, 2])
def test_processes_share_the_quarter(data: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Each holds all the frames."""
    needed = 6 * 30 * 3 * 24 * 24
    monkeypatch.setattr(frame_memory, "ranks", lambda: Ranks(0, size))
    for memory, held in ((4 * size * needed, True), (4 * size * needed - 1, False)):
        monkeypatch.setattr(frame_memory, "machine_memory", lambda memory=memory: memory)
        dataset = Episodes.open(data)
        frame_memory.hold_frames(dataset, pytest.fail)
        assert dataset.in_memory == held


@pytest.mark.parametrize(("memory", "held"), [(4, True), (3.99, False)])
def test_many_frames_of_large_chunks_are_loaded_or_said_to_be_slow(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, memory: float, held: bool
) -> None:
    """As in V-D4RL's own shards, one place of two."""
    write_vd4rl(tmp_path / "a.hdf5", Episodes.open(data).subset([0, 1]))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        frames = file["observation"][()]
        del file["observation"]
        file.create_dataset("observation", data=frames, chunks=(20, 1, 12, 12), compression="gzip")
    size = 8 * 30 * 3 * 24 * 24
    monkeypatch.setattr(frame_memory, "machine_memory", lambda: int(memory * size))
    monkeypatch.setattr(frame_memory, "FRAMES_IN_MEMORY", size - 1)
    said: list[str] = []
    with RunFolder(tmp_path / "run") as run:
        dataset = Pipeline(run, (data, f"vd4rl:{tmp_path / 'a.hdf5'}"), CONFIG, say=said.append).dataset
    assert (dataset.in_memory, dataset.reads_slowly) == (held, not held)
    assert ["and are loaded once" in line for line in said] == [held]
    assert ["are read slowly; `voc-rl data convert` makes" in line for line in said] == [not held]
    np.testing.assert_array_equal(dataset.frames(np.arange(180, 240)), frames)
