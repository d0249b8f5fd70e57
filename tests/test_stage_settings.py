"""What a stage is asked to do: a finished one of other settings is done anew by its own command alone, with --force."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_pipeline import CONFIG, run_all
from worlds import SPEC, refusal, write_world

from voc_rl import VOC
from voc_rl.checkpoints import load_torch_file, save_training_state
from voc_rl.data import Episodes, load_dataset, mark
from voc_rl.data.mark import data_mark, frame_bytes
from voc_rl.joint import JointTraining
from voc_rl.pipeline import Pipeline
from voc_rl.quantizers.training import QuantizerTrainee
from voc_rl.runs import RunFolder
from voc_rl.stage_settings import differences
from voc_rl.values import discounted_returns


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run in which everything is finished."""
    out = tmp_path_factory.mktemp("run")
    run_all(out, data)
    return out


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def other_gamma(config: Any) -> Any:
    return replace(config, occupancy=replace(config.occupancy, gamma=0.4))


def larger_gamma(config: Any) -> Any:
    return replace(config, occupancy=replace(config.occupancy, gamma=0.8))


def other_quantizer(config: Any) -> Any:
    return replace(config, quantizer_training=replace(config.quantizer_training, steps=12))


def other_seed(config: Any) -> Any:
    return replace(config, seed=1)


def jointly(config: Any) -> Any:
    return replace(config, joint=JointTraining())


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("evaluate", other_gamma, "train is finished with other settings (occupancy.gamma was 0.5 and is 0.4)"),
        (
            "evaluate",
            other_gamma,
            "to keep what is there (a network trained with --gammas answers for a range of discounts).",
        ),
        ("evaluate", larger_gamma, "; in Python VOC.value(obs, gamma=0.8, estimator='sample') asks this one)."),
        ("evaluate", other_quantizer, "quantizer is finished with other settings (steps was 10 and is 12)"),
        ("evaluate", other_seed, "quantizer is finished with other settings (seed was 0 and is 1)"),
        ("evaluate", jointly, "quantizer is finished with other settings (joint was None and is {"),
        ("tokenize", other_quantizer, "do it anew by voc-rl train-quantizer, in another --out to keep what is there."),
        ("tokenize", jointly, "do it anew by voc-rl train, in another --out to keep what is there."),
        ("train", other_seed, "quantizer is finished with other settings (seed was 0 and is 1)"),
        ("train", other_gamma, "train is finished with other settings (occupancy.gamma was 0.5 and is 0.4); --force"),
        ("train", jointly, "; --force replaces it, or give another --out."),  # it makes the quantizer too
        ("quantizer", other_seed, "(seed was 0 and is 1); --force replaces it, or give another --out."),
        ("quantizer", other_gamma, None),  # what follows it is not asked for
        ("tokenize", other_gamma, None),
        (None, other_seed, None),  # of a demo, which is all stages at once
        ("evaluate", lambda config: config, None),
    ],
)
def test_a_finished_stage_is_not_done_anew_by_the_way(
    data: Path, done: Path, stage: str | None, change: Callable[[Any], Any], words: str | None
) -> None:
    before = files(done)
    with RunFolder(done) as run:
        if words is None:
            Pipeline(run, data, change(CONFIG), stage=stage)
        else:
            said = refusal(Pipeline, run, data, change(CONFIG), stage=stage)
            assert words in said
            assert str(done) in said
            if "--force" in words:
                Pipeline(run, data, change(CONFIG), stage=stage, force=frozenset({stage or ""}))
    assert files(done) == before


