"""States of D4RL that are drawn into a run folder, and commands that train on data of every format."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from small import toy_episode
from worlds import together

from voc_rl import conversion
from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_84px, write_d4rl
from voc_rl.checkpoints import check_writable
from voc_rl.cli import main
from voc_rl.conversion import convert_dataset, open_with_frames
from voc_rl.data import convert, load_dataset
from voc_rl.distributed import Ranks
from voc_rl.envs.states import StateRenderer
from voc_rl.errors import VOCError
from voc_rl.runs import RunFolder


@pytest.fixture
def states(tmp_path: Path) -> str:
    """Three episodes of D4RL's, of 2, 3 and 4 rows."""
    arrays = d4rl_arrays((1, 2, 3))
    still = {key: 0 * arrays[key] for key in ("infos/qpos", "infos/qvel", "observations", "next_observations")}
    write_d4rl(tmp_path / "walker2d-x.hdf5", {**arrays, **still, "actions": np.zeros((6, 6))})
    return f"d4rl:{tmp_path / 'walker2d-x.hdf5'}"


REWARDS = [0, 0, 0, 1000, 1001, 0, 2000, 2001, 2002]


def test_a_target_that_cannot_be_is_refused_before_anything_is_drawn(
    states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "load_dataset", lambda spec: pytest.fail("the source was read"))
    (tmp_path / "file").touch()
    (tmp_path / "there.hdf5").touch()
    targets = [
        (
            "vd4rl",
            tmp_path / "file" / "new" / "x.hdf5",
            r"x\.hdf5 cannot be written \(.*file takes no file\); choose a f",
        ),
        ("vd4rl", tmp_path / "there.hdf5", "exists already; choose another file"),
    ]
    try:
        import minari  # noqa: F401
    except ImportError:
        pass
    else:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        (tmp_path / "minari" / "me" / "taken-v0").mkdir(parents=True)
        targets += [
            ("minari", "me/walker", "'me/walker' is no name of a Minari dataset"),
            ("minari", "me/taken-v0", "There is a Minari dataset me/taken-v0 in .* already; choose another name"),
        ]
    for to, out, said in targets:
        with pytest.raises(VOCError, match=said):
            convert_dataset(states, str(out), to)
    check_writable(tmp_path / "new" / "folder" / "x.hdf5")
    assert not (tmp_path / "new").exists()  # asked alone


