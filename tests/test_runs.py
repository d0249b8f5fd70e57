"""Run folders: one user at a time, what is done, the curve, and seconds that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clocks import Clock
from worlds import COMMAND, one_sentence

from voc_rl import runs
from voc_rl.configs import fingerprint
from voc_rl.errors import VOCError
from voc_rl.runs import RunFolder, versions

HOLDER = """
import sys, time
from voc_rl.runs import RunFolder
with RunFolder(sys.argv[1]) as run:
    with run.stage("quantizer", "mark", {}):
        run.log("quantizer", 1, {"loss": 2.0})
        print("held", flush=True)
        time.sleep(120)
"""


def test_one_process_at_a_time_and_freed_by_a_kill(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(VOCError) as caught, RunFolder(tmp_path):
            pass
        assert str(caught.value).startswith(f"{tmp_path} is in use by another run")
        assert one_sentence(str(caught.value))
        other = subprocess.run(
            [COMMAND, "tokenize", "--data", tmp_path, "--out", tmp_path, "--threads", "1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert other.returncode == 2
        assert other.stderr == f"voc-rl: {caught.value}\n"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json", "metrics.jsonl"]
        os.kill(holder.pid, signal.SIGKILL)
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path) as run:  # no stale lock
        assert not run.finished("quantizer", "mark")
        assert run.curve() == [{"stage": "quantizer", "step": 1, "loss": 2.0}]
    with RunFolder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(VOCError, match="cannot be used as a run folder") as caught,
        RunFolder(tmp_path / "file"),
    ):
        pass
    assert one_sentence(str(caught.value))


def test_stages_are_recorded(tmp_path: Path, clock: Clock) -> None:
    with RunFolder(tmp_path) as run:
        with run.stage("one", "a", {"seed": 3, "steps": 5}):
            clock.sleep(0.3)
        clock.sleep(5.0)
        with run.stage("two", "b", {}):
            clock.sleep(0.5)
            sum(i * i for i in range(2_000_000))
    with RunFolder(tmp_path) as run:
        assert run.finished("one", "a")
        assert not run.finished("one", "b")
        assert not run.finished("three", "a")
        assert run.measured("seconds") == {"one": 0.3, "two": 0.5}
        cpu = run.measured("cpu_seconds")
        assert cpu["one"] < 0.1
        assert cpu["two"] > 0.02
        assert all(10**7 < peak < 10**11 for peak in run.measured("peak_memory_bytes").values())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["stages"] == {"one": {"seed": 3, "steps": 5}, "two": {}}
    assert set(config["made_with"]) == {"one", "two"}
    assert config["made_with"]["one"]["versions"] == versions()
    assert {"python", "voc_rl", "torch", "numpy", "mujoco"} <= set(versions())
    assert config["made_with"]["two"]["threads"] >= 1
    with RunFolder(tmp_path, "another device") as run, run.stage("two", "again", {}):
        pass
    again = json.loads((tmp_path / "config.json").read_text())["made_with"]
    assert again["one"] == config["made_with"]["one"]
    assert again["two"]["device"] == "another device"


MEMORY = """
import sys
from voc_rl.runs import RunFolder
with RunFolder(sys.argv[1]) as run:
    with run.stage("large", "a", {}):
        block = bytearray(300_000_000)
        block[::4096] = b"x" * len(block[::4096])
    del block
    with run.stage("small", "a", {}):
        pass
