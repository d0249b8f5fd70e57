"""What every reader asks first: which files belong together, how much memory there is, what a file can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_d4rl
from voc_rl.data import border, load_dataset
from voc_rl.data.border import gaps, machine_memory
from voc_rl.data.hdf5 import new_hdf5


@pytest.mark.parametrize(
    ("names", "rows", "missing"),
    [
        ("0 1 2", (6, 6, 6), []), ("9 10", (6, 6), []), ("1 3", (6, 6), [1]), ("0 1 3 4 6", (6,) * 5, [2, 4]),
        ("part_2_of_5 part_3_of_5", (6, 6), []), ("part_2_of_5 part_4_of_5", (6, 6), [1]),
        ("a b", (6, 6), []), ("data 3", (6, 6), []), ("0301-7 0304-2", (6, 6), []),
        ("rows_0 rows_40 rows_80", (40, 40, 7), []), ("rows_39 rows_79 rows_86", (40, 40, 7), []),
        ("rows_0 rows_80 rows_120", (40, 40, 40), [1]), ("0 1 3 4", (2, 2, 2, 2), [2]),
        ("at_1200 at_1237 at_1290", (6, 6, 6), []), ("0", (6,), []),
        ("0 2 4", (6, 6, 6), [1, 2]), ("95 97", (6, 6), [1]), ("at_1200 at_1237", (6, 6), []),
        ("r_39 r_79 r_80", (40, 40, 1), []), ("r_0 r_1 r_41", (1, 40, 40), []),
    ],
)  # fmt: skip
def test_where_a_file_of_a_series_is_missing(names: str, rows: tuple[int, ...], missing: list[int]) -> None:
    paths = [Path("x") / f"{name}.hdf5" for name in names.split()]
    assert gaps(list(zip(paths, rows, strict=True))) == missing


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


def test_a_file_that_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write_d4rl(path, d4rl_arrays((3,)))
    command = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", command, str(path)], **pipes) as writer:
        assert writer.stdout.readline() == b"open\n"
        for spec in (path, f"d4rl:{path}"):
            assert refusal(load_dataset, spec) == f"{path} is being written by another process; close it first."
        writer.stdin.close()
    assert len(load_dataset(path)) == 4


def test_files_of_one_name_are_written_at_the_same_time(tmp_path: Path) -> None:
    """As threads do, each in a folder of its own."""
    with new_hdf5(tmp_path / "a" / "0.hdf5") as one, new_hdf5(tmp_path / "b" / "0.hdf5") as other:
        one["x"], other["x"] = 1, 2
    for folder, number in (("a", 1), ("b", 2)):
        with h5py.File(tmp_path / folder / "0.hdf5") as file:
            assert file["x"][()] == number
