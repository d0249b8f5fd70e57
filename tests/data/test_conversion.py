"""Conversions go on where they were cut, one at a time, and write no episode that does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import SPEC, numbered_frames, toy_episode
from worlds import refusal

from voc_rl.benchmarks.layouts import write_64px
from voc_rl.conversion import convert_dataset
from voc_rl.data import DataSpec, Episode, load_dataset
from voc_rl.data.convert import write_folder
from voc_rl.errors import VOCError


def episodes(fail_at: int | None = None) -> object:
    def made(first: int) -> Iterator[tuple[Episode, DataSpec]]:
        for i in range(first, 4):
            if i == fail_at:
                raise RuntimeError("cut")
            yield toy_episode(i, 3 + i), SPEC

    return made


def test_a_cut_conversion_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="cut"):
        write_folder(out, episodes(2), {"source": "x"})  # type: ignore[arg-type]
    assert not out.exists()  # what is there is whole
    partial = tmp_path / ".out.part"
    first = (partial / "episode_000000.hdf5").stat().st_mtime_ns
    with pytest.raises(VOCError, match="holds a cut conversion of something else, or of files"):
        write_folder(out, episodes(), {"source": "y"})  # type: ignore[arg-type]
    assert write_folder(out, episodes(), {"source": "x"}) == 4  # type: ignore[arg-type]
    assert (out / "episode_000000.hdf5").stat().st_mtime_ns == first
    assert not partial.exists()
    assert json.loads((out / "convert.json").read_text()) == {"source": "x"}
    dataset = load_dataset(out)
    assert (dataset.ends - dataset.starts).tolist() == [3, 4, 5, 6]
    with pytest.raises(VOCError, match="exists already"):
        write_folder(out, episodes(), {"source": "x"})  # type: ignore[arg-type]
    assert not (out / ".lock").exists()
    with pytest.raises(VOCError, match="gave no episode"):
        write_folder(tmp_path / "none", lambda first: iter(()), {"source": "x"})
    with pytest.raises(RuntimeError, match="cut"):
        write_folder(tmp_path / "none", episodes(0), {"source": "x"})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left where no episode was written


def test_an_episode_that_does_not_fit_the_first_one_is_not_written(tmp_path: Path) -> None:
    """The folder could not be opened; on a resume, too."""
    out, wide = tmp_path / "out", numbered_frames(0, 5, 4, 4)
    write_64px(tmp_path / "64px" / "0.npz", toy_episode(0, 4))
    write_64px(tmp_path / "64px" / "1.npz", toy_episode(1, 5, frames=wide))
    for _ in range(2):
        said = refusal(convert_dataset, f"vd4rl:{tmp_path / '64px'}", str(out))
        assert said == (
            f"{out}, episode 1 has frames of shape (3, 4, 4), but {out}, episode 0 has (3, 2, 2); keep them apart."
        )
        assert [file.name for file in (tmp_path / ".out.part").glob("*.hdf5")] == ["episode_000000.hdf5"]
    assert not out.exists()
    narrow = replace(toy_episode(1, 3), action=np.zeros((3, 1)), unclipped_action=None)
    two = [(toy_episode(0, 3), SPEC), (narrow, SPEC)]
    said = refusal(write_folder, tmp_path / "acts", lambda first: iter(two[first:]), {"source": "x"})
    assert "acts, episode 1 has actions of size 1, but" in said


def test_one_conversion_at_a_time(tmp_path: Path) -> None:
    def meanwhile(first: int) -> Iterator[tuple[Episode, DataSpec]]:
        with pytest.raises(
            VOCError, match=r"\.out\.part is in use by another run; wait for it, or choose another place"
        ):
            write_folder(tmp_path / "out", episodes(), {"source": "x"})  # type: ignore[arg-type]
        yield toy_episode(0, 3), SPEC

    assert write_folder(tmp_path / "out", meanwhile, {"source": "x"}) == 1
    assert len(load_dataset(tmp_path / "out")) == 3  # the refused one changed nothing
