"""From pixels to values on the real tasks, tiny: the whole demo, and one that is killed on its way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import kill_when, numbers

from voc_rl import VOC, Episodes
from voc_rl.benchmarks.demo import DemoConfig, run_demo
from voc_rl.checkpoints import load_torch_file
from voc_rl.configs import from_dict
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining
from voc_rl.quantizers import DINOConfig, VQGANConfig
from voc_rl.runs import RunFolder
from voc_rl.training import NetworkSize, VOCConfig
from voc_rl.values import RewardConfig

pytestmark = pytest.mark.slow

TASK = "walker-walk"
METHODS = {"voc", "voc_head", "constant", "mc", "td", "one_step"}
STAGES = ["collect", "quantizer", "tokenize", "train", "evaluate", "mc", "td", "one_step", "report"]
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from voc_rl.benchmarks.demo import DemoConfig, run_demo
from voc_rl.configs import from_dict
torch.set_num_threads(1)
run_demo(from_dict(DemoConfig, json.loads(sys.argv[1])), Path(sys.argv[2]), processes=1, progress=False)
"""


SMALL = {"n_tokens": 2, "components": 16, "hidden": 64, "decoder_width": 8}
PATCHES = {"width": 32, "depth": 1, "heads": 2, "patch": 28, "codebook_size": 16, "code_dim": 4, "decoder_width": 8}
# quantizer -> (its config, tokens, codes)
QUANTIZERS = {
    "vqvae": (SMALL, 2, 240),
    "musik": ({**SMALL, "negatives": 16}, 2, 240),
    "dino": (asdict(DINOConfig.small(**PATCHES, teacher_width=32, teacher_steps=5)), 27, 16),
    "vqgan": (asdict(VQGANConfig.small(channels=8, side=16, codebook_size=16)), 3, 16),
}


def config(task: str, quantizer: str = "vqvae") -> DemoConfig:
    voc = VOCConfig(
        quantizer=quantizer,
        quantizer_config=QUANTIZERS[quantizer][0],
        quantizer_training=LoopConfig(steps=40, batch_size=32),
        network=NetworkSize(n_layer=1, n_head=2, width=32, head_hidden=32, head_members=3),
        occupancy=OccupancyTraining(gamma=0.5, loop=LoopConfig(steps=60, batch_size=64, learning_rate=4e-3)),
        reward=RewardConfig(hidden=32, loop=LoopConfig(steps=60, batch_size=64)),
    )
    return DemoConfig(task, episodes=5, episode_steps=30, samples=20, max_states=20, baseline_steps=8, voc=voc)


def run(task: str, out: Path, quantizer: str = "vqvae") -> tuple[list[str], dict[str, Any], float]:
    said: list[str] = []
    started = time.perf_counter()
    metrics = run_demo(config(task, quantizer), out, processes=1, progress=False, say=said.append)
    return said, metrics, time.perf_counter() - started


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Walker-walk; the other quantizers take cheetah-run."""
    out = tmp_path_factory.mktemp("demo") / TASK
    return out, run(TASK, out)


def test_the_whole_demo(finished: tuple[Path, Any]) -> None:
    out, (said, metrics, wall) = finished
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["task"] == TASK
    assert metrics["gamma"] == 0.5
    assert set(metrics["methods"]) == METHODS
    for name, scores in metrics["methods"].items():
        assert {"error", "nrmse", "mae", "bias", "spearman", "pearson"} <= set(scores), name
        assert np.isfinite(list(scores.values())).all(), name
    assert list(metrics["seconds"]) == STAGES
    assert 0.5 * wall < sum(metrics["seconds"].values()) <= wall
    assert 10**8 < metrics["peak_memory_bytes"] < 8 * 2**30  # of the process, with the tests before this one
    assert metrics["episodes"] == {"training": 4, "held_out": 1}
    table = "\n".join(said)
    assert str(out / "report.html") in table
    dataset = Episodes.open(out / "data")
    assert len(dataset) == 5 * 31
    assert dataset.spec.task == TASK
    assert dataset.observation_shape == (9, 84, 84)


def test_the_report_needs_no_other_file(finished: tuple[Path, Any]) -> None:
    out, (_, metrics, _) = finished
    report = (out / "report.html").read_text()
    assert TASK in report
    assert report.count("data:image/") >= 5
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)(?:https?:|//|\w+\.(?:png|css|js))""", report)
    assert not re.findall(r"@import|url\((?!['\"]?data:)", report)
    assert "nan" not in re.sub(r"data:image/[^\"']+", "", report).lower().split()
    assert len(report) < 20_000_000
    assert metrics["states"] > 10


