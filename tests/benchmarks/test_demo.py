"""The demo's own logic, on a synthetic world in place of the simulator (real tasks: tests/integration)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import refusal, small_config, write_world

from voc_rl import VOC
from voc_rl.benchmarks import demo
from voc_rl.benchmarks.demo import DemoConfig, run_demo
from voc_rl.checkpoints import write_json
from voc_rl.errors import VOCError
from voc_rl.runs import RunFolder

METHODS = ["voc", "voc_head", "constant", "mc", "td", "one_step"]
STAGES = ["collect", "quantizer", "tokenize", "train", "evaluate", "mc", "td", "one_step", "report"]
CONFIG = DemoConfig(episodes=6, samples=20, max_states=40, baseline_steps=6, voc=small_config(quantizer=20, steps=20))


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(data: Path, task: str, policy: Any, episodes: int, seed: int, **options: Any) -> int:
        assert options["max_episode_steps"] == 250
        write_world(data, episodes, rows=30, size=36, seed=seed)
        write_json(data / "collect.json", {"seed": seed, "task": task, "max_episode_steps": 250})
        return episodes

    monkeypatch.setattr(demo, "collect", collect)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs a finished run; each test gets a fresh copy of its folder."""
    return {"folder": tmp_path_factory.mktemp("finished") / "run"}


def done(finished: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    if "metrics" not in finished:
        finished["metrics"] = run_demo(CONFIG, finished["folder"], progress=False, say=lambda line: None)
    return finished["folder"], finished["metrics"]


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores, without the seconds."""
    return {
        name: {key: value for key, value in scores.items() if key != "cpu_seconds"}
        for name, scores in metrics["methods"].items()
    }


def test_metrics_of_all_methods(finished: dict[str, Any]) -> None:
    folder, metrics = done(finished)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert list(metrics["methods"]) == METHODS
    assert all(np.isfinite(list(scores.values())).all() for scores in metrics["methods"].values())
    assert list(metrics["seconds"]) == STAGES
    cpu = metrics["cpu_seconds"]
    of = {name: scores.get("cpu_seconds") for name, scores in metrics["methods"].items()}
    assert of["constant"] is None
    assert of["voc"] == of["voc_head"] == pytest.approx(cpu["quantizer"] + cpu["train"], abs=0.06)
    assert of["mc"] == pytest.approx(cpu["mc"], abs=0.06)
    assert of["one_step"] == pytest.approx(cpu["quantizer"] + cpu["one_step"], abs=0.06)
    assert metrics["methods"]["constant"]["error"] >= 1.0


def test_a_second_run_skips_everything(finished: dict[str, Any]) -> None:
    folder, metrics = done(finished)
    report = (folder / "report.html").stat().st_mtime_ns
    said: list[str] = []
    again = run_demo(CONFIG, folder, progress=False, say=said.append)
    assert again == metrics
    assert {line.split(":")[0] for line in said if "skipped" in line} == set(STAGES)
    assert (folder / "report.html").stat().st_mtime_ns == report
    assert sum(1 for line in said if "report.html" in line) == 1


def test_a_lost_report_is_written_again(finished: dict[str, Any]) -> None:
    folder, metrics = done(finished)
    (folder / "report.html").unlink()
    again = run_demo(CONFIG, folder, progress=False, say=lambda line: None)
    assert (folder / "report.html").exists()
    assert numbers(again) == numbers(metrics)


def test_a_lost_episode_is_collected_again(finished: dict[str, Any]) -> None:
    folder, metrics = done(finished)
    (folder / "data" / "episode_000003.hdf5").unlink()
    said: list[str] = []
    again = run_demo(CONFIG, folder, progress=False, say=said.append)
    assert {line.split(":")[0] for line in said if "skipped" in line} == set(STAGES) - {"collect"}
    assert numbers(again) == numbers(metrics)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "cheetah-run"}, r"other settings (task was 'walker-walk' and is 'cheetah-run')"),
        ({"voc": replace(CONFIG.voc, seed=1)}, "other settings (seed was 0 and is 1)"),
        ({"episode_steps": 40}, "other settings (max_episode_steps was 250 and is 40)"),
        ({"episodes": 5}, "holds 6 episodes and 5 are asked for; ask for 6, choose another --out, or use --force"),
    ],
)
def test_a_demo_that_does_not_fit_the_folder_changes_nothing(
    finished: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    folder, _ = done(finished)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert words in refusal(run_demo, replace(CONFIG, **change), folder, progress=False, say=lambda line: None)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_the_model_loads(finished: dict[str, Any]) -> None:
    folder, _ = done(finished)
    assert VOC.load(folder).gamma == 0.5


@pytest.mark.parametrize(
    "stage",
    [
        "_critic",
        pytest.param("_one_step", marks=pytest.mark.slow),
        pytest.param("write_run_report", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_demo_goes_on_to_the_same_numbers(
    tmp_path: Path, finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    _, expected = done(finished)

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(demo, stage, interrupt)
        run_demo(CONFIG, tmp_path, progress=False, say=lambda line: None)
    assert not (tmp_path / "report.html").exists()
    metrics = run_demo(CONFIG, tmp_path, progress=False, say=lambda line: None)
    assert numbers(metrics) == numbers(expected)


@pytest.mark.slow
def test_force_does_all_of_it(tmp_path: Path, finished: dict[str, Any]) -> None:
    _, expected = done(finished)
    run_demo(CONFIG, tmp_path, progress=False, say=lambda line: None)
    report = (tmp_path / "report.html").stat().st_mtime_ns
    said: list[str] = []
    metrics = run_demo(CONFIG, tmp_path, progress=False, force=True, say=said.append)
    assert not [line for line in said if "skipped" in line]
    assert (tmp_path / "report.html").stat().st_mtime_ns > report
    assert numbers(metrics) == numbers(expected)
    assert len(RunFolder(tmp_path).curve()) > 0


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path: Path, finished: dict[str, Any]) -> None:
    _, expected = done(finished)
    metrics = run_demo(
        replace(CONFIG, voc=replace(CONFIG.voc, seed=1)), tmp_path, progress=False, say=lambda line: None
    )
    assert metrics["seed"] == 1
    assert numbers(metrics)["voc"] != numbers(expected)["voc"]


def test_refused_configs() -> None:
    for change, words in (
        ({"task": "hopper-hop"}, "cheetah-run, walker-walk"),
        ({"episodes": 0}, "episodes is 0"),
        ({"episodes": 2}, "at least 3"),
        ({"episode_steps": 0}, "episode_steps is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"max_states": 0}, "max_states is 0"),
    ):
        with pytest.raises(VOCError, match=words):
            replace(CONFIG, **change)  # type: ignore[arg-type]