"""


def test_memory_is_that_of_the_stage(tmp_path: Path) -> None:
    """In a process of its own: this one may have been told to keep freed memory."""
    subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True)
    peaks = RunFolder(tmp_path).measured("peak_memory_bytes")
    assert peaks["large"] > 300_000_000
    if Path("/proc/self/clear_refs").exists():
        assert peaks["large"] - peaks["small"] > 250_000_000


def interrupt(run: RunFolder, name: str, mark: str, clock: Clock, seconds: float = 0.0, **options: bool) -> None:
    """Begin a stage, log a step, and be interrupted."""
    with run.stage(name, mark, {}, **options):
        assert not run.finished(name, mark)
        run.log(name, 1, {"loss": 1.0})
        clock.sleep(seconds)
        raise KeyboardInterrupt


def test_a_failed_stage_is_not_done_and_its_seconds_add_up(tmp_path: Path, clock: Clock) -> None:
    with RunFolder(tmp_path) as run:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupt(run, "one", "a", clock, 0.2)
            assert not run.finished("one", "a")
            assert run.measured("seconds") == {}
        with run.stage("one", "a", {}):
            clock.sleep(0.2)
        assert run.measured("seconds") == {"one": pytest.approx(0.6)}
        assert list(json.loads((tmp_path / "stages.json").read_text())) == ["one"]


def test_seconds_of_other_settings_or_of_work_begun_anew_do_not_count(tmp_path: Path, clock: Clock) -> None:
    with RunFolder(tmp_path) as run:
        with pytest.raises(KeyboardInterrupt):
            interrupt(run, "one", "a", clock, 0.3)
        with run.stage("one", "b", {}):
            pass
        assert run.measured("seconds") == {"one": 0.0}
        with pytest.raises(KeyboardInterrupt):
            interrupt(run, "two", "a", clock, 0.3, resumes=False)
        with run.stage("two", "a", {}, resumes=False):
            run.log("two", 1, {"loss": 3.0})
        assert run.measured("seconds") == {"one": 0.0, "two": 0.0}
        assert [row["loss"] for row in run.curve() if row["stage"] == "two"] == [3.0]


def test_a_refused_command_leaves_the_seconds_of_an_interrupted_one(tmp_path: Path, clock: Clock) -> None:
    def refused(run: RunFolder) -> None:
        with run.stage("one", "other", {}):
            raise VOCError("The checkpoint was written by a run with other settings.")

    with RunFolder(tmp_path) as run:
        checkpoint = run.checkpoints("one", "a", 700).path
        checkpoint.parent.mkdir()
        checkpoint.write_text("state")
        with pytest.raises(VOCError):  # before anything was noted
            refused(run)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupt(run, "one", "a", clock, 0.2)
            with pytest.raises(VOCError):
                refused(run)
        with run.stage("one", "a", {}):
            pass
        assert run.measured("seconds") == {"one": pytest.approx(0.4)}


def test_seconds_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(runs, "NOTE_EVERY", 0.1)
    with RunFolder(tmp_path) as run, run.stage("one", "a", {}):
        clock.sleep(0.3)
        run.log("one", 1, {"loss": 1.0})
        noted = json.loads((tmp_path / "stages.json").read_text())  # what a kill here would leave
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "stages.json").write_text(json.dumps(noted))
    with RunFolder(killed) as run:
        assert not run.finished("one", "a")
        assert run.measured("seconds") == {}
        with run.stage("one", "a", {}):
            clock.sleep(0.1)
        assert run.measured("seconds") == {"one": pytest.approx(0.4)}


def test_other_settings_unmake_the_record_before_the_work(tmp_path: Path, clock: Clock) -> None:
    """Else a kill in between leaves files of the new settings under the record of the old ones."""
    with RunFolder(tmp_path) as run:
        with run.stage("quantizer", "old", {}):
            run.log("quantizer", 50, {"loss": 1.0})
        with pytest.raises(KeyboardInterrupt):
            interrupt(run, "quantizer", "new", clock)
        assert not run.finished("quantizer", "old")
        assert [row["step"] for row in run.curve()] == [1]


def test_forget(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        for stage in ("quantizer", "train", "mc"):
            with run.stage(stage, "a", {}):
                pass
        for stage in ("quantizer", "occupancy", "reward", "reward_in_context", "mc"):
            run.log(stage, 50, {"loss": 1.0})
        checkpoint = run.checkpoints("train", "a", 700).path
        checkpoint.parent.mkdir()
        checkpoint.write_text("state")
        run.forget("train")  # its curves are those of the occupancy network and of the reward head
        assert not checkpoint.exists()
        assert not run.finished("train", "a")
        assert run.finished("quantizer", "a")
        assert run.finished("mc", "a")
        assert [row["stage"] for row in run.curve()] == ["quantizer", "mc"]
        run.forget("never done")
        assert [row["stage"] for row in run.curve()] == ["quantizer", "mc"]


def test_the_curve_of_a_teacher_goes_with_the_training_that_taught_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        for stage in ("teacher", "joint"):  # joint training, interrupted and forced
            run.log(stage, 50, {"loss": 1.0})
        run.forget("train")
        assert run.curve() == []
        with run.stage("quantizer", "a", {}):  # by stages it is the quantizer's
            run.log("teacher", 50, {"loss": 1.0})
        run.log("occupancy", 50, {"loss": 1.0})
        run.forget("train")
        assert [row["stage"] for row in run.curve()] == ["teacher"]
        run.forget("quantizer")
        assert run.curve() == []


def test_what_was_found_of_a_model_does_not_outlive_it(tmp_path: Path) -> None:
    """From the beginning of the work, so that a kill leaves no scores of the old model beside the new one."""
    found = ("metrics.json", "report.html", "figures/scatter.png")
    kept = ("estimates/evaluate.safetensors", "data/metrics.json")
    for stage in ("quantizer", "tokenize", "train", "evaluate", "mc"):
        for name in (*found, *kept):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("of the old model")
        with RunFolder(tmp_path) as run, run.stage(stage, "a", {}):
            there = {name for name in (*found, *kept) if (tmp_path / name).exists()}
        assert there == {*kept, *(found if stage in ("evaluate", "mc") else ())}


def test_settings_of_a_finished_stage(tmp_path: Path, clock: Clock) -> None:
    with RunFolder(tmp_path) as run:
        assert run.settings("train") is None
        with run.stage("train", "a", {"steps": 3}):
            assert run.settings("train") is None
        assert run.settings("train") == {"steps": 3}
        with pytest.raises(KeyboardInterrupt):
            interrupt(run, "train", "b", clock)
        assert run.settings("train") is None


def test_checkpoints_are_gone_when_a_stage_is_done(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        checkpoints = run.checkpoints("train", "a", 700)
        with run.stage("train", "a", {}):
            checkpoints.path.parent.mkdir()
            checkpoints.path.write_text("state")
        assert not checkpoints.path.exists()
    for steps, every in ((5, 1), (60, 6), (700, 70), (2000, 200), (20000, 200)):
        assert RunFolder(tmp_path).checkpoints("train", "a", steps).every == every


def test_an_unfinished_line_is_skipped_and_spoils_no_other(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.log("one", 50, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "one", "st')  # killed while it wrote
    with RunFolder(tmp_path) as run:
        assert [row["step"] for row in run.curve()] == [50]
        run.log("one", 100, {"loss": 0.5})
        run.log("one", 150, {"loss": 0.4})
        assert [row["step"] for row in run.curve()] == [50, 100, 150]


def test_steps_that_a_resumed_run_logs_again_count_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        for step in (50, 100, 150, 100, 150, 200):
            run.log("one", step, {"loss": 1 / step})
        assert [row["step"] for row in run.curve()] == [50, 100, 150, 200]


def test_listeners_hear_every_step(tmp_path: Path) -> None:
    heard = []
    with RunFolder(tmp_path) as run:
        run.listeners.append(lambda *line: heard.append(line))
        run.log("one", 50, {"loss": 1.0})
    assert heard == [("one", 50, {"loss": 1.0})]


def test_a_run_sweeps_up_its_own_leftovers_alone(tmp_path: Path) -> None:
    own = (".voc.safetensors.abc.part", "checkpoints/.train.pt.x.part", "estimates/.mc.json.x.part")
    others = (
        "kept.part",
        "data/.episode_000001.hdf5.x.part",  # of a collection, which may be at work
        "other/.voc.safetensors.abc.part",  # of another run, too
        ".drawn.part/episode_000000.hdf5",  # a cut drawing, which goes on
        ".drawn.part/.episode_000001.hdf5.x.part",
    )
    for name in (*own, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path):
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", *others}


def test_damaged_records_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text("{")
    with RunFolder(tmp_path) as run, pytest.raises(VOCError, match=r"stages\.json is not valid JSON"):
        run.finished("one", "a")


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": 2}, 3) == fingerprint({"b": 2, "a": 1}, 3)
    assert len({fingerprint(1), fingerprint(2), fingerprint("1"), fingerprint([1]), fingerprint(1, None)}) == 5
    for number in (np.int64(7), np.uint8(7), np.float64(0.1), np.float32(0.5), np.bool_(True)):
        assert fingerprint({"a": number}) == fingerprint({"a": number.item()})
    assert fingerprint(np.arange(3)) == fingerprint([0, 1, 2])
