"""The value-error benchmark at its smallest, on real frames: whole, resumed, and with numbers that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import one_sentence, small_config, write_world

from voc_rl.benchmarks import value_error
from voc_rl.benchmarks.cells import finished, hold_settings
from voc_rl.benchmarks.kept import kept_arrays
from voc_rl.benchmarks.value_error import SCALES, Args, Bench, cells_of, config_of
from voc_rl.benchmarks.value_error_data import TaskData, Truth
from voc_rl.benchmarks.value_error_table import _difference, paired_difference, results_of, table
from voc_rl.checkpoints import load_tensors
from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.model import VOC
from voc_rl.quantizers import tokenize, train_quantizer
from voc_rl.training import fresh_quantizer

TASK = "cheetah-run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run of two seeds and two quantizers, what the critics were given, and its folder."""
    folder, given = tmp_path_factory.mktemp("value_error"), []
    train_critic = value_error.train_critic

    def noted(kind: Any, dataset: Any, gamma: float, n: int, budget: Any, seed: int, **rest: Any) -> Any:
        given.append((kind, seed, budget.cpu_seconds, dataset.source_rows))
        return train_critic(kind, dataset, gamma, n, budget, seed, **rest)

    args = Args("smoke", folder / "out", folder / "results", (TASK,), (0.8,), (0, 1), ("musik",))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(value_error, "train_critic", noted)
        results = value_error.main(args)
    data = TaskData(TASK, folder / "out" / TASK, SCALES["smoke"])
    return {"args": args, "results": results, "given": given, "folder": folder, "data": data}


def test_smoke_run_from_pixels_to_the_table(run: dict[str, Any]) -> None:
    entry = run["results"]["tasks"][TASK][0]
    rows = {(row["method"], row["sees"]): row for row in entry["methods"]}
    by_codes = {
        (method, q) for method in ("voc", "voc_codes", "voc_head", "paper", "one_step") for q in ("vqvae", "musik")
    }
    assert set(rows) == by_codes | {(method, "pixels") for method in ("mc", "td", "constant")}
    assert all(row["seeds"] == ([0] if sees == "musik" else [0, 1]) for (_, sees), row in rows.items())
    assert rows["voc", "vqvae"]["error_spread"] > 0
    # a constant is wrong by the spread of the truth and by its own bias, and by nothing else
    named = [result["values"]["constant"][0] for _, result in _cells(run, "constant")]
    expected = np.mean([1 + (value - entry["mean"]) ** 2 / entry["variance"] for value in named])
    assert rows["constant", "pixels"]["error"] == pytest.approx(expected)
    assert rows["constant", "pixels"]["spearman"] == 0
    assert json.loads((run["folder"] / "results/value_error.json").read_text())["tasks"] == run["results"]["tasks"]
    text = (run["folder"] / "results/value_error.md").read_text()
    assert f"**{TASK}**, γ = 0.8: 12 states of 2 held-out episodes" in text
    assert f"--tasks {TASK} --gammas 0.8 --seeds 0 1 --others musik" in text
    assert "- Error of `voc` (musik) minus that of: `mc` " in text
    assert 3_000 < (run["folder"] / "results/value_error.png").stat().st_size < 300_000


def test_one_set_of_futures_is_read_with_features_and_without(run: dict[str, Any]) -> None:
    cell, result = _cells(run, "voc", "vqvae")[0]
    bench = Bench(run["data"], run["folder"] / "out" / TASK / "cells.jsonl")
    voc, (codes, features) = VOC.load(bench._folder(cell)), bench._scored(cell)
    samples = SCALES["smoke"].samples
    futures = voc.futures_of_codes(codes, features, samples, generator=torch.Generator().manual_seed(cell["seed"]))
    for name, seen in (("voc", features), ("voc_codes", None)):
        expected = voc.rewards(futures, seen).double().mean(1).numpy() / (1 - voc.gamma)
        np.testing.assert_allclose(result["values"][name], expected, rtol=1e-6)
    assert result["values"]["voc"] != result["values"]["voc_codes"]


def test_scored_episodes_are_never_trained_on(run: dict[str, Any]) -> None:
    data = run["data"]
    scored = set(data.held_out.source_rows[data.rows])
    assert len(scored) == 12
    trained = [set(data.training(seed).source_rows) for seed in (0, 1)]
    held_out = set(data.held_out.source_rows)
    assert scored < held_out
    assert all(not rows & held_out for rows in trained)
    assert trained[0] != trained[1]  # a seed draws its episodes too
    assert all(set(rows) == trained[seed] for _, seed, _, rows in run["given"])


