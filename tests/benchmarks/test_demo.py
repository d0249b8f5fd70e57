"""The demo's own logic, on a synthetic world in place of the simulator (real tasks: tests/integration)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import numbers, refusal, small_config, write_world

from voc_rl import VOC
from voc_rl.benchmarks import demo
from voc_rl.benchmarks.demo import DemoConfig, run_demo
from voc_rl.checkpoints import write_json
from voc_rl.errors import VOCError
from voc_rl.runs import RunFolder

METHODS = ["voc", "voc_head", "constant", "mc", "td", "one_step"]
STAGES = ["collect", "quantizer", "tokenize", "train", "evaluate", "mc", "td", "one_step", "report"]
CONFIG = DemoConfig(
    episodes=6, samples=20, max_states=40, baseline_steps=6, voc=small_config(quantizer=20, steps=20, seed=2)
)


@pytest.fixture(scope="module", autouse=True)
def no_simulator() -> Iterator[None]:
    def collect(data: Path, task: str, policy: Any, episodes: int, seed: int, **options: Any) -> int:
        assert options["max_episode_steps"] == 250
        write_world(data, episodes, rows=30, size=36, seed=seed)
        write_json(data / "collect.json", {"seed": seed, "task": task, "max_episode_steps": 250})
        return episodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "collect", collect)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run, to be copied, and its metrics."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run_demo(CONFIG, folder, progress=False, say=lambda line: None)


@pytest.fixture
def folder(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished run, to do with as a test likes."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def expected(finished: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    """What run_demo returned for the finished run."""
    return finished[1]


def test_metrics_of_all_methods(folder: Path, expected: dict[str, Any]) -> None:
    assert json.loads((folder / "metrics.json").read_text()) == expected
    assert list(expected["methods"]) == METHODS
    assert expected["seed"] == CONFIG.voc.seed
    assert all(np.isfinite(list(scores.values())).all() for scores in expected["methods"].values())
    assert list(expected["seconds"]) == STAGES
    cpu = expected["cpu_seconds"]
    of = {name: scores.get("cpu_seconds") for name, scores in expected["methods"].items()}
    assert of["constant"] is None
    assert of["voc"] == of["voc_head"] == pytest.approx(cpu["quantizer"] + cpu["train"], abs=0.06)
    assert of["mc"] == pytest.approx(cpu["mc"], abs=0.06)
    assert of["one_step"] == pytest.approx(cpu["quantizer"] + cpu["one_step"], abs=0.06)
    assert expected["methods"]["constant"]["error"] >= 1.0


def test_a_second_run_skips_everything(folder: Path, expected: dict[str, Any]) -> None:
    report = (folder / "report.html").stat().st_mtime_ns
    said: list[str] = []
    again = run_demo(CONFIG, folder, progress=False, say=said.append)
    assert again == expected
    assert {line.split(":")[0] for line in said if "skipped" in line} == set(STAGES)
    assert (folder / "report.html").stat().st_mtime_ns == report
    assert sum(1 for line in said if "report.html" in line) == 1


def test_a_lost_report_is_written_again(folder: Path, expected: dict[str, Any]) -> None:
    (folder / "report.html").unlink()
    again = run_demo(CONFIG, folder, progress=False, say=lambda line: None)
    assert (folder / "report.html").exists()
    assert numbers(again) == numbers(expected)


def test_a_lost_episode_is_collected_again(folder: Path, expected: dict[str, Any]) -> None:
    (folder / "data" / "episode_000003.hdf5").unlink()
    said: list[str] = []
    again = run_demo(CONFIG, folder, progress=False, say=said.append)
    assert {line.split(":")[0] for line in said if "skipped" in line} == set(STAGES) - {"collect"}
    assert numbers(again) == numbers(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "cheetah-run"}, r"other settings (task was 'walker-walk' and is 'cheetah-run')"),
        ({"voc": replace(CONFIG.voc, seed=1)}, "other settings (seed was 2 and is 1)"),
        ({"episode_steps": 40}, "other settings (max_episode_steps was 250 and is 40)"),
        ({"episodes": 5}, "holds 6 episodes and 5 are asked for; ask for 6, choose another --out, or use --force"),
    ],
)
def test_a_demo_that_does_not_fit_the_folder_changes_nothing(folder: Path, change: dict[str, Any], words: str) -> None:
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert words in refusal(run_demo, replace(CONFIG, **change), folder, progress=False, say=lambda line: None)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_the_model_loads(folder: Path) -> None:
    assert VOC.load(folder).gamma == 0.5


def test_an_interrupted_demo_goes_on_to_the_same_numbers(
    tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for stage in ("_critic", "_one_step", "write_run_report"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(demo, stage, interrupt)
            run_demo(CONFIG, tmp_path, progress=False, say=lambda line: None)
        assert not (tmp_path / "report.html").exists()
    metrics = run_demo(CONFIG, tmp_path, progress=False, say=lambda line: None)
    assert numbers(metrics) == numbers(expected)


@pytest.mark.slow
def test_force_does_all_of_it(folder: Path, expected: dict[str, Any]) -> None:
    report = (folder / "report.html").stat().st_mtime_ns
    said: list[str] = []
    metrics = run_demo(CONFIG, folder, progress=False, force=True, say=said.append)
    assert not [line for line in said if "skipped" in line]
    assert (folder / "report.html").stat().st_mtime_ns > report
    assert numbers(metrics) == numbers(expected)
    assert len(RunFolder(folder).curve()) > 0


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
