"""The stages of a run: what is done is skipped, what is forced is done anew, what was killed goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from worlds import SPEC, loop, one_sentence, small_config, write_world

from voc_rl import VOC, Episodes, pipeline
from voc_rl.checkpoints import load_tensors, save_tensors
from voc_rl.data import DataSpec, write_vd4rl
from voc_rl.errors import VOCError
from voc_rl.pipeline import Pipeline
from voc_rl.quantizers import tokenize
from voc_rl.runs import RunFolder
from voc_rl.values import RewardConfig, discounted_returns

CONFIG = replace(small_config(gamma=0.5, quantizer=10, steps=10), reward=RewardConfig(32, 11, loop(10)))
FILES = {
    "quantizer": (),  # saving the whole model writes its files again, unchanged
    "tokenize": ("tokens.safetensors",),
    "train": ("voc.safetensors", "voc.json"),
    "evaluate": ("estimates/evaluate.safetensors",),  # metrics.json is of one model, and written anew with its scores
}
METHOD = {"error", "nrmse", "mae", "bias", "spearman", "pearson"}


def run_all(out: Path, data: Path, config: Any = CONFIG, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Do every stage; what was said, and the metrics."""
    said: list[str] = []
    with RunFolder(out) as run:
        metrics = Pipeline(run, data, config, say=said.append, **options).evaluate(samples=20, max_states=50)
    return said, metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run with every stage done, to be copied, and its metrics."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    said, metrics = run_all(folder, data)
    assert said == []
    return folder, metrics


@pytest.fixture
def out(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of that folder, to do with as a test likes."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def first(finished: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    """The metrics of that run."""
    return finished[1]


def times(out: Path) -> dict[str, Any]:
    """What tells that a stage was done again: its record with its seconds (to a microsecond), and its files' times."""
    records = json.loads((out / "stages.json").read_text())
    return {stage: (records[stage], [(out / n).stat().st_mtime_ns for n in names]) for stage, names in FILES.items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {stage for stage in FILES if before[stage] != after[stage]}


def skipped(said: list[str]) -> list[str]:
    return [line.split(":")[0] for line in said if "done already, skipped" in line]


def redone_anew(said: list[str]) -> set[str]:
    return {line.split(":")[0] for line in said if "with other data, settings or weights; done anew" in line}


def test_metrics(out: Path, first: dict[str, Any]) -> None:
    assert json.loads((out / "metrics.json").read_text()) == first
    assert first["task"] == "square"
    assert first["gamma"] == 0.5
    assert set(first["methods"]) == {"voc", "voc_head", "constant"}
    assert all(set(scores) == METHOD for scores in first["methods"].values())
    assert set(first["seconds"]) == {"quantizer", "tokenize", "train", "evaluate"}
    assert first["peak_memory_bytes"] == max(first["stage_peak_memory_bytes"].values())
    assert first["episodes"] == {"training": 5, "held_out": 1}
    assert first["states"] == 23  # 30 rows, less those whose return is cut: .5^7 < .01
    assert first["r_max"] == 1.0
    assert first["quantizer"]["name"] == "vqvae"
    curve = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [10, 10, 10, 10]
    assert {row["stage"] for row in curve} == {"quantizer", "occupancy", "reward", "reward_in_context"}
    assert VOC.load(out).spec == SPEC


@pytest.mark.parametrize(("repeat", "largest", "r_max"), [(2, 1.9, 2.0), (1, 12.0, 12.0), (1, -3.0, 3.0), (0, 0, 1e-6)])
def test_the_largest_reward(repeat: int, largest: float, r_max: float) -> None:
    """dm_control pays at most 1 per control step; D4RL's tasks pay what they like."""
    run = object.__new__(Pipeline)
    for suite, known in (("1.0", r_max), ("", max(abs(largest), 1e-6))):
        spec = DataSpec(action_repeat=repeat, dm_control=suite)
        reward = np.array([50.0, largest / 2, largest])  # nothing led to the first row: its reward is nobody's
        run.dataset = SimpleNamespace(spec=spec, reward=reward, step_type=np.array([0, 1, 2]))  # type: ignore[assignment]
        assert run.r_max == pytest.approx(known)


def test_a_run_has_one_number_of_frames_per_observation(tmp_path: Path, data: Path) -> None:
    with RunFolder(tmp_path) as run:
        assert Pipeline(run, data, CONFIG, stack=1).train_quantizer().observation_shape[0] == 3
        assert "(stack was 1 and is 3)" in refused(lambda: Pipeline(run, data, CONFIG, stage="tokenize"))


def test_a_model_that_no_command_made_is_not_written_over(tmp_path: Path, out: Path, data: Path) -> None:
    voc = VOC.load(out)
    voc.save(tmp_path / "saved")
    before = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} | {".lock": b""}
    with RunFolder(tmp_path / "saved") as run:
        said = refused(lambda: Pipeline(run, data, CONFIG))
        assert "holds a model that no command made (voc.json, as of VOC.save)" in said
        for stage in ("evaluate", "tokenize"):  # whose --force is not about the model
            force = frozenset({stage, "report"})
            assert refused(lambda: Pipeline(run, data, CONFIG, stage=stage, force=force)) == said  # noqa: B023
        assert {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} == before
        for stage in ("quantizer", "train"):
            Pipeline(run, data, CONFIG, force=frozenset({stage}))
    with RunFolder(out) as run:
        Pipeline(run, data, CONFIG)


def test_what_is_done_is_skipped(out: Path, first: dict[str, Any], data: Path) -> None:
    before = times(out)
    said, second = run_all(out, data)
    assert skipped(said) == ["quantizer", "tokenize", "train", "evaluate"]
    assert changed(before, times(out)) == set()
    assert second == first


@pytest.mark.parametrize("stage", list(FILES))
def test_force_does_exactly_that_stage(out: Path, first: dict[str, Any], data: Path, stage: str) -> None:
    before = times(out)
    said, second = run_all(out, data, force=frozenset({stage}))
    assert skipped(said) == [name for name in FILES if name != stage]
    assert changed(before, times(out)) == {stage}
    assert second["methods"] == first["methods"]  # one seed, one result


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda c: replace(c, seed=1), {"quantizer", "tokenize", "train", "evaluate"}),
        (
            lambda c: replace(c, quantizer_config={**c.quantizer_config, "hidden": 40}),
            {"quantizer", "tokenize", "train", "evaluate"},
        ),
        (lambda c: replace(c, network=replace(c.network, width=16)), {"train", "evaluate"}),
        (lambda c: replace(c, occupancy=replace(c.occupancy, gamma=0.4)), {"train", "evaluate"}),
        (lambda c: replace(c, reward=replace(c.reward, bins=7)), {"train", "evaluate"}),
    ],
)
def test_another_setting_redoes_what_follows(
    out: Path, data: Path, change: Callable[[Any], Any], redone: set[str]
) -> None:
    before = times(out)
    said, _ = run_all(out, data, change(CONFIG))
    assert changed(before, times(out)) == redone
    assert set(skipped(said)) == set(FILES) - redone
    assert redone_anew(said) == redone
    assert run_all(out, data, change(CONFIG))[0] != []  # and is remembered