def test_another_precision_is_another_setting(data: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Pipeline(RunFolder(done), data, CONFIG).asked.marks
    monkeypatch.setenv("VOC_RL_PRECISION", "float32")
    with RunFolder(done) as run:
        said = refusal(Pipeline, run, data, CONFIG, stage="evaluate")
        assert (
            "quantizer is finished with other settings (precision was 'auto' and is 'float32'); give the same" in said
        )
        other = Pipeline(run, data, CONFIG).asked
    assert other.settings["train"]["precision"] == "float32"
    assert not set(other.marks.values()) & set(marks.values())


def test_scores_are_not_replaced_by_those_of_other_samples(data: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "run")
    before = files(out)
    with RunFolder(out) as run:
        said = refusal(Pipeline(run, data, CONFIG, stage="evaluate").evaluate, 20, 10)
        assert said == (
            f"{out}: evaluate is finished with other settings (max_states was 50 and is 10); --force replaces it, or "
            "give another --out."
        )
        assert files(out) == before
        forced = Pipeline(run, data, CONFIG, stage="evaluate", force=frozenset({"evaluate"}))
        assert forced.evaluate(20, 10)["states"] == 10


def of_several(gamma: float, gammas: tuple[float, float] = (0.3, 0.6)) -> Any:
    return replace(CONFIG, occupancy=replace(CONFIG.occupancy, gamma=gamma, gammas=gammas))


def test_a_network_of_several_discounts_is_scored_at_any_of_them(data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        Pipeline(run, data, of_several(0.4), stage="train").train()
        before = {name: (tmp_path / name).read_bytes() for name in ("voc.safetensors", "voc.json")}
        pipeline = Pipeline(run, data, of_several(0.5), stage="evaluate")
        assert pipeline.evaluate(20, 50)["gamma"] == 0.5
        rows, truth, estimates, _ = pipeline.answers(20, 50)
        codes, features = (part[rows] for part in pipeline.tokens_of(pipeline.test))
        found, (returns, _) = VOC.load(tmp_path), discounted_returns(pipeline.test, 0.5)
        assert found.gamma == 0.4
        np.testing.assert_array_equal(truth, returns[rows])
        np.testing.assert_array_equal(estimates["voc_head"].mean, found.value_of_codes(codes, features, 0.5).mean)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        said = refusal(Pipeline(run, data, of_several(0.6), stage="evaluate").evaluate, 20, 50)
        assert "evaluate is finished with other settings (gamma was 0.5 and is 0.6); --force replaces it" in said
        forced = Pipeline(run, data, of_several(0.6), stage="evaluate", force=frozenset({"evaluate"}))
        assert forced.evaluate(20, 50)["gamma"] == 0.6
        said = refusal(Pipeline, run, data, of_several(0.5, (0.3, 0.5)), stage="evaluate")
        assert "train is finished with other settings (occupancy.gammas was [0.3, 0.6] and is [0.3, 0.5])" in said


def test_networks_of_a_quantizer_that_was_made_anew_need_no_force(data: Path, done: Path, tmp_path: Path) -> None:
    """Nor do scores of a model that is gone."""
    out, said = shutil.copytree(done, tmp_path / "run"), list[str]()
    with RunFolder(out) as run:
        forced = Pipeline(run, data, other_quantizer(CONFIG), stage="quantizer", force=frozenset({"quantizer"}))
        forced.train_quantizer()
        other = other_gamma(other_quantizer(CONFIG))
        Pipeline(run, data, other, stage="train", say=said.append).train()
        assert said[-1] == "train: done before, but with other data, settings or weights; done anew"
        assert Pipeline(run, data, other, stage="evaluate").evaluate(10, 10)["gamma"] == 0.4


@pytest.mark.parametrize("change", [other_seed, other_quantizer])
def test_seed_and_steps_are_nothing_to_a_quantizer_that_was_given(
    data: Path, done: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    """But to the networks the seed is: these are replaced by force alone."""
    other, said = change(CONFIG), list[str]()
    with RunFolder(tmp_path) as run:
        Pipeline(run, data, CONFIG, stage="train", quantizer=done).tokenize()
        Pipeline(run, data, other, stage="tokenize", quantizer=done, say=said.append).tokenize()
        assert [line.split(" (")[0] for line in said] == [
            f"{s}: done already, skipped" for s in ("quantizer", "tokenize")
        ]
        Pipeline(run, data, CONFIG, stage="train", quantizer=done).train()
        before = files(tmp_path)
        if change is other_quantizer:
            said.clear()
            Pipeline(run, data, other, stage="train", quantizer=done, say=said.append).train()
            assert said[-1] == "train: done already, skipped (--force does it again)"
            assert "quantizer_training" not in (run.settings("train") or {})
            assert files(tmp_path) == before
        else:
            for stage in ("train", "evaluate"):
                assert "train is finished with other settings (seed was 0 and is 1); " in refusal(
                    Pipeline, run, data, other, stage=stage, quantizer=done
                )
            assert files(tmp_path) == before
            Pipeline(run, data, other, stage="train", force=frozenset({"train"}), quantizer=done).train()
        assert Pipeline(run, data, other, stage="evaluate", quantizer=done).evaluate(10, 10)["states"] == 10
        same = files(tmp_path)[tmp_path / "voc.safetensors"] == before[tmp_path / "voc.safetensors"]
        assert same == (change is other_quantizer)


@pytest.mark.parametrize("change", [other_quantizer, other_gamma])
def test_a_forced_quantizer_that_was_interrupted_goes_on_without_force(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    """The networks that it left alone are not what it came out of."""
    config = change(CONFIG)
    steps, goes_on = config.quantizer_training.steps, QuantizerTrainee.after_step

    def cut(self: QuantizerTrainee, step: int) -> None:
        goes_on(self, step)
        if step == steps - 2:
            raise KeyboardInterrupt

    for name in ("whole", "cut"):
        shutil.copytree(done, tmp_path / name)
        with RunFolder(tmp_path / name) as run, monkeypatch.context() as patch:
            pipeline = Pipeline(run, data, config, stage="quantizer", force=frozenset({"quantizer"}))
            if name == "cut":
                patch.setattr(QuantizerTrainee, "after_step", cut)
                with pytest.raises(KeyboardInterrupt):
                    pipeline.train_quantizer()
            else:
                pipeline.train_quantizer()
    assert load_torch_file(tmp_path / "cut/checkpoints/quantizer.pt")["step"] == steps - 2
    with RunFolder(tmp_path / "cut") as run:
        for stage in ("quantizer", "tokenize"):
            Pipeline(run, data, config, stage=stage)
        for stage in ("train", "evaluate"):  # of the networks that are there
            if stage == "evaluate" or change is other_gamma:
                assert "train is finished with other settings" in refusal(Pipeline, run, data, config, stage=stage)
            else:
                Pipeline(run, data, config, stage=stage)
        for stage in ("tokenize", "train"):  # which would train over these networks
            assert "(joint was None and is {" in refusal(Pipeline, run, data, jointly(CONFIG), stage=stage)
        Pipeline(run, data, config, stage="quantizer").train_quantizer()
    quantizer = "quantizer.safetensors"
    assert (tmp_path / "cut" / quantizer).read_bytes() == (tmp_path / "whole" / quantizer).read_bytes()


def test_other_data_are_met_and_the_same_elsewhere_are_not(data: Path, done: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "same", episodes=6, rows=30)
    write_world(tmp_path / "more", episodes=7, rows=30)
    with RunFolder(done) as run:
        said: list[str] = []
        Pipeline(run, tmp_path / "same", CONFIG, stage="evaluate", say=said.append).evaluate(20, 50)
        assert len(said) == 4
        assert "quantizer: done already, skipped (voc-rl train-quantizer --force does it again)" in said
        assert "evaluate: done already, skipped (--force does it again)" in said
        assert "the data are others, have changed, or were marked" in refusal(
            Pipeline, run, tmp_path / "more", CONFIG, stage="train"
        )
        assert "held_out was 0.2 and is 0.4" in refusal(Pipeline, run, data, CONFIG, 0.4, stage="evaluate")


def test_a_joint_run_keeps_its_quantizer_from_other_commands(data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        Pipeline(run, data, jointly(CONFIG), stage="train").train()
        before = files(tmp_path)
        for stage in ("tokenize", "evaluate"):
            said = refusal(Pipeline, run, data, CONFIG, stage=stage)
            assert "train is finished with other settings (joint was {" in said
            assert "do it anew by voc-rl train," in said
        for stage in ("quantizer", "train"):
            said = refusal(Pipeline, run, data, CONFIG, stage=stage)
            assert said.endswith("and is None); --force replaces it, or give another --out.")
            Pipeline(run, data, CONFIG, stage=stage, force=frozenset({stage}))
    assert files(tmp_path) == before


def test_a_fresh_folder_takes_any_command(data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        assert Pipeline(run, data, CONFIG, stage="evaluate").evaluate(10, 10)["states"] == 10
        assert set(run.measured("seconds")) == {"quantizer", "tokenize", "train", "evaluate"}


@pytest.mark.parametrize(
    ("stage", "says"),
    [("quantizer", "use --force to start anew"), ("train", "use voc-rl train-quantizer --force to start anew")],
)
def test_a_checkpoint_of_another_stage_names_its_command(data: Path, tmp_path: Path, stage: str, says: str) -> None:
    """``--force`` of the command that met it would not help."""
    with RunFolder(tmp_path) as run:
        save_training_state(tmp_path / "checkpoints" / "quantizer.pt", {"fingerprint": "other"})
        pipeline = Pipeline(run, data, CONFIG, stage=stage)
        assert refusal(pipeline.train_quantizer).endswith(f"{says}, or another --out.")


def test_other_data_is_told_apart(tmp_path: Path) -> None:
    """Also where only the pictures differ, as between render profiles."""
    write_world(tmp_path / "a", 3, 20)
    marks = {data_mark(Episodes.open(tmp_path / "a"))}
    write_world(tmp_path / "same", 3, 20)
    marks.add(data_mark(Episodes.open(tmp_path / "same")))
    assert len(marks) == 1
    write_world(tmp_path / "other spec", 3, 20, spec=replace(SPEC, render="faithful"))
    write_world(tmp_path / "other size", 3, 20, size=36)
    write_world(tmp_path / "other pictures", 3, 20)
    for file in (tmp_path / "other pictures").iterdir():
        with h5py.File(file, "r+") as opened:
            opened["observation"][...] = opened["observation"][...] // 2
    write_world(tmp_path / "other walk", 3, 20, seed=5)
    for name in ("other spec", "other size", "other pictures", "other walk"):
        marks.add(data_mark(Episodes.open(tmp_path / name)))
    assert len(marks) == 5


@pytest.mark.parametrize("whole", [True, False])
def test_a_frame_that_changed_is_other_data(tmp_path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any one; of more than a limit on disk, those at the ends and in the middle of episodes, and files' sizes."""
    write_world(tmp_path / "a", 3, 20)
    plain = Episodes.open(tmp_path / "a")
    if not whole:
        monkeypatch.setattr(mark, "FRAMES_IN_MEMORY", frame_bytes(plain) - 1)
    before = data_mark(plain)
    assert data_mark(Episodes.open(tmp_path / "a").load_frames()) == before  # however much memory there is
    noise = np.random.default_rng(0).integers(256, size=(20, *plain.frame_shape), dtype=np.uint8)
    for row in (0, 9, 19, 3):
        shutil.copytree(tmp_path / "a", copy := tmp_path / str(row))
        with h5py.File(sorted(copy.iterdir())[1], "r+") as opened:
            # in another frame of a file that is not read: what is harder to compress
            changed = 255 - opened["observation"][row] if whole or row != 3 else noise[row]
            opened["observation"][row] = changed
        assert data_mark(Episodes.open(copy)) != before, row


def test_a_part_that_is_held_in_memory_has_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that was made here nor a folder, whose own size is the file system's."""
    write_world(tmp_path / "a", 3, 20)
    monkeypatch.setattr(mark, "FRAMES_IN_MEMORY", 1)
    files = Episodes.open(tmp_path / "a")
    made = [files.whole(i) for i in range(3)]
    marks = {
        data_mark(Episodes.join([files, Episodes.from_episodes(made, files.spec, tmp_path / source)]))
        for source in ("nowhere", "a")
    }
    assert len(marks) == 1


def test_the_order_of_places_is_one_of_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_world(tmp_path / name, 3, 20, seed=seed)
    orders = [[tmp_path / "a", tmp_path / "b"], [tmp_path / "b", tmp_path / "a"], [tmp_path / "a"]]
    marks = [data_mark(load_dataset(places)) for places in orders]
    assert len(set(marks)) == 3
    assert data_mark(Episodes.open(orders[0])) == marks[0]  # the same rows, however they were joined


def test_a_run_of_another_version_is_not_trained_over(data: Path, done: Path, tmp_path: Path) -> None:
    """The same settings, but fingerprints of something that they do not say."""
    shutil.copytree(done, tmp_path / "run")
    stages = json.loads((tmp_path / "run/stages.json").read_text())
    stages["quantizer"]["fingerprint"] = "of before"
    (tmp_path / "run/stages.json").write_text(json.dumps(stages))
    with RunFolder(tmp_path / "run") as run:
        said = refusal(Pipeline, run, data, CONFIG, stage="evaluate")
        assert "quantizer was finished by another version of voc_rl; do it anew by voc-rl train-quantizer, in" in said
        assert "another version of voc_rl; --force" in refusal(Pipeline, run, data, CONFIG, stage="quantizer")


def test_differences() -> None:
    before = {"data": "a", "joint": None, "network": {"width": 32, "levels": [4, 3]}, "config": {}}
    now = {"data": "b", "joint": {"decay": 0.5}, "network": {"width": 16, "levels": (4, 3)}, "config": {"x": 1}, "k": 2}
    assert differences(before, now) == [
        "joint was None and is {'decay': 0.5}",
        "network.width was 32 and is 16",
        "config.x was None and is 1",
    ]
    assert differences({"width": 32, "gamma": 0.5}, {"width": np.int64(32), "gamma": np.float32(0.5)}) == []
