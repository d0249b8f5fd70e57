"""The control benchmark: numbers, curves and pictures without a simulator, and a small run in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import SPEC, numbered_frames, toy_episode
from square import square_env

from voc_rl import VOCValueWrapper
from voc_rl.agents import AgentConfig, Cloning, OfflineAgent
from voc_rl.benchmarks import control, control_data, control_sb3
from voc_rl.benchmarks.cells import finished
from voc_rl.benchmarks.control import METHODS, Control
from voc_rl.benchmarks.control_pictures import FILM, save_curves, save_film, save_plot, save_sheet
from voc_rl.benchmarks.control_table import WHAT, curve_of, interval_of, results_of, table
from voc_rl.data import Episodes, write_episode
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.reports.plots import MAX_BYTES
from voc_rl.values.statistics import student_interval


def test_interval_is_over_seeds_where_there_are_several():
    found = interval_of([[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]])
    low, high = student_interval(4.0, (4.0 / 3) ** 0.5, 3, 0.9)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((4.0, float(low), float(high)))
    assert interval_of([[1.0, 3.0]])["mean"] == 2.0


def test_table_tells_every_method_and_the_other_goal():
    cell = {"task": "walker-walk", "mix": "mixed", "seed": 0}
    records = [
        {"cell": {**cell, "method": method}, "result": {"returns": [1.0, 2.0]}, "hardware": "paper"} for method in WHAT
    ]
    records[list(WHAT).index("zero_shot")]["result"] |= {
        "goal": "stand",
        "goal_reward": [0.5, 0.7],
        "goal_reward_prior": [0.2, 0.4],
        "goal_reward_data": 0.4,
    }
    found = results_of(records, "cpu")
    assert set(found["tasks"]["walker-walk"]["methods"]) == set(WHAT)
    assert found["tasks"]["walker-walk"]["methods"]["planner"]["mean"] == 1.5
    assert "mean reward of the goal 0.600" in table(found)
    assert "of the clone that proposes 0.300" in table(found)
    assert found["hardware"] == "paper"
    assert "\n\n- return: a mean over seeds" in table(found)


def test_data_of_another_mix_are_an_entry_of_their_own_and_who_lies_is_counted():
    def record(mix: str, seed: int, returns: list[float], down: list[float]) -> dict[str, Any]:
        cell = {"task": "cheetah-run", "mix": mix, "seed": seed, "method": "bc"}
        return {"cell": cell, "result": {"returns": returns, "down": down}, "hardware": "paper"}

    records = [
        record("mixed", 0, [1.0, 3.0], [0.5, 0.0]),
        record("expert", 0, [5.0, 7.0], [0.2, 0.6]),
        record("mixed", 1, [9.0, 2.0], [0.0, 0.5]),
    ]
    found = results_of(records, "cpu")
    assert list(found["tasks"]) == ["cheetah-run", "cheetah-run_expert"]
    mixed, expert = (task["methods"]["bc"] for task in found["tasks"].values())
    assert (mixed["mean"], expert["mean"]) == (3.75, 6.0)
    assert (mixed["down"], mixed["never_down"], mixed["return_never_down"]) == (0.25, 2, 6.0)
    assert (expert["down"], expert["never_down"]) == (pytest.approx(0.4), 0)
    text = table(found)
    assert "| 25% | 2 of 4: 6 |" in text
    assert "| 40% | 0 of 2 |" in text


def test_every_method_is_said_in_words():
    assert set(METHODS) == set(WHAT)


def test_only_models_that_methods_need_are_made_and_unknown_words_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Control, "make", lambda self, cell: {})
    bench = Control(out=tmp_path, tasks=("walker-walk",), methods=("bc_top10_conv", "planner"), seeds=(3,))
    made = [record["cell"] for record in bench.models()]
    assert [(cell["model"], cell["seed"]) for cell in made] == [("bc", 3), ("voc", 3)]
    models = [(record["cell"]["model"], record["cell"]["seed"]) for record in finished(tmp_path / "models.jsonl")]
    assert models == [("conv", 0), ("bc", 3), ("voc", 3)]  # convolutions first, one for all seeds
    assert [cell["method"] for cell in bench.cells()] == ["bc_top10_conv", "planner"]
    improved = Control(out=tmp_path, tasks=("walker-walk",), methods=("voc_awr_2", "planner_awr"), seeds=(3, 4))
    made = [record["cell"] for record in improved.models()]
    expected = [("voc", 3), ("voc", 4), ("voc_awr", 3), ("voc_awr", 4)]
    assert [(cell["model"], cell["seed"]) for cell in made] == expected  # every clone after its VOC, and once
    both = Control(out=tmp_path, tasks=("walker-walk",), mixes=("mixed", "expert"))
    assert [data.folder for data in both.shared()] == [tmp_path / "walker-walk", tmp_path / "walker-walk_expert"]
    assert [data.mix for data in both.shared()] == ["mixed", "expert"]
    done = Control(out=tmp_path, tasks=("walker-walk",), finished=True)
    monkeypatch.setattr(Control, "make", None)
    assert {(r["cell"]["model"], r["cell"]["seed"]) for r in done.models()} == {*models, *expected}
    for odd in ({"mixes": ("worst",)}, {"methods": ("sac",)}, {"tasks": ("walker",)}):
        with pytest.raises(VOCError, match=next(iter(odd)).removesuffix("s").removesuffix("e")):
            Control(**odd).cells()  # type: ignore[arg-type]


def test_agents_of_stable_baselines3_are_refused_before_anything_is_trained_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(control, "find_spec", lambda name: None)
    assert Control(out=tmp_path, methods=("planner",)).cells()
    with pytest.raises(VOCError, match=r"need Stable-Baselines3; pip install 'voc_rl\[sb3\]'"):
        Control(out=tmp_path).cells()


@pytest.mark.parametrize(("weight", "alpha"), [(0.0, 2.5), (math.inf, None)])
def test_an_agent_that_learned_on_codes_acts_on_frames_as_on_codes(
    weight: float, alpha: float | None, square_actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(control_sb3, "make_env", lambda task: square_env())
    (tmp_path / "voc_2").symlink_to(square_actions / "voc")
    data: Any = SimpleNamespace(task="square", folder=tmp_path, episodes=Episodes.open(square_actions / "data"))
    policy = control_sb3.offline_td3(data, weight, alpha, 2, 5, "cpu")
    assert (policy.agent.voc_weight, policy.agent.bc_alpha, policy.agent.gamma) == (weight, alpha, policy.voc.gamma)
    assert policy.agent.num_timesteps == 0
    codes = {"mode": "observation", "observe": "features_only", "features": "codes"}
    plain, wrapped = square_env(), VOCValueWrapper(square_env(), tmp_path / "voc_2", **codes)  # type: ignore[arg-type]
    seen = [
        (env.reset(seed=1)[0], *(env.step(np.ones(1, np.float32))[0] for _ in range(4))) for env in (plain, wrapped)
    ]
    frames, vectors = map(np.stack, seen)
    assert frames.shape == (5, 9, 36, 36)
    actions = policy.predict(frames, deterministic=True)[0]
    np.testing.assert_array_equal(actions, policy.agent.predict(vectors, deterministic=True)[0])
    assert np.ptp(actions) > 0


def test_curves_are_means_over_seeds_at_each_step(tmp_path: Path):
    def record(points: list[tuple[int, float]], seed: int, **which: str) -> dict[str, Any]:
        cell = {"task": "walker-walk", "mix": "mixed", "seed": seed, **which}
        return {"cell": cell, "result": {"returns": [1.0], "curve": points}, "hardware": "paper"}

    models = [record([(5, 1.0), (10, 3.0)], 0, model="bc"), record([(5, 2.0), (10, 5.0)], 1, model="bc")]
    models.append(record([], 0, model="voc"))
    cells = [record([], 0, method="bc"), record([(8, 2.0)], 0, method="td3bc"), record([], 0, method="planner")]
    found = results_of(cells, "cpu", models)
    methods = found["tasks"]["walker-walk"]["methods"]
    assert methods["bc"]["curve"] == {"steps": [5, 10], "returns": [1.5, 4.0], "seeds": 2}
    assert methods["td3bc"]["curve"] == {"steps": [8], "returns": [2.0], "seeds": 1}
    assert "curve" not in methods["planner"]
    save_curves(tmp_path / "curves.png", found)
    assert Image.open(tmp_path / "curves.png").size[0] > 300
    save_curves(tmp_path / "none.png", results_of(cells[2:], "cpu"))
    assert not (tmp_path / "none.png").exists()


def test_pictures_leave_the_plots_of_the_caller_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("matplotlib.use", lambda backend: pytest.fail("another backend"))
    np.save(tmp_path / "walker-walk_bc.npy", np.full((20, 3, 84, 84), 200, np.uint8))
    save_sheet(tmp_path / "sheet.png", tmp_path)
    scores = {"mean": 3.0, "low": 2.0, "high": 4.0}
    save_plot(tmp_path / "plot.png", {"tasks": {"walker-walk": {"methods": {"bc": scores, "voc_awr": scores}}}})
    for name in ("sheet.png", "plot.png"):
        assert Image.open(tmp_path / name).format == "PNG"


def test_seeds_finished_under_another_curve_are_not_averaged_with_the_others():
    often, seldom = [(5, 1.0), (10, 3.0)], [(10, 9.0)]
    most = {"steps": [5, 10], "returns": [1.5, 4.0], "seeds": 2}
    assert curve_of([seldom, often, [(5, 2.0), (10, 5.0)]]) == most
    assert curve_of([often, seldom]) == {"steps": [5, 10], "returns": [1.0, 3.0], "seeds": 1}  # the first of equals


@pytest.mark.parametrize("model", ["bc", "voc_awr"])
def test_a_kill_before_the_record_of_a_clone_does_not_lose_its_curve(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained: list[int] = []

    def clone(data: Any, config: Any, seed: int, *rest: Any, curve: Any = None, **words: Any) -> Any:
        trained.append(seed)
        (curve or rest[-1]).points.extend([(50, 2.0), (100, 3.5)])
        return SimpleNamespace(save=lambda folder: folder.mkdir(parents=True))

    for module in (control, control_data):
        monkeypatch.setattr(module, "clone", clone)
    monkeypatch.setattr(control, "_weights", lambda *_: None)
    cell = {"task": "walker-walk", "mix": "mixed", "model": model, "seed": 4}
    for _ in range(2):  # as if the first had been killed before its line was written
        assert Control("smoke", out=tmp_path, curve=2).make(cell) == {"curve": [[50, 2.0], [100, 3.5]]}
    assert trained == [4]


def test_an_agent_that_plays_while_it_learns_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_episode(tmp_path / "e.hdf5", toy_episode(0, 9, frames=numbered_frames(0, 9, 24, 24)), SPEC)
    dataset, training = Episodes.open(tmp_path), []
    data: Any = SimpleNamespace(task="walker-walk", scale=SimpleNamespace(steps=9))

    def play(task: str, policy: OfflineAgent, episodes: int, steps: int, seed: int) -> Any:
        training.append(policy.networks.training)
        assert (task, episodes, steps, seed) == ("walker-walk", 3, 9, 4)
        policy.predict(dataset.observations(np.arange(2)), deterministic=True)
        return np.array([1.0, 2.0, 6.0]), [], np.zeros(0)

    monkeypatch.setattr(control_data, "played", play)
    config = AgentConfig(inputs="frames", width=8, shift=0, loop=LoopConfig(steps=110, batch_size=4))
    curve, agents = control_data.Curve(data, 4, 2), []
    for log in (None, curve):
        agent = OfflineAgent(dataset.observation_shape, 2, config)
        agents.append(agent.learn(dataset, Cloning, log=log.of(agent) if log else None))
    assert curve.points == [(100, 3.0), (110, 3.0)]  # logs come every 50 steps, and at the end
    assert training == [False, False]
    for plain, watched in zip(*(agent.networks.state_dict().values() for agent in agents), strict=True):
        assert torch.equal(plain, watched)


def test_the_film_shows_policies_side_by_side_and_stays_small(tmp_path: Path):
    rng, shade = np.random.default_rng(0), {"behaviour": 40, "voc_awr": 220}
    for method, value in shade.items():
        np.save(tmp_path / f"walker-walk_{method}.npy", np.full((30 + value, 3, 84, 84), value, np.uint8))
    save_film(tmp_path / "plain.gif", tmp_path, ("walker-walk", "cheetah-run"))
    film: Any = Image.open(tmp_path / "plain.gif")
    assert film.size == (2 * 84, 84 + 12)
    seen = np.asarray(film.convert("RGB"))
    assert (seen[12:, :84] == 40).all()
    assert (seen[12:, 84:] == 220).all()
    for method in FILM:  # noise, which hardly compresses
        np.save(tmp_path / f"walker-walk_{method}.npy", rng.integers(256, size=(30, 3, 84, 84), dtype=np.uint8))
    save_film(tmp_path / "noise.gif", tmp_path, ("walker-walk",))
    assert (tmp_path / "noise.gif").stat().st_size <= MAX_BYTES
    assert 5 < Image.open(tmp_path / "noise.gif").n_frames < 30  # type: ignore[attr-defined]
    save_film(tmp_path / "none.gif", tmp_path / "nothing", ("walker-walk",))
    assert not (tmp_path / "none.gif").exists()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path):
    """The real benchmark at scale smoke: each cell once, with the numbers of one process, and everything written."""
    methods = ("behaviour", "bc", "bc_top10", "mc_awr_conv")
    bench = Control(
        scale="smoke", out=tmp_path, results=tmp_path / "results", tasks=("walker-walk",), methods=methods, seeds=(0,),
        curve=1, device="cpu", processes=2,
    )  # fmt: skip
    found = bench.run()["tasks"]["walker-walk"]["methods"]
    assert list(found) == list(methods)
    assert [own["curve"]["steps"] for own in found.values() if "curve" in own] == [[20]] * 3
    records = finished(tmp_path / "cells.jsonl")
    assert sorted(record["cell"]["method"] for record in records) == sorted(methods)
    (cloned,) = [record for record in records if record["cell"]["method"] == "bc_top10"]
    assert json.loads(json.dumps(bench.work(cloned["cell"]))) == cloned["result"]  # this process trains it anew
    pictures = {"control.png", "control_curves.png", "control_frames.png", "control.gif"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"control.json", "control.md", *pictures}