def test_what_was_drawn_is_of_the_same_file(
    states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However its place is written; a file that was replaced under its name has other rewards."""
    file, drawn = Path(states.removeprefix("d4rl:")), tmp_path / "drawn"
    assert open_with_frames(states, drawn).reward.tolist() == REWARDS
    assert "\ncheck: " in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert open_with_frames("d4rl:walker2d-x.hdf5", drawn).reward.tolist() == REWARDS
    with h5py.File(file, "a") as changed:
        changed["rewards"][:] += 1
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # where the clock of the disk is coarse
    with pytest.raises(
        VOCError, match=r"drawn was drawn from d4rl:.*walker2d-x\.hdf5 before that file changed; delete"
    ):
        open_with_frames(states, drawn)


def test_a_cut_drawing_of_a_run_goes_on(states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, draw = tmp_path / "run", StateRenderer.frame
    drawn: list[np.ndarray] = []

    def frame(self: StateRenderer, physics: np.ndarray) -> np.ndarray:
        drawn.append(physics)
        if len(drawn) == 4:  # in the second episode
            raise KeyboardInterrupt
        return draw(self, physics)

    monkeypatch.setattr(StateRenderer, "frame", frame)
    with RunFolder(out), pytest.raises(KeyboardInterrupt):
        open_with_frames(states, out / "drawn")
    first = (out / ".drawn.part" / "episode_000000.hdf5").stat().st_mtime_ns
    with RunFolder(out):
        dataset = open_with_frames(states, out / "drawn")
    assert len(drawn) == 4 + 7  # the second episode and the third
    assert (out / "drawn" / "episode_000000.hdf5").stat().st_mtime_ns == first
    assert dataset.reward.tolist() == REWARDS
    assert not list(out.rglob("*.part"))


def test_no_check_is_said_of_nothing(
    states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a conversion that was cut after its last episode, only the folder's name is left to do."""
    out, replace = tmp_path / "out", os.replace

    def cut(source: Path, target: Path) -> None:
        if target == out:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(convert.os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            convert_dataset(states, str(out), size=16)
    main(["data", "convert", states, str(out), "--size", "16"])
    assert capsys.readouterr().out == f"convert: 3 episodes: {out}\n"


TOGETHER = """
import sys
import torch
from voc_rl.conversion import open_with_frames
from voc_rl.distributed import join
from voc_rl.runs import RunFolder
join(torch.device("cpu"))
with RunFolder(sys.argv[2]) as run:
    dataset = open_with_frames(sys.argv[1], run.path / "drawn")
    sys.exit(f"{run.writes} {dataset.reward.astype(int).tolist()}")
"""


def test_of_two_processes_one_draws(states: str, tmp_path: Path) -> None:
    ended = together([sys.executable, "-c", TOGETHER, states, str(tmp_path / "run")])
    assert [error.splitlines()[-1] for _, error in ended] == [f"True {REWARDS}", f"False {REWARDS}"]


def test_the_first_process_says_after_every_episode_that_it_draws(
    states: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []

    monkeypatch.setattr(conversion, "agreed", said.append)
    for _ in range(2):  # the second time what was drawn is there
        open_with_frames(states, tmp_path / "drawn")
    assert said == [True, True, True, False, False]
    monkeypatch.setattr(conversion, "agreed", lambda own: said.pop(0))
    monkeypatch.setattr(conversion, "ranks", lambda: Ranks(1, 2))
    assert open_with_frames(states, tmp_path / "drawn").reward.tolist() == REWARDS
    assert said == [False]  # it waited for the last word


SHORT = ["--gamma", "0.5", "--quantizer-steps", "4", "--threads", "1"]


def test_commands_train_on_every_format(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """V-D4RL's 64 px, Minari's datasets and D4RL's states, which are drawn into the run folder once."""
    pytest.importorskip("minari")
    from voc_rl.data.minari_data import write_minari_folder

    folder, episodes = tmp_path / "64px", [toy_episode(i, 40, frames=noise(i, 40, 64)) for i in range(3)]
    for i, episode in enumerate(episodes):
        write_64px(folder / f"{i}.npz", episode)
    write_minari_folder(tmp_path / "minari", "toy-v0", load_dataset(folder))
    rng, rows = np.random.default_rng(0), 120
    states = {**d4rl_arrays((40, 40, 40)), "actions": np.zeros((rows, 6))}
    states |= {key: 0.1 * rng.normal(size=(rows, 9)) for key in ("infos/qpos", "infos/qvel")}
    write_d4rl(tmp_path / "walker2d-x.hdf5", states)
    for source in (folder, f"minari:{tmp_path / 'minari'}", f"d4rl:{tmp_path / 'walker2d-x.hdf5'}"):
        out = tmp_path / "runs" / str(source).split(":")[0].replace("/", "_")
        for _ in range(2):  # the second time what was drawn is there
            main(["train-quantizer", "--data", str(source), "--out", str(out), *SHORT])
        assert "quantizer: done already, skipped" in capsys.readouterr().out
    write_d4rl(tmp_path / "walker2d-y.hdf5", states)
    with pytest.raises(SystemExit):
        main(["train-quantizer", "--data", f"d4rl:{tmp_path / 'walker2d-y.hdf5'}", "--out", str(out), *SHORT])
    assert "walker2d-x.hdf5, not from d4rl:" in capsys.readouterr().err


def test_commands_train_on_several_places(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two files of D4RL's, each drawn into a folder of its own, and pictures of the same size."""
    states, rng = d4rl_arrays((20, 22)), np.random.default_rng(0)
    states |= {
        "actions": np.zeros((42, 6)),
        **{key: 0.1 * rng.normal(size=(42, 9)) for key in ("infos/qpos", "infos/qvel")},
    }
    for name in ("x", "y"):
        write_d4rl(tmp_path / f"walker2d-{name}.hdf5", states)
    wide = {"action": np.zeros((8, 6), np.float32), "unclipped_action": None}
    write_84px(tmp_path / "z.hdf5", [replace(toy_episode(0, 8, frames=noise(0, 8, 84)), **wide)])
    asked = [f"d4rl:{tmp_path / f'walker2d-{name}.hdf5'}" for name in ("x", "y")] + [f"vd4rl:{tmp_path / 'z.hdf5'}"]
    command = ["train-quantizer", "--data", *asked, "--out", str(tmp_path / "run"), *SHORT]
    for _ in range(2):
        main(command)
    assert "quantizer: done already, skipped" in capsys.readouterr().out
    for folder, name in (("drawn", "x"), ("drawn_1", "y")):
        assert f"walker2d-{name}" in json.loads((tmp_path / "run" / folder / "convert.json").read_text())["source"]
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["stages"]["quantizer"]
    assert kept["data"] == asked
    dataset = open_with_frames(asked, tmp_path / "run" / "drawn")
    assert (dataset.ends - dataset.starts).tolist() == [21, 23, 21, 23, 8]
    np.testing.assert_array_equal(dataset.frames(np.arange(88, 96)), noise(0, 8, 84))
    with pytest.raises(SystemExit):
        main([*command[:2], asked[1], asked[0], *command[4:]])
    assert "drawn was drawn from d4rl:" in capsys.readouterr().err


def noise(seed: int, rows: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(rows, 3, size, size), dtype=np.uint8)
