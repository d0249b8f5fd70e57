"""voc-rl data info, validate and convert."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from commands import SHORT
from small import toy_episode, toy_folder, write_v_d4rl

from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_84px, write_d4rl
from voc_rl.cli import main
from voc_rl.conversion import convert_dataset
from voc_rl.data import Episodes, convert, load_dataset
from voc_rl.envs.states import MODELS, StateRenderer
from voc_rl.errors import VOCError


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toy_folder(tmp_path / "ours", (5, 6), terminated=(0,))
    main(["data", "info", str(tmp_path / "ours"), "--sheet", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "episodes              2 (1 terminated, 1 cut by a time limit)" in out
    assert "return of an episode  10 to 515, mean 262.5" in out
    assert "physics [2]" in out
    assert "task toy, size 2" in out
    assert (tmp_path / "sheet.png").exists()
    write_d4rl(tmp_path / "walker2d-x.hdf5", d4rl_arrays((3,)))
    main(["data", "info", str(tmp_path / "walker2d-x.hdf5"), "--untrusted"])
    out = capsys.readouterr().out
    assert "D4RL's score          0.0 to 0.0, mean 0.0" in out
    assert "frames                none" in out
    assert "does not exist" in refused(capsys, "info", tmp_path / "none")


def test_validate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_84px(tmp_path / "a.hdf5", [toy_episode(0, 5)], action=np.full((5, 2), 0.5, np.float32))
    main(["data", "validate", f"vd4rl:{tmp_path / 'a.hdf5'}"])
    out = capsys.readouterr().out
    assert "a.hdf5: 1 of 1 episodes have an action or a reward in their first row" in out
    assert out.rstrip().endswith("valid: every frame and every number was read")
    (tmp_path / "a.hdf5").write_bytes((tmp_path / "a.hdf5").read_bytes()[:900])
    message = refused(capsys, "validate", tmp_path / "a.hdf5")
    assert message.startswith(f"voc-rl: {tmp_path / 'a.hdf5'} is not a whole HDF5 file")
    assert "timeout is -1" in refused(capsys, "validate", tmp_path / "a.hdf5", "--timeout", "-1")


def test_convert_there_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ours = Episodes.open(toy_folder(tmp_path / "ours", (5, 6), terminated=(0,)))
    for arguments in (
        ["ours", "shard.hdf5", "--to", "vd4rl"],
        ["shard.hdf5", "back"],
        ["ours", "again", "--untrusted"],
    ):
        source, out, *rest = arguments
        main(["data", "convert", str(tmp_path / source), str(tmp_path / out), *rest])
        assert "convert: 2 episodes" in capsys.readouterr().out
    for name in ("shard.hdf5", "back", "again"):
        dataset = load_dataset(tmp_path / name)
        for key in ("action", "reward", "discount", "step_type"):
            np.testing.assert_array_equal(getattr(dataset, key), getattr(ours, key))
        np.testing.assert_array_equal(dataset.frames(np.arange(11)), ours.frames(np.arange(11)))
    assert load_dataset(tmp_path / "again").spec == ours.spec
    np.testing.assert_array_equal(load_dataset(tmp_path / "again").physics, ours.physics)
    assert "exists already" in refused(capsys, "convert", tmp_path / "ours", tmp_path / "back")
    assert "exists already" in refused(capsys, "convert", tmp_path / "ours", tmp_path / "shard.hdf5", "--to", "vd4rl")


def test_convert_npz_and_minari(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write_64px(tmp_path / "64px" / f"{i}.npz", toy_episode(i, 4))
    main(["data", "convert", str(tmp_path / "64px"), str(tmp_path / "ours")])
    np.testing.assert_array_equal(Episodes.open(tmp_path / "ours").reward[:6], [0, 1, 2, 3, 0, 101])
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    main(["data", "convert", str(tmp_path / "ours"), "toy/x-v0", "--to", "minari"])
    main(["data", "convert", "minari:toy/x-v0", str(tmp_path / "back")])
    np.testing.assert_array_equal(Episodes.open(tmp_path / "back").reward, Episodes.open(tmp_path / "ours").reward)
    assert "is no name of a Minari dataset" in refused(capsys, "info", "minari:../x y")
    for name in ("hopper_x", "kitchen"):  # with the simulator's states, of which there is no drawing
        write_d4rl(tmp_path / f"{name}.hdf5", d4rl_arrays((3, 2)))
        main(["data", "convert", str(tmp_path / f"{name}.hdf5"), f"toy/{name}-v0", "--to", "minari"])
        assert capsys.readouterr().out == f"convert: 2 episodes: toy/{name}-v0\n"
        states, back = load_dataset(tmp_path / f"{name}.hdf5"), load_dataset(f"minari:toy/{name}-v0")
        for key in ("state", "physics", "action", "reward", "discount"):
            np.testing.assert_array_equal(getattr(back, key), getattr(states, key))
        assert back.spec == states.spec
    message = refused(capsys, "convert", tmp_path / "hopper_x.hdf5", tmp_path / "drawn")
    assert "States of Hopper-v5 cannot be drawn; only those of HalfCheetah-v5 and Walker2d-v5 can." in message
    assert not (tmp_path / ".drawn.part").exists()


def test_a_cut_conversion_goes_on_with_the_same_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that came since would move the others: some episodes would be there twice, others never."""
    source, out, write, written = tmp_path / "64px", tmp_path / "out", convert.write_episode, []
    for name, i in (("b", 1), ("d", 3), ("f", 5)):
        write_64px(source / f"{name}.npz", toy_episode(i, 4))

    def cut(path: Path, *episode: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, *episode)

    monkeypatch.setattr(convert, "write_episode", cut)
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(str(source), str(out))
    write_64px(source / "a.npz", toy_episode(0, 4))
    with pytest.raises(
        VOCError, match=r"\.out\.part holds a cut conversion of .*files that have changed since; delete it"
    ):
        convert_dataset(str(source), str(out))
    (source / "a.npz").unlink()
    monkeypatch.chdir(tmp_path)
    assert convert_dataset("64px", str(out)) == (3, None)
    assert len(written) == 4
    assert Episodes.open(out).reward[1::4].tolist() == [101, 301, 501]


