"""A full disk, a read-only folder, two runs in one folder, data that change: one sentence, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import SPEC, toy_dataset, toy_episode
from worlds import one_sentence, refusal

from voc_rl.benchmarks.trust_kills import contents, partial_files
from voc_rl.checkpoints import hold_folder
from voc_rl.cli import main
from voc_rl.data import Episodes, load_dataset, write_episode, write_minari
from voc_rl.errors import VOCError

SHORT = ["--gamma", "0.5", "--quantizer-steps", "6", "--steps", "6", "--reward-steps", "6", "--threads", "1"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def train(data: Path, out: Path) -> None:
    main(["train", "--data", str(data), "--out", str(out), *SHORT])


def refused(capsys: pytest.CaptureFixture[str], data: Path, out: Path) -> str:
    with pytest.raises(SystemExit) as caught:
        train(data, out)
    assert caught.value.code == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("voc-rl: ")][-1]
    assert one_sentence(line), line
    return line


def test_a_full_disk(disk: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "whole")
    filler, out = disk / "filler", disk / "run"
    for kilobytes in (4, 200, 1500):  # full at the notes, at a checkpoint, at a model
        filler.write_bytes(b"")
        space = os.statvfs(disk)
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - kilobytes * 1024))
        assert "No space left on device" in refused(capsys, data, out)
        assert partial_files(out) == []
    filler.unlink()
    train(data, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob(".*.part"))


def test_a_full_disk_refuses_an_episode(disk: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(100, 3, 320, 320), dtype=np.uint8)  # 31 MB that do not shrink
    with pytest.raises(VOCError, match="No space left on device"):
        for i in range(3):
            write_episode(disk / f"{i}.hdf5", toy_episode(i, 100, frames=frames), SPEC)
    assert sorted(path.name for path in disk.iterdir()) == ["0.hdf5", "1.hdf5"]
    assert len(load_dataset(disk)) == 200


@pytest.mark.parametrize("free", [30, 40])  # MB: too few for the frames, and for the last episode with what it needs
def test_a_full_disk_refuses_a_minari_dataset(disk: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(disk / "minari"))
    frames = np.zeros((100, 3, 200, 200), np.uint8)  # 12 MB
    made = [toy_episode(i, 100, frames=frames) for i in range(3)]
    dataset = Episodes.from_episodes(made, SPEC, Path("memory"))
    space = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - free * 2**20))
    said = refusal(write_minari, "toy/full-v0", dataset)
    assert f"MiB, the disk of {disk}/minari/toy/.full-v0.part" in said
    assert [path.name for path in (disk / "minari").rglob("*") if path.is_file()] == ["namespace_metadata.json"]
    (disk / "filler").unlink()
    assert len(load_dataset(write_minari("toy/full-v0", dataset))) == 300


def test_a_read_only_folder(disk: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    line = refused(capsys, data, disk / "run")
    assert "cannot be used as a run folder (Read-only file system)" in line
    with pytest.raises(VOCError, match="Read-only file system"):
        write_episode(disk / "a.hdf5", toy_episode(0, 5), SPEC)
    assert list(disk.iterdir()) == []


def test_two_collections_into_one_folder(tmp_path: Path) -> None:
    from voc_rl.agents import load_policy
    from voc_rl.envs import collect

    with hold_folder(tmp_path, "folder for episodes"), pytest.raises(VOCError, match="is in use by another run"):
        collect(tmp_path, "walker-walk", load_policy("walker-walk/step_60000"), 1, 0, max_episode_steps=2)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_data_that_change_while_they_are_read(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (5, 6))
    rows = np.arange(3)
    assert dataset.frames(rows).shape == (3, 3, 2, 2)
    write_episode(tmp_path / "episode_000.hdf5", toy_episode(3, 5), SPEC)
    with pytest.raises(VOCError, match=r"episode_000.hdf5 has changed since it was opened; run again once"):
        dataset.frames(rows)
    with pytest.raises(VOCError, match="has changed since it was opened"):
        dataset.load_frames()
    assert dataset.frames(np.arange(5, 8)).shape == (3, 3, 2, 2)  # of the file that is as it was
    (tmp_path / "episode_001.hdf5").unlink()
    with pytest.raises(VOCError, match="has changed since it was opened"):
        dataset.frames(np.arange(5, 8))
