"""Several places as one dataset: rows, frames and codes of each, whatever its format, and what does not fit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import pytest
from small import SPEC, toy_dataset, toy_episode, toy_folder
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_84px, write_d4rl
from voc_rl.data import DataSpec, Episodes, load_dataset, read_latents, write_episode, write_latents, write_minari
from voc_rl.data.registry import Places


@pytest.fixture
def places(tmp_path: Path) -> list[str | Path]:
    """Ours, a shard of V-D4RL whose middle episode is malformed, and a folder of .npz files, in memory."""
    write_84px(tmp_path / "84px" / "a.hdf5", [toy_episode(i, 4) for i in (2, 3, 4)])
    with h5py.File(tmp_path / "84px" / "a.hdf5", "a") as file:
        file["reward"][5] = np.nan
    write_64px(tmp_path / "64px" / "0.npz", toy_episode(5, 3, terminated=True))
    ours = toy_folder(tmp_path / "ours", (3, 2))
    return [ours, f"vd4rl:{tmp_path / '84px'}", tmp_path / "64px"]


@pytest.mark.filterwarnings("ignore:.*malformed")
@pytest.mark.parametrize("loaded", [False, True])
def test_rows_and_frames_of_each_format_follow_one_another(places: list[str | Path], loaded: bool) -> None:
    parts = [load_dataset(place, stack=2) for place in places]
    dataset = load_dataset(places, stack=2)
    assert not dataset.in_memory
    assert dataset.on_disk
    if loaded:
        assert dataset.load_frames().in_memory
    assert (dataset.ends - dataset.starts).tolist() == [3, 2, 4, 4, 3]
    assert np.flatnonzero(dataset.terminal).tolist() == [15]
    assert dataset.file_rows == [3, 2, 12, 3]
    assert len(dataset.paths) == 4
    np.testing.assert_array_equal(dataset.source_rows, np.arange(16))
    for name in ("action", "reward", "discount", "step_type"):
        np.testing.assert_array_equal(getattr(dataset, name), np.concatenate([getattr(part, name) for part in parts]))
    assert dataset.state is None  # which not all have
    first = [0, 1, 2, 40, 41, *range(80, 84), *range(160, 164), *range(200, 203)]
    for opened in (dataset, pickle.loads(pickle.dumps(dataset))):
        np.testing.assert_array_equal(opened.frames(np.arange(16))[:, 0, 0, 0], first)
    rows = np.array([[13, 0], [4, 9]])
    np.testing.assert_array_equal(dataset.frames(rows)[..., 0, 0, 0], np.array(first)[rows])
    for place, end in enumerate(np.cumsum([len(part) for part in parts])):
        own = np.arange(len(parts[place]))
        expected = parts[place].observations(own)
        np.testing.assert_array_equal(dataset.observations(end - len(own) + own), expected)
    part = dataset.subset([4, 2])
    np.testing.assert_array_equal(part.frames(np.arange(7))[:, 0, 0, 0], [*range(200, 203), *range(80, 84)])


@pytest.mark.filterwarnings("ignore:.*malformed")
def test_what_cannot_be_joined(places: list[str | Path], tmp_path: Path) -> None:
    ours = places[0]
    assert refusal(load_dataset, []) == "Zero files or folders were asked for; at least one is needed."
    write_d4rl(tmp_path / "walker2d.hdf5", d4rl_arrays((3, 2)))
    said = refusal(load_dataset, [ours, f"d4rl:{tmp_path / 'walker2d.hdf5'}"])
    assert "walker2d.hdf5 has frames of shape (3, 0, 0), but" in said
    (tmp_path / "none").mkdir()
    assert "none holds zero episodes" in refusal(load_dataset, [ours, f"voc:{tmp_path / 'none'}"])
    (tmp_path / "cut.hdf5").write_bytes(b"cut")
    assert "cut.hdf5 is not a whole HDF5 file" in refusal(
        lambda asked: load_dataset(asked, untrusted=True), [ours, tmp_path / "cut.hdf5"]
    )
    said = refusal(Episodes.join, [load_dataset(ours, stack=stack) for stack in (3, 1)])
    assert said == "Datasets with observations of 3, 1 frames were asked for; equal numbers are needed."
    assert "observations of none frames" in refusal(Episodes.join, [])


def test_no_file_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its episodes would be trained on and held out."""
    toy_folder(tmp_path / "ds", (3, 2))
    toy_folder(tmp_path / "ds" / "inner", (4,))
    (tmp_path / "link.hdf5").symlink_to(tmp_path / "ds" / "episode_000.hdf5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in ("ds", "ds/", str(tmp_path / "ds"), "ds/episode_001.hdf5", "link.hdf5"):
        said = f"{other} was asked for twice, before as ds; once is needed."
        assert refusal(load_dataset, ["ds", other]) == refusal(Episodes.open, [Path("ds"), other]) == said
    for other in ("voc:ds", "voc:~/ds", f"vd4rl:{tmp_path}/ds/episode_000.hdf5"):
        assert "twice, before as ds/inner/../; once" in refusal(load_dataset, ["ds/inner", "ds/inner/../", other])
    assert "x-v2 was asked for twice" in refusal(load_dataset, ["d4rl:x-v2", "d4rl:x-v2"])
    for apart in (["ds", "ds/inner"], ["ds/episode_000.hdf5", "ds/episode_001.hdf5"]):
        assert len(load_dataset(apart).starts) == len(Episodes.open(apart).starts) == 2 + (apart[0] == "ds")


def test_no_minari_dataset_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name and by its folder, with the word before it or without."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = write_minari("toy-v0", Episodes.open(toy_folder(tmp_path / "ds", (3, 2))))
    write_minari("other-v0", Episodes.open(tmp_path / "ds"))
    spellings = ("minari:toy-v0", f"minari:{folder.parent}", folder, folder.parent)
    for first, second in permutations(spellings, 2):
        said = refusal(load_dataset, [first, "minari:other-v0", second])
        assert said == f"{second} was asked for twice, before as {first}; once is needed."
    assert len(load_dataset(["minari:toy-v0", "minari:other-v0"]).starts) == 4


def test_what_a_place_does_not_say_fits_all(tmp_path: Path) -> None:
    """V-D4RL's shards say no task; together they say what all say, and two that say another do not fit."""
    specs = {
        "theirs": DataSpec(size=2), "own": SPEC, "also": replace(SPEC, camera=0), "far": replace(SPEC, camera=7),
        "other": replace(SPEC, task="other"),
    }  # fmt: skip
    for name, spec in specs.items():
        write_episode(tmp_path / name / "0.hdf5", toy_episode(0, 4), spec)

    def openings(*names: str) -> tuple[Places, ...]:
        return [tmp_path / name for name in names], [f"voc:{tmp_path / name}" for name in names]

    for read, asked in zip((Episodes.open, load_dataset), openings("theirs", "own", "also"), strict=True):
        assert read(asked).spec == DataSpec(size=2)  # type: ignore[operator]
    for read, asked in zip((Episodes.open, load_dataset), openings("own", "also"), strict=True):
        assert read(asked).spec == SPEC  # type: ignore[operator]
    for names, words in (
        (("theirs", "own", "other"), f"has task other, but {tmp_path / 'own' / '0.hdf5'} has toy; keep them apart."),
        (("own", "also", "far"), f"has camera 7, but {tmp_path / 'also' / '0.hdf5'} has 0; keep them apart."),
    ):
        for read, asked in zip((Episodes.open, load_dataset), openings(*names), strict=True):
            assert refusal(read, asked).endswith(words)


def test_another_simulator_is_warned_of_where_the_first_file_does_not_say_its_own(tmp_path: Path) -> None:
    for name, backend in (("a", ""), ("b", "egl"), ("c", "osmesa")):
        write_episode(tmp_path / f"{name}.hdf5", toy_episode(0, 4), replace(SPEC, backend=backend))
    with pytest.warns(UserWarning, match=r"c\.hdf5 was made with backend osmesa \(not egl\), other than .*b\.hdf5"):
        Episodes.open(tmp_path)


def test_codes_of_all_places(tmp_path: Path) -> None:
    codes = [np.arange(7 * 25).reshape(7, 25) % 100 + 100 * i for i in range(2)]
    files = [tmp_path / name for name in ("b.hdf5", "a.hdf5")]
    for i, file in enumerate(files):
        write_latents(file, toy_dataset(tmp_path / f"toy{i}", (3, 4)), codes[i], "vae_latents")
    dataset = load_dataset([f"vd4rl:{file}" for file in files])
    np.testing.assert_array_equal(read_latents(dataset, "vae_latents", 200), np.concatenate(codes))
    np.testing.assert_array_equal(read_latents(dataset.subset([2]), "vae_latents", 200), codes[1][:3])
