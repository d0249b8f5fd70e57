"""The command line: help, and the stages on a real small collection."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import COMMANDS, POLICY, SHORT, final_files, refused, train
from worlds import COMMAND

from voc_rl import VOC, Episodes
from voc_rl.benchmarks import demo
from voc_rl.cli import main
from voc_rl.cli.data import Info
from voc_rl.model_files import weights_mark
from voc_rl.quantizers import load_quantizer
from voc_rl.runs import RunFolder
from voc_rl.wandb_log import wandb_listener


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in {"": COMMANDS, "demo": ("--task", "--out"), "collect": ("--policy", "--out")}.get(
        command, ("--data", "--out", "--force", "--gamma")
    ):
        assert word in out
    if command == "train":
        assert "--wandb" in out
    if command == "":
        assert "values of states and of policies from logged pixels" in out
    words = " ".join(out.replace("│", " ").split())
    if command not in ("", "demo", "collect"):
        assert "Discount of the values, in [0, 1). (default: 0.9)" in words
    if command == "collect":
        assert "Height and width of the frames, in pixels. (default: 84)" in words


def test_each_task_and_quantizer_of_the_demo_has_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, Path]] = []
    monkeypatch.setattr(demo, "run_demo", lambda config, out, **options: found.append((config.task, out)))
    for more in ((), ("--task", "cheetah-run"), ("--task", "cheetah-run", "--out", "mine"), ("--quantizer", "dino")):
        main(["demo", "--threads", "1", *more])
    assert found == [
        ("walker-walk", Path("runs/demo")),
        ("cheetah-run", Path("runs/demo_cheetah-run")),
        ("cheetah-run", Path("mine")),
        ("walker-walk", Path("runs/demo_dino")),  # not in place of what is there
    ]


def test_stages_of_a_synthetic_run(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    shared = ["--data", str(data), "--out", str(tmp_path), *SHORT]
    main(["train-quantizer", *shared])
    assert "quantizer.safetensors" in final_files(tmp_path)
    assert "tokens.safetensors" not in final_files(tmp_path)
    main(["tokenize", *shared])
    assert "tokens.safetensors" in final_files(tmp_path)
    assert "voc.safetensors" not in final_files(tmp_path)
    main(["train", *shared])
    capsys.readouterr()
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20"])
    out = capsys.readouterr().out
    for stage in ("quantizer", "tokenize", "train"):
        assert f"{stage}: done already, skipped" in out
    assert re.search(r"^voc_head +\d", out, re.MULTILINE)
    assert "evaluate: done" not in out
    assert f"Report: {tmp_path / 'report.html'}" in out
    page = (tmp_path / "report.html").read_text()
    assert "What are the states of" in page
    assert "were recorded" not in page  # nothing is missing
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "figures").iterdir()}
    assert set(pictures) == {"scatter.png", "episode.png", "futures.png"}
    assert min(pictures.values()) > 3000
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20"])
    assert "report: done already, skipped (voc-rl evaluate --force does it again)" in capsys.readouterr().out
    (tmp_path / "report.html").unlink()
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20"])
    out = capsys.readouterr().out
    assert "evaluate: done already, skipped" in out
    assert "report: done" not in out
    assert (tmp_path / "report.html").exists()
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20", "--force"])
    out = capsys.readouterr().out
    assert "evaluate: done" not in out
    assert "report: done" not in out
    (tmp_path / "report.html").write_text("another's")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["methods"]["mc"] = metrics["methods"]["voc"]  # scored beside them: the report is another's matter
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20"])
    assert (tmp_path / "report.html").read_text() == "another's"
    steps = {row["step"] for row in RunFolder(tmp_path).curve() if row["stage"].startswith("reward")}
    assert steps == {50, 60}  # of both networks of the head
    before = (tmp_path / "voc.safetensors").read_bytes()
    said = refused(capsys, "train", *shared, "--n", "1", "--recipe", "paper")
    assert "train is finished with other settings (network.attention_dropout was 0.0 and is 0.1, " in said
    assert said.endswith("more); --force replaces it, or give another --out.")
    assert "(samples was 10 and is 100, max_states was 20 and is 600);" in refused(capsys, "evaluate", *shared)
    assert (tmp_path / "voc.safetensors").read_bytes() == before
    main(["tokenize", *shared, "--force"])
    assert "tokenize: done" not in capsys.readouterr().out


def test_the_quantizer_of_a_folder_is_taken_as_it_is(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(["train-quantizer", "--data", str(data), "--out", str(first), *SHORT, "--stack", "2"])
    shared = ["--data", str(data), "--out", str(second), *SHORT, "--quantizer", str(first)]
    capsys.readouterr()
    assert f"The quantizer of {first} is trained; go on by tokenize" in refused(capsys, "train-quantizer", *shared)
    main(["train", *shared])
    main(["tokenize", *shared])
    assert "tokenize: done already, skipped" in capsys.readouterr().out
    assert (second / "quantizer.safetensors").read_bytes() == (first / "quantizer.safetensors").read_bytes()
    voc = VOC.load(second)
    assert voc.observation_shape == (6, 24, 24)
    stages = json.loads((second / "config.json").read_text())["stages"]
    assert stages["train"]["quantizer_weights"] == weights_mark(voc.quantizer)
    main(
        ["train-quantizer", "--data", str(data), "--out", str(first), *SHORT, "--stack", "2", "--seed", "1", "--force"]
    )
    capsys.readouterr()
    assert "(quantizer_weights was " in refused(capsys, "tokenize", *shared)
    taken = refused(capsys, "train-quantizer", *shared)
    assert taken.endswith(f"go on by tokenize or train, or replace another one in {second} by --force.")
    main(["train-quantizer", *shared, "--force"])
    assert (second / "quantizer.safetensors").read_bytes() == (first / "quantizer.safetensors").read_bytes()
    main(["train", *shared])  # its networks are of a quantizer that is gone
    assert "train: done before, but with other data" in capsys.readouterr().out


def test_the_name_of_a_quantizer_is_no_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae/quantizer.json").write_text("{}")
    main(["train-quantizer", "--data", str(data), "--out", "run", *SHORT, "--quantizer", "vqvae"])
    assert load_quantizer(tmp_path / "run").name == "vqvae"


def test_a_run_of_a_range_of_discounts(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    shared = ["--data", str(data), "--out", str(tmp_path), *SHORT, "--gammas", "0.3", "0.8"]
    main(["train", *shared])
    main(["evaluate", *shared, "--samples", "10", "--max-states", "20"])
    assert "train: done already, skipped" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["gamma"] == 0.5
    assert set(metrics["methods"]) == {"voc", "voc_head", "constant"}
    voc, obs = VOC.load(tmp_path), Episodes.open(data).observations(np.arange(60))
    assert (voc.gammas, voc.gamma) == ((0.3, 0.8), 0.5)
    means = [voc.value(obs, gamma).mean for gamma in (0.3, 0.8)]
    assert 2.5 < means[1].mean() / means[0].mean() < 4.5  # .7 / .2, were rewards the same everywhere
    assert np.ptp(means[0] * 0.7 - means[1] * 0.2) > 1e-3  # they are not, and the network tells discounts apart
    np.testing.assert_array_equal(voc.value(obs).mean, voc.value(obs, 0.5).mean)
    assert (voc.value(obs[:4], 0.9, "sample", samples=10).mean >= 0).all()  # by hops
    said = refused(capsys, "evaluate", *shared[:-2], "0.6", "0.8")
    assert "gamma 0.5 is outside gammas (0.6, 0.8)" in said


@pytest.mark.slow
def test_wandb_offline(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    environment = {**os.environ, "WANDB_SILENT": "true", "HOME": str(tmp_path), "WANDB_DIR": str(out)}
    run = subprocess.run(
        [COMMAND, *map(str, train(data, out, "--steps", "60", "--wandb", "offline"))],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (logged,) = out.glob("wandb/offline-run-*/run-*.wandb")
    assert logged.stat().st_size > 500
    assert b"occupancy/loss" in logged.read_bytes()
    assert {row["stage"] for row in RunFolder(out).curve()} == {"quantizer", "occupancy", "reward", "reward_in_context"}


class StubRun:
    def __init__(self, name: str) -> None:
        self.id, self.logged = name, 0

    def log(self, numbers: dict[str, float]) -> None:
        self.logged += 1

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == (f"{name[:-2]}/*", f"{name[:-2]}/step")


def test_a_resumed_training_goes_on_in_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    asked: list[str | None] = []
    named: list[tuple[str, str]] = []

    def init(**options: Any) -> StubRun:
        assert options["resume"] == "allow"
        assert options["config"] == {"seed": 3}
        asked.append(options["id"])
        named.append((options["project"], options["name"]))
        return StubRun(options["id"] or f"new{len(asked)}")

    monkeypatch.setattr(wandb, "init", init)
    for mark, force in (("a", False), ("a", False), ("a", True), ("a", False), ("b", False), ("b", False)):
        wandb_listener("offline", tmp_path, mark, {"seed": 3}, force)("occupancy", 50, {"loss": 1.0})
        monkeypatch.setenv("WANDB_PROJECT", "walkers")
        monkeypatch.setenv("WANDB_NAME", "the third")
    assert asked == [None, "new1", None, "new3", None, "new5"]  # a forced training, or another one, has its own
    assert named == [("voc_rl", tmp_path.name)] + 5 * [("walkers", "the third")]


def test_training_says_to_wandb_what_is_trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    asked: list[str | None] = []
    discounts: list[float] = []

    def init(**options: Any) -> StubRun:
        asked.append(options["id"])
        discounts.append(options["config"]["occupancy"]["gamma"])
        return StubRun(options["id"] or f"new{len(asked)}")

    monkeypatch.setattr(wandb, "init", init)
    for more in ([], [], ["--gamma", "0.4", "--force"]):
        main([str(word) for word in train(data, tmp_path, "--wandb", "offline", *more)])
    assert asked == [None, "new1", None]
    assert discounts[2] == 0.4 != discounts[0] == discounts[1]


def test_without_anybody_to_read_it_works_all_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    main(["data", "info", str(data)])
    print("to nobody", file=sys.stderr)


def test_what_a_terminal_cannot_show_is_replaced(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    monkeypatch.setattr(Info, "run", lambda self: print("(1 − γ) V"))
    main(["data", "info", str(data)])
    sys.stdout.flush()
    assert printed.getvalue() == b"(1 ? ?) V\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"voc-rl {version('voc_rl')}\n"


@pytest.mark.slow
def test_stages_on_a_real_small_collection(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    collect = ["collect", "--task", "walker-walk", *POLICY, "--out", str(data), "--max-episode-steps", "40",
               "--processes", "1"]  # fmt: skip
    main([*collect, "--episodes", "3"])
    first = (data / "episode_000000.hdf5").stat().st_mtime_ns
    main([*collect, "--episodes", "4"])
    assert "1 new episodes, 3 were there already" in capsys.readouterr().out
    assert (data / "episode_000000.hdf5").stat().st_mtime_ns == first
    dataset = Episodes.open(data)
    assert (dataset.ends - dataset.starts).tolist() == [41] * 4
    assert dataset.spec.task == "walker-walk"
    assert "other settings" in refused(capsys, *collect, "--episodes", 4, "--seed", 1)
    shared = ["--data", str(data), "--out", str(out), *SHORT]
    for command in ("train-quantizer", "tokenize", "train"):
        main([command, *shared])
    main(["evaluate", *shared, "--samples", "20"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["task"] == "walker-walk"
    assert metrics["gamma"] == 0.5
    assert set(metrics["methods"]) == {"voc", "voc_head", "constant"}
    for scores in metrics["methods"].values():
        assert set(scores) == {"error", "nrmse", "mae", "bias", "spearman", "pearson"}
        assert np.isfinite(list(scores.values())).all()
    assert set(metrics["seconds"]) == {"quantizer", "tokenize", "train", "evaluate"}
    assert 10**8 < metrics["peak_memory_bytes"] < 8 * 2**30  # of the process, with the tests before this one
    voc = VOC.load(out)
    assert voc.spec == dataset.spec
    assert voc.observation_shape == (9, 84, 84)
    estimate = voc.value(dataset.observations(np.arange(5)), estimator="sample", samples=20)
    assert estimate.mean.min() >= 0
    assert estimate.mean.max() <= 4  # 2 per agent step at most, gamma .5