def test_critics_have_the_seconds_that_the_voc_took(run: dict[str, Any]) -> None:
    took = {cell["seed"]: result["train_cpu_seconds"] for cell, result in _cells(run, "voc", "vqvae")}
    own = {cell["seed"]: result["train_cpu_seconds"] for cell, result in _cells(run, "quantizer", "vqvae")}
    assert [(kind, seed) for kind, seed, _, _ in run["given"]] == [("mc", 0), ("td", 0), ("mc", 1), ("td", 1)]
    assert all(seconds == took[seed] > own[seed] > 0 for _, seed, seconds, _ in run["given"])


def test_truth_is_the_mean_of_discounted_roll_outs(run: dict[str, Any]) -> None:
    truth, reward = run["data"].truth(0.8), load_tensors(run["folder"] / "out" / TASK / "truth.safetensors")["reward"]
    assert reward.shape == (12, 2, 21)  # .8^21 < .01
    # what lies beyond the horizon is taken to be like what lies before it
    returns = [sum(0.8**k * float(r) for k, r in enumerate(rewards)) / (1 - 0.8**21) for rewards in reward[5]]
    assert truth.mean[5] == pytest.approx(np.mean(returns))
    assert truth.noise[5] == pytest.approx((returns[0] - returns[1]) ** 2 / 4)  # s^2 / M with M = 2
    assert truth.noise[5] > 0


