"""One function for every format; what is untrusted is read in another process."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from small import toy_dataset, toy_episode, toy_folder
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_84px, write_d4rl
from voc_rl.data import DataSpec, Episodes, load_dataset, trial, trial_child, write_episode, write_minari
from voc_rl.data.checks import check_discounts, check_reward_sizes, contact_sheet, dataset_remarks, summary
from voc_rl.data.registry import parse, stream_dataset
from voc_rl.data.trial import read_in_child
from voc_rl.errors import VOCError

LENGTHS = (4, 3)
NO_FRAMES = "There are states but no frames; voc_rl.envs.render_states draws those of HalfCheetah and Walker2d."


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same two episodes in every layout."""
    episodes = [toy_episode(i, n, i == 1) for i, n in enumerate(LENGTHS)]
    ours = toy_folder(tmp_path / "ours", LENGTHS, terminated=(1,))
    write_84px(tmp_path / "84px" / "a.hdf5", episodes)
    for i, episode in enumerate(episodes):
        write_64px(tmp_path / "64px" / f"{i}.npz", episode)
    write_d4rl(tmp_path / "walker2d.hdf5", d4rl_arrays((3, 2), terminated=(1,)))
    found = {"voc": ours, "vd4rl": tmp_path / "84px", "npz": tmp_path / "64px", "d4rl": tmp_path / "walker2d.hdf5"}
    try:
        import minari  # noqa: F401
    except ImportError:
        return found
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return {**found, "minari": write_minari("toy-v0", Episodes.open(ours))}


def test_every_format_by_its_word_and_by_looking(places: dict[str, Path]) -> None:
    for name, place in places.items():
        word = "vd4rl" if name == "npz" else name
        for dataset in (load_dataset(f"{word}:{place}"), load_dataset(place), load_dataset(place, untrusted=True)):
            assert (dataset.ends - dataset.starts).tolist() == list(LENGTHS), name
            np.testing.assert_array_equal(np.flatnonzero(dataset.terminal), [6])
            assert dataset.has_frames == (name != "d4rl")
            assert dataset_remarks(dataset) == ([] if dataset.has_frames else [NO_FRAMES]), name
            if dataset.has_frames:
                np.testing.assert_array_equal(dataset.frames(np.arange(7))[:, 0, 0, 0], [0, 1, 2, 3, 40, 41, 42])
                assert load_dataset(place, stack=2).observation_shape == (6, 2, 2)
        assert parse(place)[0] == {"vd4rl": "voc"}.get(name, word)  # a shard of V-D4RL is as any file of that layout
        spec, count, stream = stream_dataset(place)
        streamed = list(stream)
        assert [len(episode.reward) for episode in streamed] == list(LENGTHS)
        assert (spec, count) == (load_dataset(place).spec, 2)
        np.testing.assert_array_equal(np.concatenate([e.reward for e in streamed]), load_dataset(place).reward)


def test_home_after_the_colon(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places["voc"].parent))
    assert parse("voc:~/ours") == ("voc", str(places["voc"]))
    assert len(load_dataset("vd4rl:~/64px")) == 7


@pytest.mark.parametrize("untrusted", [False, True])
def test_what_is_no_dataset(tmp_path: Path, untrusted: bool) -> None:
    (tmp_path / "a.hdf5").write_text("nothing")
    for spec, said in (
        ("rlds:x", "Unknown dataset format 'rlds'; accepted: d4rl, minari, vd4rl, voc"),
        ("voc:", "names no place; voc:PATH is needed"),
        (str(tmp_path / "none"), "does not exist; a path, or FORMAT:PLACE with one of the formats d4rl, minari"),
        (str(tmp_path / "a.hdf5"), "is not a whole HDF5 file"),
        (f"voc:{tmp_path / 'a.hdf5'}", "is not a whole HDF5 file"),
        (f"d4rl:{tmp_path / 'none.hdf5'}", "does not exist"),
    ):
        with pytest.raises(VOCError, match=said):
            load_dataset(spec, untrusted=untrusted)


