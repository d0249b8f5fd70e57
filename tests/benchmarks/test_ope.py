"""The policy-evaluation benchmark at its smallest, on real frames: whole, resumed, and with numbers that fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from voc_rl.benchmarks import data_efficiency, ope, rewards
from voc_rl.benchmarks.data_efficiency import DataEfficiency
from voc_rl.benchmarks.data_efficiency_table import COLOURS, ORDER
from voc_rl.benchmarks.ope import METHODS, OPE
from voc_rl.benchmarks.ope_protocol import EIGHT, SIXTEEN, TASKS, Protocol
from voc_rl.benchmarks.reward_functions import REWARDS
from voc_rl.benchmarks.rewards import Rewards
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig, optimise


@pytest.mark.parametrize(("protocol", "logged", "targets"), [(EIGHT, 8, 24), (SIXTEEN, 16, 40)])
@pytest.mark.parametrize("task", TASKS)
def test_the_protocol_keeps_test_and_development_policies_apart(
    protocol: Protocol, logged: int, targets: int, task: str
) -> None:
    assert len(protocol.behaviour(task).policies) == len(protocol.logged) == logged
    assert len(protocol.targets(task)) == targets
    assert len(protocol.development_policies(task)) == 8
    tested = {*protocol.logged, *protocol.unseen}
    assert len(tested) == len(protocol.logged) + len(protocol.unseen)
    assert not tested & set(protocol.development)
    assert {noisy for pair in protocol.mixed for noisy in pair} <= set(protocol.logged)


def test_only_the_largest_scale_has_the_large_protocol() -> None:
    assert {name: scale.protocol for name, scale in ope.SCALES.items()} == {
        "smoke": EIGHT, "cpu": EIGHT, "gpu": SIXTEEN,
    }  # fmt: skip
    large = ope.SCALES["gpu"]
    assert (large.episodes * large.steps, large.resets + large.anywhere, max(large.gammas)) == (300_000, 200, 0.99)
    cells = OPE("gpu", tasks=("walker-walk",), methods=("voc",), seeds=3).cells()
    assert {cell["gamma"] for cell in cells} == set(large.gammas)
    assert len(cells) == 2 * 3 * 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, truth and quantizer, made once."""
    return tmp_path_factory.mktemp("ope")


@pytest.mark.slow
def test_smoke_run_from_pixels_to_the_table(shared: Path, tmp_path: Path) -> None:
    run = OPE("smoke", shared, tmp_path / "results", ("cheetah-run",), parts=("test",))
    found = run.run()
    entry = found["tasks"]["cheetah-run"]
    assert entry["gamma"] == 0.8
    assert entry["policies"] == 24
    methods = entry["methods"]
    expected = {
        "voc",
        "voc_head",
        "voc_corrected",
        "mfmc",
        "one_step",
        "fqe",
        "fqe_state",
        "dr",
        "wis",
        "nearest",
        "median",
        "mc",
        "exact",
    }
    assert set(methods) == expected
    assert methods["exact"]["mae"] == 0
    assert methods["exact"]["coverage90"] == 1
    assert methods["nearest"]["mae_logged"] == pytest.approx(0, abs=1e-9)  # the oracle knows them
    assert 0 < methods["mfmc"]["mae"] < entry["range"]
    assert set(entry["differences"]) == expected - {"exact", "voc_head"}
    true = np.array(list(entry["true"].values()))
    for method, difference in entry["differences"].items():
        own = np.abs(np.array(entry["estimates"][method]) - true).mean()
        assert own == pytest.approx(methods[method]["mae"], abs=1e-5)
        assert difference["mean"] == pytest.approx(own - methods["voc_head"]["mae"], abs=2e-5)
        assert difference["low"] <= difference["mean"] <= difference["high"]
    text = (tmp_path / "results/ope.md").read_text()
    assert "MAE less that of `voc_head`" in text
    assert set(entry["pairs"]) == {"voc", "voc_head", "voc_corrected", "mfmc"}
    for pairs in entry["pairs"].values():
        assert pairs["pairs"] == 24 * 23 / 2
        assert 0 <= pairs["wrong"] <= pairs["told"] < 1  # so little training moves all values far: none may be told
        assert pairs["held"] > 0.3
    assert "Pairs of policies, by 90 % intervals of their differences: `mfmc` hold" in text
    assert json.loads((tmp_path / "results/ope.json").read_text())["tasks"] == found["tasks"]
    assert (tmp_path / "results/ope.png").stat().st_size > 10_000
    lines = (shared / "cells.jsonl").read_text().splitlines()
    assert len(lines) == len(METHODS)
    assert run.run()["tasks"] == found["tasks"]  # nothing is done twice
    assert (shared / "cells.jsonl").read_text().splitlines() == lines


