"""``voc-rl ope``: policies and a reward of the user's own, from pixels to a ranking on disk."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from walks import CELLS, GAMMA, Walk, exact, pay, walks
from worlds import refusal, small_config

import voc_rl
from voc_rl.cli import main
from voc_rl.data import Episodes
from voc_rl.ope import evaluate_policy

PAYING = 3  # the column that the reward of the user's own pays for

MINE = f"""
import numpy as np
from walks import Walk


def right():
    return Walk(1.0)


def left():
    return Walk(0.0)


def column(episodes):
    return (episodes.state[:, 0] == {PAYING}).astype(float)


class Eyes:
    observation = "pixels"

    def predict(self, observation, deterministic=False):
        raise TypeError("of nothing\\nat all")


def short(episodes):
    return np.zeros(3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with logged walks, a quantizer of single frames and a module of the user's own."""
    folder = tmp_path_factory.mktemp("user")
    walks(folder / "data")
    voc_rl.train(Episodes.open(folder / "data", stack=1), small_config(steps=2, quantizer=150)).save(folder / "run")
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.mark.parametrize("reward", [None, "mine:column"])
def test_own_policies_are_ranked_by_logged_and_own_rewards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reward: str | None
) -> None:
    monkeypatch.chdir(folder)  # where the module is
    asked = ["--policy", "mine:left", "mine:right", "--gamma", str(GAMMA), "--quantizer", "run", "--threads", "1"]
    asked += ["--seed", "3"]
    more = [] if reward is None else ["--reward", reward, "--deterministic"]
    noise = "" if reward is None else ", deterministic"
    out = "found" if reward is None else "found_by_column"
    (folder / out).mkdir()
    (folder / out / "report.html").write_text("of a run")
    main(["ope", "--data", "data", "--out", out, *asked, *more])
    assert (folder / out / "report.html").read_text() == "of a run"
    printed = capsys.readouterr().out
    kept = json.loads((folder / out / "ope.json").read_text())
    assert kept["asked"] == {
        "data": ["data"], "policy": ["mine:left", "mine:right"], "gamma": GAMMA, "estimator": "stitch",
        "reward": reward, "deterministic": reward is not None, "starts": 0, "quantizer": "run", "out": out,
        "stack": None, "features": "frames", "seed": 3, "device": "auto", "threads": 1,
    }  # fmt: skip
    assert {"python", "torch"} <= kept["versions"].keys()
    assert kept["precision"] == "auto"
    data = Episodes.open(folder / "data")
    paid = pay() if reward is None else (np.arange(CELLS) == PAYING).astype(float)
    goes = {f"mine:left{noise}": 0.0, f"mine:right{noise}": 1.0}
    truth = {name: exact(data, right, data.starts, paid).mean() for name, right in goes.items()}
    found = {estimate["policy"]: estimate for estimate in kept["estimates"]}
    assert list(found) == sorted(found, key=lambda name: -found[name]["value"])
    for name, value in truth.items():
        assert name in printed
        assert abs(found[name]["value"] - value) < 0.08 * np.ptp(exact(data, 1.0, np.arange(len(data)), paid))
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    (against,) = kept["against_best"]
    assert against["value"] == pytest.approx(found[against["policy"]]["value"] - found[against["than"]]["value"])
    assert against["low"] < against["value"] < against["high"]
    assert against["told_apart"] == (against["high"] < 0)
    page = (folder / out / "ope.html").read_text()
    assert ("rewards of mine:column" in page) == (reward is not None)
    assert all(f"<td>{name}</td>" in page for name in goes)
    other = ["ope", "--data", "data", "--out", out, *asked, "--starts", "9"]
    said = refused(capsys, *other, *more)
    assert "answers another question (starts was 0 and is 9); give another --out, or --force" in said


class FullDisk(io.TextIOBase):
    def write(self, text: str) -> int:
        raise OSError("No space left on device")


