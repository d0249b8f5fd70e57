"""What every reader asks first: which files belong together, how much memory there is, what a file can hold."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_d4rl
from voc_rl.data import border, load_dataset
from voc_rl.data.border import follows, machine_memory
from voc_rl.data.hdf5 import new_hdf5


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        ("0.hdf5", "1.hdf5", True), ("9.hdf5", "10.hdf5", True), ("1.hdf5", "3.hdf5", False),
        ("part_2_of_5.h5", "part_3_of_5.h5", True), ("part_2_of_5.h5", "part_4_of_5.h5", False),
        ("a.hdf5", "b.h5", True), ("data.hdf5", "3.hdf5", True), ("0301-7.hdf5", "0304-2.hdf5", True),
    ],
)  # fmt: skip
def test_a_file_follows_another(before: str, after: str, may: bool) -> None:
    assert follows(Path("x") / before, Path("x") / after) == may


@pytest.mark.parametrize(
    ("groups", "limits", "allowed"),
    [
        ("0::/job/7\n", {"job/memory.max": "5000\n", "job/7/memory.max": "max\n"}, 5000),
        ("0::/job/7\n", {"job/memory.max": "5000\n", "job/7/memory.max": "4000\n"}, 4000),
        ("4:cpu,memory:/c\n0::/\n", {"memory/c/memory.limit_in_bytes": "3000\n", "c/memory.max": "1\n"}, 3000),
        ("4:memory:/outside\n", {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None),
        ("0::/\n", {}, None),
        (None, {}, None),
    ],
)  # fmt: skip
def test_memory_is_that_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, limits: dict[str, str], allowed: int | None
) -> None:
    for name, text in limits.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    monkeypatch.setattr(border, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(border, "_GROUP_MOUNT", tmp_path / "mount")
    monkeypatch.setattr(border.os, "sysconf", lambda name: 100)
    machine_memory.cache_clear()
    assert machine_memory() == (10000 if allowed is None else allowed)
    machine_memory.cache_clear()


def test_an_array_without_its_bytes_is_refused(tmp_path: Path) -> None:
    """Legal HDF5, that would read as its fill value: what a damaged file that lost them reads as, too."""
    path = tmp_path / "a.hdf5"
    write_d4rl(path, d4rl_arrays((3, 2)))
    with h5py.File(path, "a") as file:
        del file["terminals"]
        file.create_dataset("terminals", (5,), bool, compression="gzip")
    assert "terminals declares 5 bytes of shape (5,), but 0 are stored" in refusal(load_dataset, f"d4rl:{path}")


def test_files_of_one_name_are_written_at_the_same_time(tmp_path: Path) -> None:
    """As threads do, each in a folder of its own."""
    with new_hdf5(tmp_path / "a" / "0.hdf5") as one, new_hdf5(tmp_path / "b" / "0.hdf5") as other:
        one["x"], other["x"] = 1, 2
    for folder, number in (("a", 1), ("b", 2)):
        with h5py.File(tmp_path / folder / "0.hdf5") as file:
            assert file["x"][()] == number
