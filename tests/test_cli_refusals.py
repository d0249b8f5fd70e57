"""The command line: bad input ends it with one sentence and exit code 2, and costs nothing that is there."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import COMMANDS, POLICY, SHORT, final_files, refused, train
from worlds import COMMAND, kill_when, write_world

from voc_rl.cli import command, main
from voc_rl.runs import RunFolder


def test_the_command_is_installed_and_exits_with_2(tmp_path: Path) -> None:
    run = subprocess.run(
        [COMMAND, *map(str, train(tmp_path / "none", tmp_path / "run"))], capture_output=True, check=False
    )
    assert run.returncode == 2
    assert run.stdout == b""
    assert run.stderr.decode() == (
        f"voc-rl: {tmp_path / 'none'} does not exist; a path, or FORMAT:PLACE with one of the formats d4rl, minari, "
        "vd4rl, voc, is needed.\n"
    )
    run = subprocess.run([COMMAND, "evaluate", "--help"], capture_output=True, check=False)
    assert run.returncode == 0
    run = subprocess.run([COMMAND, "dance"], capture_output=True, check=False)
    assert run.returncode == 2


def test_bad_collections(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "data"
    for arguments, words in (
        (["--task", "walker-fly", *POLICY], "walker-fly"),
        (["--task", "walker-walk", "--policy", "walker-walk/step_1"], "walker-walk/step_60000"),
        (["--task", "walker-walk", *POLICY, "--episodes", "0"], "episodes is 0"),
        (["--task", "walker-walk", *POLICY, "--processes", "0"], "processes is 0"),
        (["--task", "walker-walk", *POLICY, "--max-episode-steps", "0"], "max_episode_steps is 0"),
        (["--task", "walker-walk", *POLICY, "--seed", "-1"], "seed is -1"),
        (["--task", "walker-walk", *POLICY, "--epsilon", "2", "--sigma", "1"], "epsilon is 2"),
        (["--task", "walker-walk", *POLICY, "--epsilon", "0.1"], "--epsilon needs --sigma"),
        (["--task", "walker-walk", *POLICY, "--action-repeat", "0"], "action_repeat is 0"),
    ):
        assert words in refused(capsys, "collect", "--out", out, *arguments)
        assert not out.exists()


def test_force_does_not_cost_the_episodes_of_a_mistyped_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_world(tmp_path, episodes=2, rows=20)
    refused(capsys, "collect", "--task", "walker-fly", *POLICY, "--out", tmp_path, "--force")
    refused(capsys, "collect", "--task", "walker-walk", "--policy", "none", "--out", tmp_path, "--force")
    collect = ["collect", "--task", "walker-walk", *POLICY, "--out", tmp_path, "--force"]
    assert "episodes is 0" in refused(capsys, *collect, "--episodes", 0)
    with RunFolder(tmp_path):
        assert "is in use by another run" in refused(capsys, *collect)
    assert len(list(tmp_path.glob("*.hdf5"))) == 2


def test_bad_demos(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "cheetah-run, walker-walk" in refused(capsys, "demo", "--task", "hopper-hop", "--out", out)
    assert "episodes is 0" in refused(capsys, "demo", "--episodes", 0, "--out", out)
    assert "at least 3" in refused(capsys, "demo", "--episodes", 2, "--out", out)
    assert "seed is -1" in refused(capsys, "demo", "--seed", -1, "--out", out)
    assert "threads is 0" in refused(capsys, "demo", "--threads", 0, "--out", out)
    assert "Unknown device 'tpu'; accepted: auto, cpu, cuda" in refused(capsys, "demo", "--device", "tpu", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gamma", "1.0"], "gamma is 1.0"),
        (["--gamma", "-0.5"], "gamma is -0.5"),
        (["--size", "giant"], "small, tiny"),
        (
            ["--quantizer", "magic"],
            "Unknown quantizer 'magic'; accepted: dino, musik, vqgan, vqvae, or the folder of a trained one",
        ),
        (["--held-out", "1"], "held_out is 1"),
        (["--n", "0"], "n is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--quantizer-steps", "-3"], "steps is -3"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**63)], "seed is 9223372036854775808; a whole number from 0 to 2^63 - 1"),
        (["--threads", "-1"], "threads is -1"),
    ],
)
def test_bad_settings(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    for stage in ("train-quantizer", "train"):
        assert words in refused(capsys, stage, "--data", data, "--out", tmp_path, *SHORT, *arguments)
    assert final_files(tmp_path) == []


def broken(data: Path, folder: Path, key: str | None = None, **change: object) -> Path:
    """A copy of the data in which the third episode is broken."""
    folder.mkdir()
    for file in data.glob("*.hdf5"):
        (folder / file.name).write_bytes(file.read_bytes())
    third = folder / "episode_000002.hdf5"
    if key is None:
        third.write_bytes(third.read_bytes()[: third.stat().st_size // 2])
        return third
    with h5py.File(third, "r+") as file:
        array = file[key][()]
        array = change["to"](array)  # type: ignore[operator]
        del file[key]
        file[key] = array
    return third


def test_bad_data(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def nan(array: np.ndarray) -> np.ndarray:
        array[7] = np.nan
        return array

    for name, words, arguments in (
        ("truncated", "is not a whole HDF5 file", {}),
        ("nan", "reward holds NaN or infinity (first at row 7)", {"key": "reward", "to": nan}),
        ("shape", "frames of shape (3, 12, 24)", {"key": "observation", "to": lambda a: a[:, :, ::2]}),
        (
            "channels last",
            "uint8 (N, 3, H, W) is needed",
            {"key": "observation", "to": lambda a: a.transpose(0, 2, 3, 1)},
        ),
        ("dtype", "float32", {"key": "observation", "to": lambda a: a.astype(np.float32)}),
        ("length", "action", {"key": "action", "to": lambda a: a[:-1]}),
    ):
        file = broken(data, tmp_path / name, **arguments)  # type: ignore[arg-type]
        for stage in ("train-quantizer", "evaluate"):
            message = refused(capsys, stage, "--data", tmp_path / name, "--out", out, *SHORT)
            assert words in message
            assert str(file) in message
    (tmp_path / "empty").mkdir()
    assert "zero episodes" in refused(capsys, *train(tmp_path / "empty", out))
    assert "does not exist" in refused(capsys, *train(tmp_path / "missing.hdf5", out))
    assert final_files(out) == []


def test_frames_that_no_quantizer_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_world(tmp_path / "data", 3, 30, size=21)
    message = refused(capsys, *train(tmp_path / "data", tmp_path / "run"))
    assert "(9, 21, 21)" in message
    assert "multiples of 12" in message
    assert final_files(tmp_path / "run") == []


def test_too_short_for_the_discount(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    """Said before the training, not after it."""
    arguments = ["evaluate", "--data", data, "--out", tmp_path, *SHORT]
    assert "known return at gamma 0.9" in refused(capsys, *arguments, "--gamma", "0.9")
    assert "max_states is 1" in refused(capsys, *arguments, "--max-states", "1")
    assert "samples is 1" in refused(capsys, *arguments, "--samples", "1")
    assert final_files(tmp_path) == []


def test_a_folder_for_results_is_met_before_the_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = ["ope", "--data", tmp_path / "none", *POLICY, "--threads", "1", "--out"]
    assert "file cannot be used as a folder of results" in refused(capsys, *asked, tmp_path / "file")
    with RunFolder(tmp_path / "run"):
        assert "is in use by another run" in refused(capsys, *asked, tmp_path / "run")


def test_a_disk_without_locks(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", missing)
        said = refused(capsys, *train(data, tmp_path))
    assert said.endswith(
        f"{tmp_path / '.lock'} cannot be locked (No locks available); choose a folder on a local disk."
    )
    with RunFolder(tmp_path):  # it was let go
        pass


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--data", "d", "--out", "o"], "the same command goes on from the last checkpoint."),
        (["train", "--data", "d", "--out", "o", "--force"], "the same command without --force goes on from the last"),
        (["demo", "--force"], "the same command without --force goes on from the last checkpoint."),
        (["ope", "--data", "d", *POLICY], "it keeps no checkpoints without --out, so the same command starts again."),
        (["data", "info", "d"], "it keeps no checkpoints, so the same command starts again."),
        (["data", "validate", "d"], "it keeps no checkpoints, so the same command starts again."),
        (["data", "convert", "d", "o"], "the same command goes on from the last checkpoint."),
        (["data", "convert", "d", "o", "--to", "minari"], "it keeps no checkpoints, so the same command starts again."),
    ],
)
def test_what_an_interrupted_command_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    for own in (command.Train, command.Demo, command.Ope, command.Data):
        monkeypatch.setattr(own, "run", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith(f"voc-rl: interrupted; {says}")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(data: Path, unbuffered: str) -> None:
    """As in ``voc-rl data info DATA | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [COMMAND, "data", "info", str(data)], stdout=writer, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