@pytest.mark.slow
def test_networks_from_a_behaviour_model_share_its_steps(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []

    def counted(trainee: Any, config: LoopConfig, seed: int, stage: str, **rest: Any) -> int:
        steps.append((stage, config.steps))
        return optimise(trainee, config, seed, stage, **rest)

    for module in ("training", "policy_training"):
        monkeypatch.setattr(f"voc_rl.occupancy.{module}.optimise", counted)
    monkeypatch.setitem(ope.SCALES, "smoke", replace(ope.SCALES["smoke"], network=24))
    methods, out = ("voc_warm", "voc_alone"), tmp_path / "out"
    shutil.copytree(shared / "cheetah-run", out / "cheetah-run")  # other settings are not for the same folder
    run = OPE("smoke", out, tmp_path / "results", ("cheetah-run",), methods, parts=("development",))
    entry = run.run()["development"]["cheetah-run"]
    found = entry["methods"]
    assert set(found) == {*methods, "exact"}
    assert "8 development policies" in (tmp_path / "results/ope.md").read_text()
    assert steps == [("occupancy", 8), ("policies", 16), ("occupancy", 8), *[("policies", 2)] * 8]
    assert all(0 < found[method]["mae"] < 1.5 * entry["range"] for method in methods)  # hardly trained


@pytest.mark.slow
def test_many_rewards_from_one_model(shared: Path, tmp_path: Path) -> None:
    run = Rewards("smoke", shared, tmp_path / "results", ("cheetah-run",), parts=("development",))
    found = run.run()["development"]["cheetah-run"]["rewards"]
    assert set(found) == set(REWARDS["cheetah-run"])
    for one in found.values():
        assert set(one["methods"]) == {"voc", "voc_density", "voc_corrected", "mfmc", "sf_td", "fqe_all", "median"}
        assert one["policies"] == 8
    assert 0 < found["run"]["methods"]["mfmc"]["mae"] < found["run"]["range"] / 2
    assert json.loads((tmp_path / "results/rewards.json").read_text())["scale"] == "smoke"
    assert (tmp_path / "results/rewards.png").stat().st_size > 10_000
    lines = (shared / "rewards.jsonl").read_text().splitlines()
    assert len(lines) == len(rewards.METHODS)
    run.run()
    assert (shared / "rewards.jsonl").read_text().splitlines() == lines


@pytest.mark.slow
def test_shares_of_the_data_are_nested_and_value_the_same_states(shared: Path, tmp_path: Path) -> None:
    small, whole = (data_efficiency.part_of_data("cheetah-run", shared, "smoke", share) for share in (0.25, 1.0))
    rows = len(small.episodes)
    assert rows == 4 * 61
    assert np.array_equal(small.starts, whole.starts)
    assert whole.starts.max() < rows
    assert torch.equal(small.tokens[0], whole.tokens[0][:rows])
    run = DataEfficiency("smoke", shared, tmp_path / "results", ("cheetah-run",), ("fqe", "wis"))
    entry = run.run()["tasks"]["cheetah-run"]
    assert set(entry["methods"]) == {"fqe", "dr", "wis"}
    for method, scored in entry["methods"].items():
        assert [row["episodes"] for row in scored] == [4, 16]
        worst = 8 if method == "fqe" else 2  # times the best constant; twenty steps of fqe's network are few
        assert all(0 < row["mae"] < worst * entry["constant_mae"] for row in scored)
    truth = np.array(list(whole.true_j(0.8).values())[-24:])  # the test policies come last
    assert entry["constant_mae"] == pytest.approx(np.abs(truth - np.median(truth)).mean())
    picture = np.asarray(Image.open(tmp_path / "results/data_efficiency.png").convert("RGB"), float)
    for method, colour in zip(ORDER, COLOURS, strict=True):
        drawn = (np.abs(picture - 255 * np.array(to_rgb(colour))).max(-1) < 8).sum()
        assert (drawn > 60) == (method in entry["methods"]), method


def test_other_words_are_refused(tmp_path: Path) -> None:
    for run, message in (
        (OPE(out=tmp_path, tasks=("walker-fly",)), "Unknown task"),
        (OPE(out=tmp_path, methods=("magic",)), "Unknown method"),
        (OPE(out=tmp_path, gammas=(0.99,)), "reaches to gamma"),
    ):
        with pytest.raises(VOCError, match=message):
            run.run()
    assert list(tmp_path.iterdir()) == []