def test_the_model_of_the_folder_loads(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    voc, dataset = VOC.load(out), Episodes.open(out / "data")
    assert voc.spec.task == TASK
    for estimator in ("head", "sample"):
        estimate = voc.value(dataset.observations(np.arange(6)), estimator=estimator)  # type: ignore[arg-type]
        assert np.isfinite(estimate.mean).all()


def test_a_second_run_skips_all(finished: tuple[Path, Any]) -> None:
    out, (_, metrics, _) = finished
    said, again, _ = run(TASK, out)
    assert again == metrics
    assert {line.split(":")[0] for line in said if "done already, skipped" in line} == set(STAGES)


def test_another_task_is_kept_out_of_the_folder(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    with pytest.raises(ValueError, match="was collected with other settings"):
        run("cheetah-run", out)
    assert json.loads((out / "metrics.json").read_text())["task"] == TASK


def test_a_demo_killed_three_times_ends_with_the_same_numbers(finished: tuple[Path, Any], tmp_path: Path) -> None:
    _, (_, metrics, _) = finished
    demo = config(TASK)
    assert from_dict(DemoConfig, json.loads(json.dumps(asdict(demo)))) == demo
    command = [sys.executable, "-c", SCRIPT, json.dumps(asdict(demo)), str(tmp_path)]
    kill_when(tmp_path / "data" / "episode_000001.hdf5", command)
    assert len(list((tmp_path / "data").glob("*.hdf5"))) < 5
    kill_when(tmp_path / "checkpoints" / "train.pt", command)
    assert load_torch_file(tmp_path / "checkpoints" / "train.pt")["step"] < 60
    kill_when(tmp_path / "estimates" / "mc.safetensors", command)
    assert not (tmp_path / "report.html").exists()
    subprocess.run(command, check=True, capture_output=True)
    resumed = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers(resumed) == numbers(metrics)
    assert (tmp_path / "report.html").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("quantizer", ["musik", "dino", "vqgan"])
def test_the_demo_with_other_quantizers(quantizer: str, tmp_path: Path) -> None:
    _, metrics, _ = run("cheetah-run", tmp_path, quantizer)
    assert set(metrics["methods"]) == METHODS
    assert list(metrics["seconds"]) == STAGES
    _, tokens, codes = QUANTIZERS[quantizer]
    assert (metrics["quantizer"]["name"], metrics["quantizer"]["tokens"]) == (quantizer, tokens)
    assert "data:image/" in (tmp_path / "report.html").read_text()
    stages = {row["stage"] for row in RunFolder(tmp_path).curve()}
    assert {"quantizer", "occupancy"} < stages
    assert ("teacher" in stages) == (quantizer == "dino")
    voc, dataset = VOC.load(tmp_path), Episodes.open(tmp_path / "data")
    assert (metrics["task"], dataset.spec.task) == ("cheetah-run", "cheetah-run")
    found = voc.tokens(dataset.observations(np.arange(len(dataset))))
    shares = [np.unique(column, return_counts=True)[1] / len(found) for column in found.T]
    perplexity = np.mean([np.exp(-(share * np.log(share)).sum()) for share in shares])
    assert metrics["quantizer"]["perplexity"] == pytest.approx(perplexity, rel=0.05)
    assert found.max() < codes
    assert perplexity > 1.05 or quantizer == "vqgan"  # whose codes these few steps do not part
    # the scores, from the frames and rewards of the held-out episode
    held_out = dataset.split(0.2, np.random.default_rng([0, 7]))[1]
    assert len(held_out) == 31
    truth = np.array([sum(0.5**k * r for k, r in enumerate(held_out.reward[t + 1 :])) for t in range(24)])
    chosen = np.unique(np.linspace(0, 23, 20).round().astype(int))  # .5^7 < .01: the last 7 rows have no known return
    estimate = voc.value(held_out.observations(chosen))
    error = np.mean((estimate.mean - truth[chosen]) ** 2) / truth[chosen].var()
    assert metrics["methods"]["voc_head"]["error"] == pytest.approx(error, rel=0.1)
    constant = metrics["methods"]["constant"]
    assert constant["error"] == pytest.approx(1 + constant["bias"] ** 2 / truth[chosen].var(), rel=1e-3)