def test_a_broken_pipe_of_another_kind_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: object) -> None:
        raise BrokenPipeError("a process that collects was lost")

    monkeypatch.setattr(command.Data, "run", lost)
    with pytest.raises(BrokenPipeError, match="was lost"):
        main(["data", "info", "d"])


def test_a_folder_in_use(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        for command in COMMANDS:
            arguments = [
                "--out",
                tmp_path,
                *(["--threads", "1"] if command == "demo" else ["--data", data, *SHORT]),
            ]
            if command != "collect":
                assert "is in use by another run" in refused(capsys, command, *arguments)
    assert final_files(tmp_path) == []


def test_a_checkpoint_of_other_settings(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    long = ["--data", str(data), "--out", str(out), *SHORT, "--quantizer-steps", "400"]
    kill_when(out / "checkpoints" / "quantizer.pt", [str(COMMAND), "train-quantizer", *long])
    before = (out / "checkpoints" / "quantizer.pt").read_bytes()
    with pytest.raises(SystemExit) as caught:
        main(["train-quantizer", *long, "--seed", "5"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith("use --force to start anew, or another --out.")
    assert (out / "checkpoints" / "quantizer.pt").read_bytes() == before
    main(["train-quantizer", *long, "--seed", "5", "--quantizer-steps", "20", "--force"])
    assert (out / "quantizer.safetensors").exists()


def test_a_wandb_that_does_not_start(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def no_key(**options: object) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", no_key)
    message = refused(capsys, *train(data, tmp_path / "run", "--wandb", "online"))
    assert "wandb did not start (No API key configured); log in, or use --wandb offline" in message


def test_an_extra_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, arguments in (
        ("wandb", train(data, tmp_path / "run", "--wandb", "offline")),
        ("minari", ["data", "info", "minari:walker/frames-v0"]),
        ("minari", ["data", "convert", data, "walker/frames-v0", "--to", "minari"]),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install 'voc_rl[{package}]'" in refused(capsys, *arguments)
    assert final_files(tmp_path) == []


def test_no_wandb_run_for_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, *train(tmp_path / "none", tmp_path / "run", "--wandb", "offline"))
    assert not list((tmp_path / "run").glob("wandb*"))