def test_an_episode_without_a_step_is_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (3, 1, 2), step_type=np.array([0, 1, 2, 0, 0, 2]), action=np.zeros((6, 2)))
    for to, out in (("voc", "ours"), ("vd4rl", "theirs.hdf5")):
        with pytest.warns(
            UserWarning, match=r"1 malformed episode\(s\) of 3 left out; the first, at row 3: a single row"
        ):
            main(["data", "convert", f"voc:{tmp_path / 'a.hdf5'}", str(tmp_path / out), "--to", to])
        said = capsys.readouterr()
        assert "convert: 2 episodes" in said.out
        assert ("2/2" if to == "voc" else "1/1") in said.err  # progress: episodes, or blocks of frames
        assert Episodes.open(tmp_path / out).frames(np.arange(5))[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5]


def test_convert_draws_states_and_goes_on_after_a_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = d4rl_arrays((3, 2))
    still = {key: 0 * arrays[key] for key in ("infos/qpos", "infos/qvel", "observations")}
    del arrays["next_observations"]
    write_d4rl(tmp_path / "x.hdf5", {**arrays, **still, "actions": np.zeros((5, 6))})
    command = ["data", "convert", str(tmp_path / "x.hdf5"), str(tmp_path / "out"), "--size", "16"]
    said = refused(capsys, *command[1:])
    assert "x.hdf5 does not say its task; `voc-rl data convert d4rl:" in said
    assert "x.hdf5 FOLDER --task TASK`, with one of HalfCheetah-v5, Walker2d-v5 (no other can be drawn), turns" in said
    assert not (tmp_path / ".out.part").exists()
    draw, drawn = StateRenderer.frame, []

    def cut(self: StateRenderer, physics: np.ndarray) -> np.ndarray:
        drawn.append(physics)
        if len(drawn) == 6:
            raise KeyboardInterrupt
        return draw(self, physics)

    task = next(iter(MODELS))
    with monkeypatch.context() as patch:
        patch.setattr(StateRenderer, "frame", cut)
        with pytest.raises(SystemExit):
            main([*command, "--task", task])
    main([*command, "--task", task])
    out = capsys.readouterr().out
    assert "check: " in out
    dataset = Episodes.open(tmp_path / "out")
    assert dataset.spec.task == task
    assert (dataset.ends - dataset.starts).tolist() == [4, 3]
    assert dataset.frame_shape == (3, 16, 16)
    np.testing.assert_array_equal(dataset.reward, [0, 0, 1, 2, 0, 1000, 1001])


def test_without_minari(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    said = "voc-rl: Minari's datasets need minari; run: pip install 'voc_rl[minari]'.\n"
    assert refused(capsys, "info", "minari:me/walker-v0") == said
    with pytest.raises(SystemExit) as caught:
        main(["train-quantizer", "--data", "minari:me/walker-v0", "--out", str(tmp_path), *SHORT])
    assert caught.value.code == 2
    assert capsys.readouterr().err == said
