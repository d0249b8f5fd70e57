"""Trainings of an evaluation that are interrupted, and those that two questions share."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walks import GAMMA, Walk, walks
from worlds import loop, refusal, small_config

import voc_rl.loop
from voc_rl.cli import main
from voc_rl.data import Episodes
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.ope import EvaluationConfig, PolicyEvaluator, StitchingConfig
from voc_rl.training import NetworkSize
from voc_rl.values import FQEConfig

STEPS = {"quantizer": 20, "critic": 30, "policies": 40}
CONFIG = EvaluationConfig(
    StitchingConfig(draws=2, replicates=2),
    critic=FQEConfig(loop(STEPS["critic"]), width=16),
    training=PolicyTraining(OccupancyTraining(loop=loop(STEPS["policies"]))),
    voc=replace(small_config(), quantizer_training=loop(STEPS["quantizer"])),
)


class Saved:
    """The states that are kept, (stage, step) in order; interrupts after one of them."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int]] = []
        self.interrupts: tuple[str, int] | None = None
        self._save = voc_rl.loop.save_training_state

    def __call__(self, path: Path, state: dict[str, Any]) -> None:
        self._save(path, state)
        self.states.append((path.name.partition("-")[0], state["step"]))
        if self.states[-1] == self.interrupts:
            raise KeyboardInterrupt


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Saved:
    saved = Saved()
    monkeypatch.setattr(voc_rl.loop, "save_training_state", saved)
    return saved


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return walks(tmp_path_factory.mktemp("kept") / "walks")


def asked(
    data: Episodes, checkpoints: Path | str | None = None, seed: int = 0, network: NetworkSize = CONFIG.voc.network
) -> PolicyEvaluator:
    policies = {"right": Walk(1.0), "left": Walk(0.0)}
    config = replace(CONFIG, voc=replace(CONFIG.voc, seed=seed, network=network))
    return PolicyEvaluator(data, policies, GAMMA, config=config, checkpoints=checkpoints)


@pytest.mark.parametrize("stage", STEPS)
def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
    data: Episodes, tmp_path: Path, saved: Saved, stage: str
) -> None:
    whole = asked(data).estimate("left", "head")
    assert saved.states == []
    every = STEPS[stage] // 10
    saved.interrupts = (stage, every * 5)
    with pytest.raises(KeyboardInterrupt):
        asked(data, tmp_path / "kept").estimate("left", "head")
    saved.states.clear()
    found = asked(data, str(tmp_path / "kept")).estimate("left", "head")
    assert saved.states[0] == (stage, every * 6)  # what comes before it is not trained again
    assert found.start_values.tolist() == whole.start_values.tolist()
    assert (found.value, found.stderr) == (whole.value, whole.stderr)


def test_what_two_questions_share_is_trained_once(data: Episodes, tmp_path: Path, saved: Saved) -> None:
    """Another reward and another discount ask for a critic of their own; another seed for everything."""
    first = asked(data, tmp_path).estimate("left", "head")
    assert list(dict.fromkeys(stage for stage, _ in saved.states)) == list(STEPS)
    other = np.roll(data.reward, 7)
    for reward, gamma in ((other, GAMMA), (None, 0.6)):
        saved.states.clear()
        found = asked(data, tmp_path).estimate("left", "corrected", reward, gamma=gamma)
        assert {stage for stage, _ in saved.states} == {"critic"}
        assert found.value == asked(data).estimate("left", "corrected", reward, gamma=gamma).value
    saved.states.clear()
    assert asked(data, tmp_path).estimate("left", "head").value == first.value
    assert saved.states == []
    assert asked(data, tmp_path, seed=1).estimate("left", "head").value != first.value
    assert {stage for stage, _ in saved.states} == set(STEPS)


@pytest.mark.parametrize("other", [{"n_head": 1}, {"dropout": 0.3}, {"attention_dropout": 0.3}])
def test_another_network_is_trained_anew(data: Episodes, tmp_path: Path, saved: Saved, other: dict[str, Any]) -> None:
    """Though it starts from the same weights."""
    asked(data, tmp_path).estimate("left", "head")
    saved.states.clear()
    network = replace(CONFIG.voc.network, **other)
    found = asked(data, tmp_path, network=network).estimate("left", "head")
    assert {stage for stage, _ in saved.states} == {"policies"}
    assert found.value == asked(data, network=network).estimate("left", "head").value


def test_changed_data_are_learned_anew(data: Episodes, tmp_path: Path, saved: Saved) -> None:
    asked(data, tmp_path).estimate("left", "corrected")
    other = data.subset(range(len(data.starts)))
    assert other.reward is not data.reward
    other.reward[5] += 1.0
    saved.states.clear()
    asked(other, tmp_path).estimate("left", "corrected")
    assert {stage for stage, _ in saved.states} == {"quantizer", "critic"}


def test_folders_that_cannot_be_written_are_refused(data: Episodes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(asked, data, tmp_path / "file")
    assert refusal(asked, data, 3) == "checkpoints is int; the path of a folder for them is needed."


def test_an_interrupted_command_goes_on_from_its_folder(
    data: Episodes, tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("voc_rl.ope.EvaluationConfig", partial(replace, CONFIG))
    Path("leftwards.py").write_text("from walks import Walk\n\n\ndef left():\n    return Walk(0.0)\n")
    command = ["ope", "--data", str(data.paths[0].parent), "--policy", "leftwards:left", "--estimator", "corrected"]
    command += ["--features", "state", "--threads", "1", "--out"]
    main([*command, "whole"])
    saved.interrupts = ("critic", 15)
    with pytest.raises(SystemExit):
        main([*command, "cut"])
    assert "the same command goes on from the last checkpoint." in capsys.readouterr().err
    saved.states.clear()
    main([*command, "cut"])
    assert saved.states[0] == ("critic", 18)
    whole, cut = (json.loads(Path(out, "ope.json").read_text())["estimates"] for out in ("whole", "cut"))
    assert cut == whole