@pytest.mark.parametrize(
    ("rows", "discount", "odd", "first"),
    [
        (slice(None), 0.99, 9, "row 1, has 0.99"), ([2], 0.0, 1, "row 2, has 0"), ([4, 10], 0.5, 2, "row 4, has 0.5"),
        ([0, 5], 0.3, 0, ""), (slice(None), 1.0001, 0, ""), ([4, 10], 0.0, 0, ""),
    ],
)  # fmt: skip
def test_discounts_of_the_datas_own(
    tmp_path: Path, rows: slice | list[int], discount: float, odd: int, first: str
) -> None:
    """They load, with a remark, and nothing is trained on them: rows 0 and 5 are first, 4 and 10 last ones."""
    dataset = toy_dataset(tmp_path, (5, 6))
    dataset.discount[rows] = discount
    remarks = [remark for remark in dataset_remarks(dataset) if "discount" in remark]
    if not odd:
        assert remarks == []
        check_discounts(dataset)
        return
    assert len(remarks) == 1
    assert remarks[0].startswith(f"{odd} rows have a discount that is neither 1 nor")
    said = refusal(check_discounts, dataset)
    assert f"{odd} row(s) have a discount that training does not know (the first, {first}); write 1" in said


def test_rewards_that_are_too_large_to_square(tmp_path: Path) -> None:
    """They load, with a remark, and nothing is trained on them."""
    dataset = toy_dataset(tmp_path, (5, 6))
    dataset.reward[dataset.starts] = 3e20  # no step led there
    assert not any("Rewards are as large" in remark for remark in dataset_remarks(dataset))
    dataset.reward[3] = -2e20
    assert "Rewards are as large as 2e+20; such data can be read, but not trained on." in dataset_remarks(dataset)
    said = refusal(check_reward_sizes, dataset.reward[1:5])
    assert said == "Rewards are as large as 2e+20, and training takes 1e+15 at most; divide the rewards by 2e+20."
    check_reward_sizes(dataset.reward / 2e20)


@pytest.mark.parametrize(("key", "value"), [("reward", np.nan), ("action", 1.5)])
def test_wrong_numbers_are_left_out_of_named_v_d4rl_alone(places: dict[str, Path], key: str, value: float) -> None:
    """A file of one's own in that layout is refused, by ``validate`` too, and converted by nothing."""
    with h5py.File(places["vd4rl"] / "a.hdf5", "a") as file:
        file[key][5] = value
    for read in (load_dataset, read_in_child, stream_dataset):
        said = refusal(read, str(places["vd4rl"]))
        assert f"a.hdf5: {key} holds" in said
        assert said.endswith(f"; vd4rl:{places['vd4rl']} leaves malformed episodes out.")
    with pytest.warns(UserWarning, match=r"1 malformed episode\(s\) of 2 left out"):
        assert len(load_dataset(f"vd4rl:{places['vd4rl']}")) == 4


# --- the other process


def test_a_trial_says_what_is_there(places: dict[str, Path]) -> None:
    with h5py.File(places["vd4rl"] / "a.hdf5", "a") as file:
        file["reward"][5] = np.nan
        file["action"][0] = 1
    spec = f"vd4rl:{places['vd4rl']}"
    found = read_in_child(spec)
    assert found.spec == spec
    assert found.summary["episodes"] == "1 (0 terminated, 1 cut by a time limit)"
    assert found.summary["frames"] == "3 x 2 x 2 uint8"
    assert "1 malformed episode(s) of 2 left out" in found.remarks[0]
    assert "aligned to the next action" in found.remarks[1]


@pytest.mark.parametrize(("hard", "taken"), [(5000, 5000), (20000, 10300), (resource.RLIM_INFINITY, 10300)])
def test_a_trial_never_raises_the_limit_of_its_shell(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hard: int, taken: int
) -> None:
    """Batch systems set one (`ulimit -v`), which only root may raise."""
    asked: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(trial_child, "machine_memory", lambda: 10000)
    monkeypatch.setattr(trial_child, "_mapped", lambda: 300)
    monkeypatch.setattr(trial_child.resource, "getrlimit", lambda kind: (1, hard))
    monkeypatch.setattr(trial_child.resource, "setrlimit", asked.__setitem__)
    monkeypatch.setattr(trial_child.sys, "argv", ["-c", str(places["voc"])])
    trial_child.main()
    assert json.loads(capsys.readouterr().out)["remarks"] == []
    assert asked == {resource.RLIMIT_AS: (taken, taken), resource.RLIMIT_CORE: (0, 0)}


