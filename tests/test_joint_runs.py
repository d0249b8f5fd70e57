"""The command's joint training: one stage, the run folder of all stages, killed and resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pipeline_kills import STEPS
from worlds import COMMAND, kill_when, small_config

from voc_rl import VOC, Episodes
from voc_rl.checkpoints import load_tensors, load_torch_file
from voc_rl.cli import main
from voc_rl.joint import JointTraining
from voc_rl.pipeline import Pipeline
from voc_rl.quantizers import tokenize
from voc_rl.runs import RunFolder


def command(name: str, data: Path, out: Path) -> list[str]:
    return [name, "--data", str(data), "--out", str(out), *STEPS, "--joint"]


def files(out: Path, *names: str) -> list[bytes]:
    """Weight files as they stand on disk; equal tensors give equal files."""
    return [(out / f"{name}.safetensors").read_bytes() for name in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    main(command("train", data, out))
    return out


def test_one_stage_leaves_a_run_folder_as_all_stages_do(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in whole.iterdir()} >= {"voc.json", "quantizer.json", "tokens.safetensors"}
    tokens = load_tensors(whole / "tokens.safetensors")
    codes, features = tokenize(VOC.load(whole).quantizer, Episodes.open(data))
    assert torch.equal(tokens["codes"], codes)
    assert torch.equal(tokens["features"], features)
    assert {row["stage"] for row in RunFolder(whole).curve()} == {"joint", "reward", "reward_in_context"}
    run = shutil.copytree(whole, tmp_path / "run")
    main([*command("evaluate", data, run), "--samples", "20"])
    said = capsys.readouterr().out
    assert "train: done already, skipped" in said
    assert "tokenize: done already, skipped" in said
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"voc", "voc_head", "constant"}
    assert set(metrics["seconds"]) == {"train", "tokenize", "evaluate"}


def test_the_quantizer_has_no_stage_of_its_own(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command("train-quantizer", data, tmp_path / "run"))
    assert caught.value.code == 2
    assert "use voc-rl train --joint" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_both_ways_in_one_folder_do_not_take_each_others_files(data: Path, tmp_path: Path) -> None:
    """Joint, by stages, joint: each finds its own quantizer, or trains it anew."""
    config = small_config(gamma=0.5, quantizer=10, steps=10)
    found = []
    for joint in (JointTraining(), None, None, JointTraining(), JointTraining()):
        said: list[str] = []
        with RunFolder(tmp_path) as run:
            Pipeline(run, data, replace(config, joint=joint), say=said.append).train()
        VOC.load(tmp_path)  # the quantizer is the one that it was trained with
        skipped = any(line.startswith("train: done already") for line in said)
        found.append((files(tmp_path, "voc", "quantizer"), skipped))
    assert [skipped for _, skipped in found] == [False, False, True, False, True]
    one, two = found[0][0], found[1][0]
    assert [weights for weights, _ in found] == [one, two, two, one, one]
    assert one != two


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(data: Path, whole: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "train.pt"
    kill_when(checkpoint, [str(COMMAND), *command("train", data, tmp_path)])
    assert 0 < load_torch_file(checkpoint)["step"] < 30
    assert not list(tmp_path.glob("*.safetensors"))
    main(command("train", data, tmp_path))
    assert files(tmp_path, "quantizer", "voc", "tokens") == files(whole, "quantizer", "voc", "tokens")
    assert RunFolder(tmp_path).curve() == RunFolder(whole).curve()
