"""Stages of a run that are killed for real: the same command goes on to the same weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from test_pipeline import skipped
from worlds import COMMAND, kill_when

from voc_rl.checkpoints import load_tensors, load_torch_file
from voc_rl.cli import main
from voc_rl.runs import RunFolder

STEPS = ["--gamma", "0.5", "--quantizer-steps", "20", "--steps", "30", "--reward-steps", "10", "--threads", "1"]


def command(name: str, data: Path, out: Path) -> list[str]:
    return [str(COMMAND), name, "--data", str(data), "--out", str(out), *STEPS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    subprocess.run(command("train", data, out), check=True, capture_output=True)
    return out


def same_tensors(one: Path, two: Path) -> bool:
    a, b = load_tensors(one), load_tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "steps"), [("quantizer", 20), ("train", 30)])
def test_a_killed_training_goes_on_to_the_same_weights(
    tmp_path: Path, data: Path, whole: Path, capsys: pytest.CaptureFixture[str], stage: str, steps: int
) -> None:
    checkpoint = tmp_path / "checkpoints" / f"{stage}.pt"
    name = {"quantizer": "train-quantizer", "train": "train"}[stage]
    kill_when(checkpoint, command(name, data, tmp_path))
    reached = load_torch_file(checkpoint)["step"]
    assert 0 < reached < steps  # in the middle
    final = {"quantizer": "quantizer", "train": "voc"}[stage]
    assert not list(tmp_path.glob(f"{final}.*"))  # nothing half-written under a final name
    other = [*command(name, data, tmp_path)[1:], "--held-out", "0.4"]
    if stage == "quantizer":  # its checkpoint is not lost to a command with other settings
        with pytest.raises(SystemExit) as caught:
            main(other)
        assert caught.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("use --force to start anew, or another --out.")
        assert load_torch_file(checkpoint)["step"] == reached
    resumed = subprocess.run(command(name, data, tmp_path), check=True, capture_output=True, text=True)
    assert skipped(resumed.stdout.splitlines()) == ([] if stage == "quantizer" else ["quantizer", "tokenize"])
    files = [f"{name}.safetensors" for name in ("quantizer", "tokens", "voc")]
    for file in files[: 1 if stage == "quantizer" else 3]:
        assert same_tensors(tmp_path / file, whole / file), file
    assert not checkpoint.exists()
    assert not list(tmp_path.rglob("*.part"))
    curve, expected = RunFolder(tmp_path).curve(), RunFolder(whole).curve()
    assert curve == expected[: len(curve)]
    assert len(curve) == len(expected) or stage == "quantizer"


def test_a_curve_goes_with_the_work_that_left_no_checkpoint(tmp_path: Path) -> None:
    def curve(run: RunFolder) -> list[float]:
        return [row["loss"] for row in run.curve() if row["stage"] == "occupancy"]

    def train(run: RunFolder, mark: str, loss: float) -> None:
        with run.stage("train", mark, {}):
            run.log("occupancy", 50, {"loss": loss})
            raise KeyboardInterrupt

    with RunFolder(tmp_path) as run:
        run.log("quantizer", 50, {"loss": 9.0})
        for mark, loss in (("old", 2.0), ("new", 1.5), ("new", 1.25)):  # another network, then other threads
            with pytest.raises(KeyboardInterrupt):
                train(run, mark, loss)
            assert curve(run) == [loss]
        checkpoint = run.checkpoints("train", "new", 700).path
        checkpoint.parent.mkdir()
        checkpoint.write_text("state")  # from which the work goes on, or which refuses other settings
        with pytest.raises(KeyboardInterrupt):
            train(run, "new", 1.0)
        assert curve(run) == [1.25, 1.0]
        assert checkpoint.exists()
        assert len(run.curve()) == 3