def test_a_finished_run_does_no_cell_again(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = run["folder"] / "out" / TASK / "cells.jsonl", []
    lines, work = path.read_text().splitlines(keepends=True), Bench.work

    def counted(self: Bench, cell: Any) -> dict[str, Any]:
        done.append((cell["method"], cell["seed"]))
        return work(self, cell)

    monkeypatch.setattr(Bench, "work", counted)
    assert value_error.main(run["args"]) == run["results"]
    assert done == []
    assert path.read_text() == "".join(lines)
    path.write_text("".join(lines[:-1]))  # as if a kill had come before the last cell
    again = value_error.main(run["args"])
    assert done == [("td", 1)]
    assert _errors(again) == pytest.approx(_errors(run["results"]))


def test_too_few_known_returns_are_no_regression(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = run["folder"] / "out" / TASK / "cells.jsonl"
    monkeypatch.setattr(value_error, "BATCH", 10_000)
    cell = next(c for c in cells_of(TASK, "smoke", (0.8,), (0,), ()) if c["method"] == "mc")
    result = Bench(run["data"], path).work(cell)
    known = 7 * (41 - 21)  # of 8 episodes that are not held out a seed trains on 7; the last 21 rows are not known
    assert (result["values"], result["known_rows"], result["rows"]) == ({}, known, 7 * 41)
    records = [{"cell": cell, "result": result, "hardware": "paper"}]
    text = table(results_of(records, {(TASK, 0.8): run["data"].truth(0.8)}, "smoke"))
    assert f"`mc` refused: {known} rows have a known return, fewer than a batch of 10000." in text


def test_noise_of_the_truth_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(10, 2, 4000)
    returns = true[:, None] + rng.normal(0, 3, (4000, 4))
    truth = Truth(returns.mean(1), returns.var(1, ddof=1) / 4, np.arange(4000) // 20)
    values = {"voc": true, "mc": true + 2.0, "constant": np.full(4000, returns.mean())}
    cell = {"task": TASK, "gamma": 0.9, "seed": 0, "quantizer": "vqvae"}
    records = [
        {"cell": {**cell, "method": m}, "result": {"values": {m: v.tolist()}}, "hardware": f"{m} machine"}
        for m, v in values.items()
    ]
    found = results_of(records, {(TASK, 0.9): truth}, "smoke")
    assert found["hardware"] == "voc machine; mc machine; constant machine"  # where cells were done, not this one
    entry = found["tasks"][TASK][0]
    error = {row["method"]: row["error"] for row in entry["methods"]}
    assert entry["variance"] == pytest.approx(4, abs=0.3)
    assert entry["noise"] == pytest.approx(9 / 4, abs=0.1)
    assert error["constant"] == pytest.approx(1, abs=1e-9)
    assert error["voc"] == pytest.approx(0, abs=0.05)  # against 9 / 16 with the noise left in
    assert error["mc"] == pytest.approx(1, abs=0.08)  # a bias of 2 beside a variance of 4
    exact = Truth(true, np.zeros(4000), truth.episode)
    perfect = results_of(records[:1], {(TASK, 0.9): exact}, "smoke")["tasks"][TASK][0]["methods"][0]
    assert (perfect["error"], perfect["nrmse"], perfect["bias"]) == (0, 0, 0)
    assert perfect["spearman"] == pytest.approx(1)


def test_paired_differences_by_hand_and_by_their_coverage() -> None:
    truth = Truth(np.array([0.0, 2.0, 4.0, 2.0]), np.full(4, 0.5), np.array([3, 3, 8, 8]))  # variance 2 - .5
    ours, theirs = np.array([[1.0, 2, 4, 2], [0.0, 2, 4, 2]]), np.array([[0.0, 2, 4, 4], [0.0, 2, 4, 2]])
    found = paired_difference(ours, theirs, truth, np.random.default_rng(0))
    # squares: +1 in one seed at state 0, -4 in one seed at state 3; episodes: +.25 and -1 on average
    assert found["mean"] == pytest.approx((0.5 - 2.0) / 4 / 1.5)
    assert (found["low"], found["high"]) == pytest.approx((-1 / 1.5, 0.25 / 1.5))
    assert found["by_seed"] == pytest.approx([(1 - 4) / 4 / 1.5, 0])
    same = {"mean": 0, "low": 0, "high": 0, "by_seed": [0, 0], "told_apart": False}
    assert paired_difference(ours, ours, truth, np.random.default_rng(0)) == same
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):  # states of an episode share their luck: means of 40 such episodes
        luck = np.repeat(rng.normal(0, 1, 40), 10) + rng.normal(0, 0.5, 400)
        many = Truth(np.tile([-1.0, 1.0], 200), np.zeros(400), np.repeat(np.arange(40), 10))
        off = np.sqrt(np.maximum(4 + luck, 0))
        interval = paired_difference((many.mean + off)[None], (many.mean + 2)[None], many, rng)
        inside += interval["low"] <= 0 <= interval["high"]
    assert 0.82 <= inside / 200 <= 0.96


def test_methods_are_told_apart_where_the_interval_and_every_seed_agree() -> None:
    truth = Truth(np.tile([-1.0, 1.0], 40), np.zeros(80), np.repeat(np.arange(8), 10))  # variance 1
    theirs = np.stack([truth.mean + 1.0] * 3)  # squared error 1 everywhere

    def against(*squares: float) -> tuple[dict[str, Any], str]:
        ours = np.stack([truth.mean + square**0.5 for square in squares])
        found = paired_difference(ours, theirs[: len(squares)], truth, np.random.default_rng(0))
        return found, _difference({"rival": "td", **found})

    found, text = against(0.8, 0.9, 0.7)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((-0.2, -0.2, -0.2))
    assert found["told_apart"]
    assert text == "`td` **-0.20** [-0.20, -0.20; -0.20, -0.10, -0.30]"
    found, text = against(1.05, 0.95, 0.1)  # the interval is far from 0, but one seed is on the other side
    assert found["high"] < -0.29
    assert found["by_seed"] == pytest.approx([0.05, -0.05, -0.9])
    assert not found["told_apart"]
    assert text == "`td` -0.30 [-0.30, -0.30; +0.05, -0.05, -0.90]"
    found, text = against(1.5)
    assert found["told_apart"]
    assert text == "`td` **+0.50** [+0.50, +0.50]"


def test_cells_come_after_those_they_need_and_know_their_settings() -> None:
    cells = cells_of(TASK, "cpu", (0.95, 0.9), (0, 1), ("musik",))
    names = [(c["seed"], c["quantizer"], c.get("gamma"), c["method"]) for c in cells]
    assert len(set(names)) == len(names) == 2 * (1 + 2 * 6) + 1 + 3
    assert names.index((1, "vqvae", 0.9, "voc")) < names.index((1, "pixels", 0.9, "mc"))
    assert [n for n in names if n[1] == "musik"] == [
        (0, "musik", None, "quantizer"), *((0, "musik", 0.95, method) for method in ("voc", "paper", "one_step")),
    ]  # fmt: skip
    elsewhere = cells_of(TASK, "cpu", (0.9, 0.99), (0,), ("musik", "dino"))
    assert {c["quantizer"] for c in elsewhere} == {"vqvae", "pixels"}  # no quantizer that nothing asks for
    marks = {c["quantizer"]: c["settings"] for c in cells}
    assert marks["pixels"] == marks["vqvae"] != marks["musik"]
    assert config_of("vqvae", 0.95, SCALES["cpu"]).occupancy.loop.steps == 350
    assert config_of("vqvae", 0.95, replace(SCALES["cpu"], steps=3)).occupancy.loop.steps == 3


def test_kept_arrays_are_made_once_and_only_of_one_protocol(tmp_path: Path) -> None:
    path, made = tmp_path / "some" / "file.safetensors", []

    def make() -> dict[str, np.ndarray]:
        made.append(0)
        return {"x": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(kept_arrays(path, {"rows": [1, 2]}, make)["x"], [0, 1, 2])
    assert len(made) == 1
    with pytest.raises(VOCError, match="another protocol") as caught:
        kept_arrays(path, {"rows": [1, 3]}, make)
    assert one_sentence(str(caught.value))


def test_a_quantizer_that_is_kept_anew_gets_codes_of_its_own(tmp_path: Path) -> None:
    write_world(tmp_path / "world", episodes=2, rows=20)
    data = TaskData(TASK, tmp_path, SCALES["smoke"])
    data.__dict__["episodes"] = Episodes.open(tmp_path / "world").load_frames()
    first, second = (
        train_quantizer(fresh_quantizer(data.episodes, config), data.episodes, config.quantizer_training)
        for config in (small_config(quantizer=5), small_config(quantizer=6, seed=1))
    )
    before, after = data.keep_quantizer(first, "one"), data.keep_quantizer(second, "one")
    assert not torch.equal(before, after)
    assert torch.equal(after, tokenize(second, data.episodes)[0])


def test_known_returns_are_averaged_over_seeds() -> None:
    cell = {"task": TASK, "gamma": 0.9, "quantizer": "pixels", "method": "mc"}
    result = {"values": {"mc": [0.0, 2.0]}, "rows": 200}
    records = [
        {"cell": {**cell, "seed": seed}, "result": {**result, "known_rows": known}, "hardware": "paper"}
        for seed, known in enumerate((90, 110))
    ]
    truth = Truth(np.array([0.0, 2.0]), np.zeros(2), np.arange(2))
    text = table(results_of(records, {(TASK, 0.9): truth}, "smoke"))
    assert (
        "- 100 training rows (50%) have a known return (a mean over seeds); 15 % of the episodes are kept back" in text
    )


def test_refusals(tmp_path: Path) -> None:
    args = Args("smoke", tmp_path / "out", tmp_path / "results")
    for changed, words in (
        ({"scale": "huge"}, "Unknown scale"), ({"tasks": ("walker-fly",)}, "Unknown task"),
        ({"others": ("gan",)}, "Unknown quantizer"), ({"gammas": (0.99,)}, "reaches to gamma 0.8, not 0.99"),
        ({"seeds": ()}, "number of seeds is 0"), ({"tasks": ()}, "number of tasks is 0"),
    ):  # fmt: skip
        with pytest.raises(VOCError, match=words) as caught:
            value_error.main(replace(args, **changed))  # type: ignore[arg-type]
        assert one_sentence(str(caught.value))
    assert list(tmp_path.iterdir()) == []
    hold_settings(tmp_path / "out/settings.json", {"scale": "cpu"})
    with pytest.raises(VOCError, match=r"out was made with other settings \(scale\); choose another --out"):
        value_error.main(args)


def _cells(run: dict[str, Any], method: str, quantizer: str = "pixels") -> list[tuple[dict[str, Any], dict[str, Any]]]:
    records = [(r["cell"], r["result"]) for r in finished(run["folder"] / "out" / TASK / "cells.jsonl")]
    return [(c, r) for c, r in records if (c["method"], c["quantizer"]) == (method, quantizer)]


def _errors(results: dict[str, Any]) -> list[float]:
    return [row["error"] for row in results["tasks"][TASK][0]["methods"]]