def test_other_held_out_episodes_redo_everything(out: Path, data: Path) -> None:
    said, metrics = run_all(out, data, held_out=0.4)
    assert skipped(said) == []
    assert redone_anew(said) == set(FILES)
    assert metrics["episodes"] == {"training": 4, "held_out": 2}


def test_data_that_changed_redo_everything_and_say_so(tmp_path: Path) -> None:
    write_world(tmp_path / "data", 4, 20)
    run_all(tmp_path / "run", tmp_path / "data")
    write_world(tmp_path / "data", 5, 20)
    said, metrics = run_all(tmp_path / "run", tmp_path / "data")
    assert redone_anew(said) == set(FILES)
    assert skipped(said) == []
    assert metrics["episodes"] == {"training": 4, "held_out": 1}


@pytest.mark.parametrize(
    ("stage", "function", "redone"),
    [("quantizer", "ready_quantizer", {"tokenize", "train", "evaluate"}), ("train", "train", {"evaluate"})],
)
def test_other_weights_of_the_same_settings_redo_what_follows(
    out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stage: str, function: str, redone: set[str]
) -> None:
    """As another number of threads or another device trains them."""
    before = times(out)
    trained = getattr(pipeline, function)

    def otherwise(*arguments: Any, **options: Any) -> Any:
        found = trained(*arguments, **options)
        with torch.no_grad():
            next((found if stage == "quantizer" else found.reward_head).parameters()).mul_(1.01)
        return found

    with monkeypatch.context() as patch, RunFolder(out) as run:
        patch.setattr(pipeline, function, otherwise)
        forced = Pipeline(run, data, CONFIG, force=frozenset({stage}))
        forced.train_quantizer() if stage == "quantizer" else forced.train()
    said, _ = run_all(out, data)
    assert redone_anew(said) == redone
    assert set(skipped(said)) == set(FILES) - redone
    assert changed(before, times(out)) == {stage, *redone}
    codes, features = tokenize(VOC.load(out).quantizer, Episodes.open(data))
    stored = load_tensors(out / "tokens.safetensors")
    assert torch.equal(stored["codes"], codes)
    assert torch.equal(stored["features"], features)
    assert set(skipped(run_all(out, data)[0])) == set(FILES)