def test_a_frame_that_cannot_be_read_is_found(places: dict[str, Path]) -> None:
    """A shard opens without its frames being looked at; a trial looks at every one."""
    path = places["vd4rl"] / "a.hdf5"
    with h5py.File(path) as file:
        place = file["observation"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    dataset = load_dataset(path)
    with pytest.raises(VOCError, match=r"a\.hdf5 is not a whole HDF5 file .*; a file whose every frame can be read"):
        dataset.frames(np.arange(3))
    with pytest.raises(VOCError, match="a file whose every frame can be read"):
        load_dataset(path).load_frames()
    with pytest.raises(VOCError, match="a file whose every frame can be read"):
        load_dataset(path, untrusted=True)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"ended the process that tried it \(SIGSEGV\)"),
        ("import time; time.sleep(60)", "did not end in 1 seconds"),
        ("raise ArithmeticError('no such number')", r"failed \(ArithmeticError: no such number\)"),
        ("raise SystemExit(3)", r"failed \(no reason given\)"),
    ],
)
def test_a_crash_or_a_hang_is_a_sentence(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr(trial, "_START", code)
    with pytest.raises(VOCError, match=said):
        read_in_child(str(places["voc"]), timeout=1.0 if "sleep" in code else None)


def test_a_trial_takes_no_module_from_the_working_directory(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (places["voc"] / "h5py.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(places["voc"])
    assert read_in_child(".").spec == "voc:."
    with pytest.raises(VOCError, match="timeout is 0"):
        read_in_child(".", timeout=0.0)


def test_a_trial_has_a_minute_and_a_second_for_every_megabyte(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []

    def run(command: list[str], **options: Any) -> None:
        patience.append(options["timeout"])
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(trial.subprocess, "run", run)
    monkeypatch.chdir(places["voc"])
    monkeypatch.setenv("HOME", str(places["voc"].parent))
    ours = (".", "voc:.", "voc:~/ours", str(places["voc"]))
    folders = {**dict.fromkeys(ours, places["voc"]), "nothing": None}
    if "minari" in places:
        folders |= {"minari:toy-v0": places["minari"], f"minari:{places['minari'].parent}": places["minari"]}
    for spec, folder in folders.items():
        with pytest.raises(VOCError, match=r"did not end in 6\d seconds"):
            read_in_child(spec)
        files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
        assert len(files) >= 2 or folder is None
        assert patience.pop() == 60 + sum(file.stat().st_size for file in files) / 2**20, spec


# --- what is in a dataset


def test_a_sheet_of_frames(places: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    dataset = load_dataset(places["voc"])
    contact_sheet(dataset, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (2 * 2, 8 * 2, 3)  # two episodes, eight frames of two pixels
    assert picture[0, 0, 0] == 0
    assert picture[3, -1, 0] == 42
    with pytest.raises(VOCError, match="no frames"):
        contact_sheet(load_dataset(places["d4rl"]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert summary(dataset)["return of an episode"] == "6 to 203, mean 104.5"


def test_camera_0_is_said(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.hdf5", toy_episode(0, 4), DataSpec(task="toy", camera=0))
    assert summary(Episodes.open(tmp_path))["made with"] == "task toy, camera 0"


def test_both_kinds_of_v_d4rl_in_a_folder_are_refused_by_a_conversion_too(places: dict[str, Path]) -> None:
    write_84px(places["npz"] / "a.hdf5", [toy_episode(2, 5)])
    for read in (load_dataset, stream_dataset):
        assert "holds .npz and .hdf5 files; 64 px" in refusal(read, f"vd4rl:{places['npz']}")


@pytest.mark.parametrize("kind", ["frames last", "floats", "cut"])
def test_v_d4rl_is_named_where_it_would_help_alone(places: dict[str, Path], kind: str) -> None:
    file = places["vd4rl"] / "a.hdf5"
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:3000])
    else:
        with h5py.File(file, "a") as opened:
            frames = opened["observation"][()]
            del opened["observation"]
            opened["observation"] = frames.transpose(0, 2, 3, 1) if kind == "frames last" else frames / 255.0
    said = refusal(load_dataset, str(places["vd4rl"]))
    assert "a.hdf5" in said
    assert "leaves malformed episodes out" not in said