def test_results_are_kept_where_nothing_can_be_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdout", FullDisk())
    with pytest.raises(OSError, match="No space left"):
        main(
            ["ope", "--data", "data", "--out", "kept", "--policy", "mine:left", "--quantizer", "run", "--threads", "1"]
        )
    assert (folder / "kept/ope.json").exists()
    assert (folder / "kept/ope.html").exists()


def test_data_without_frames_are_valued_by_their_states(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No quantizer is trained; what needs a network is refused."""
    data = Episodes.open(folder / "data", stack=1)
    bare = (replace(data.whole(i), frames=np.zeros((50, 3, 0, 0), np.uint8)) for i in range(40))
    states = Episodes.from_episodes(bare, data.spec, folder / "states", 1)
    ring = 2 * np.pi * data.state / CELLS
    features = torch.from_numpy(np.concatenate([np.sin(ring), np.cos(ring)], 1).astype(np.float32))
    spread = np.ptp(exact(data, 1.0, np.arange(len(data))))
    for found in evaluate_policy(states, {"left": Walk(0.0), "right": Walk(1.0)}, GAMMA, features=features):
        truth = exact(data, {"left": 0.0, "right": 1.0}[found.policy], data.starts).mean()
        assert abs(found.value - truth) < 0.08 * spread
    assert "needs a network of frames" in refusal(evaluate_policy, states, Walk(0.0), GAMMA, "head", features=features)
    assert "do not fit 2000 rows" in refusal(evaluate_policy, states, Walk(0.0), GAMMA, features=features[1:])
    monkeypatch.chdir(folder)
    main(["ope", "--data", "data", "--policy", "mine:left", "--features", "state", "--gamma", "0.8", "--threads", "1"])
    assert "mine:left" in capsys.readouterr().out


def test_rewards_that_do_not_fit_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    asked = ["ope", "--data", "data", "--policy", "mine:left", "--quantizer", "run", "--threads", "1"]
    assert "Rewards have shape (3,); one per row" in refused(capsys, *asked, "--reward", "mine:short")
    assert "'mine:nothing' names no module:callable" in refused(capsys, *asked, "--reward", "mine:nothing")
    own = refused(capsys, *asked, "--reward", "mine:column", "--estimator", "head")
    assert "knows the data's reward" in own


def test_what_states_cannot_answer_is_refused_before_anything_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another reward a head would be fitted to the codes of a quantizer, and both be trained for nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("voc_rl.ope.evaluator.ready_quantizer", lambda *_, **__: pytest.fail("a quantizer is trained"))
    asked = ["ope", "--data", "data", "--policy", "mine:left", "--features", "state", "--threads", "1"]
    for more in ([], ["--reward", "mine:column"]):
        assert "needs a network of frames" in refused(capsys, *asked, "--estimator", "sample", *more)


def test_a_policy_that_fails_is_refused_in_one_sentence_at_the_stack_that_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    asked = ["ope", "--data", "data", "--policy", "mine:Eyes", "--threads", "1"]
    run = ["--quantizer", "run"]
    for more, stack in (([], 3), (["--stack", "2"], 2), (run, 1), ([*run, "--stack", "1"], 1)):
        said = refused(capsys, *asked, *more)
        assert f" could not act on uint8 (1024, {3 * stack}, 24, 24), stack {stack} (TypeError: of nothing); " in said
    said = refused(capsys, *asked, *run, "--stack", "2")
    assert said.endswith("--stack is 2, and the quantizer of run sees 1 frames; leave it out.")
    assert "stack is 0" in refused(capsys, *asked, "--stack", "0")


def test_a_quantizer_of_another_task_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    shutil.copytree("run", "other")
    description = json.loads(Path("other/voc.json").read_text())
    description["spec"]["task"] = "square"
    Path("other/voc.json").write_text(json.dumps(description))
    asked = ["ope", "--data", "data", "--policy", "mine:left", "--quantizer", "other", "--threads", "1"]
    with pytest.warns(UserWarning, match="trained with task 'square', this data has 'ring'"):
        refused(capsys, *asked, "--reward", "mine:short")