def test_evaluation_of_other_samples_is_done_again(out: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a cut between the new estimates and their scores, when the old scores must not pass for theirs."""
    shutil.copytree(out, uncut := out.with_name(f"{out.name}_uncut"))
    write = pipeline.write_json

    def cut(path: Path, value: Any) -> None:
        if path.name == "metrics.json":
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, RunFolder(out) as run, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "write_json", cut)
        Pipeline(run, data, CONFIG).evaluate(samples=20, max_states=10)
    found = []
    for folder in (out, uncut):
        with RunFolder(folder) as run:
            found.append(Pipeline(run, data, CONFIG).evaluate(samples=20, max_states=10))
    assert [metrics["states"] for metrics in found] == [10, 10]
    assert found[0]["methods"] == found[1]["methods"]


def test_a_stage_whose_file_is_gone_is_done_again(out: Path, first: dict[str, Any], data: Path) -> None:
    for gone, stage in (("tokens.safetensors", "tokenize"), ("estimates/evaluate.safetensors", "evaluate")):
        (out / gone).unlink()
        said, again = run_all(out, data)
        assert skipped(said) == [name for name in FILES if name != stage]
        assert again["methods"] == first["methods"]
        assert (out / gone).exists()


def test_truth_and_constant_are_those_of_the_data(tmp_path: Path, data: Path) -> None:
    with RunFolder(tmp_path) as run:
        pipeline = Pipeline(run, data, CONFIG)
        rows, truth = pipeline.test_states(1000)
        returns, known = discounted_returns(pipeline.test, 0.5)
        np.testing.assert_array_equal(rows, np.flatnonzero(known))
        np.testing.assert_array_equal(truth, returns[known])
        few, _ = pipeline.test_states(5)
        assert len(few) == 5
        assert few[0] == rows[0]
        assert few[-1] == rows[-1]
        returns, known = discounted_returns(pipeline.training, 0.5)
        assert pipeline.constant_value() == pytest.approx(returns[known].mean())
        together = np.concatenate([pipeline.training.source_rows, pipeline.test.source_rows])
        assert sorted(together) == list(range(len(pipeline.dataset)))  # nothing is in both
        codes, features = pipeline.tokens_of(pipeline.test)
        everything = pipeline.tokenize()
        assert torch.equal(codes, everything[0][pipeline.test.source_rows])
        assert len(features) == len(pipeline.test)


def test_codes_are_those_of_the_same_rows_where_malformed_episodes_were_left_out(tmp_path: Path, data: Path) -> None:
    write_vd4rl(tmp_path / "shards" / "0.hdf5", Episodes.open(data))
    with h5py.File(tmp_path / "shards" / "0.hdf5", "a") as file:
        file["reward"][35] = np.nan  # of the second episode
    with RunFolder(tmp_path / "run") as run:
        with pytest.warns(UserWarning, match="1 malformed"):
            pipeline = Pipeline(run, f"vd4rl:{tmp_path / 'shards'}", CONFIG, held_out=0.4)
        quantizer = pipeline.train_quantizer()
        for part in (pipeline.training, pipeline.test):
            torch.testing.assert_close(pipeline.tokens_of(part), tokenize(quantizer, part))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(VOCError) as caught:
        call()
    assert one_sentence(str(caught.value)), str(caught.value)
    return str(caught.value)


def test_refusals(tmp_path: Path, data: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        for held_out in (0.0, 1.0, -1.0):
            assert "held_out" in refused(lambda h=held_out: Pipeline(run, data, CONFIG, held_out=h))  # type: ignore[misc]
        long = replace(CONFIG, occupancy=replace(CONFIG.occupancy, gamma=0.95))
        pipeline = Pipeline(run, data, long)  # 90 steps are needed, episodes have 29
        assert "gamma 0.95" in refused(lambda: pipeline.test_states(10))
        assert "it takes 90 steps before a time limit" in refused(pipeline.constant_value)
        write_world(tmp_path / "one", 1, 20)
        assert "cannot be split" in refused(lambda: Pipeline(run, tmp_path / "one", CONFIG))
        unknown = replace(CONFIG, quantizer="magic")
        assert "vqvae" in refused(Pipeline(run, data, unknown).train_quantizer)
        assert list((tmp_path / "run").glob("*.safetensors")) == []


def test_tokens_of_other_rows_are_refused(out: Path, data: Path) -> None:
    tensors = load_tensors(out / "tokens.safetensors")
    save_tensors(out / "tokens.safetensors", {name: t[:-1] for name, t in tensors.items()})
    with RunFolder(out) as run:
        assert "tokenise it again" in refused(Pipeline(run, data, CONFIG).tokenize)
