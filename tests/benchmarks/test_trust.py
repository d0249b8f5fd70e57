"""The trust benchmark: what it calls equal, whole and dead, and a short form of it on real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from voc_rl.benchmarks import trust_kills
from voc_rl.benchmarks.trust import Trust
from voc_rl.benchmarks.trust_kills import Job, KillReport, contents, kill_and_resume, partial_files, references
from voc_rl.checkpoints import save_tensors, write_json
from voc_rl.errors import VOCError

# half a second of work that leaves one file after another, then a result
WORKER = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
with open(out / "begun", "a") as file:
    file.write("x")
begun = len((out / "begun").read_text())
def save(name, text):
    (out / ("." + name)).write_text(text)
    os.replace(out / ("." + name), out / name)
for i in range(10):
    {write}
save("metrics.json", '{{"score": ' + {score} + ', "seconds": ' + str(time.time()) + "}}")
"""
WHOLE = 'save(f"{i}.json", "{}"); time.sleep(0.04)'
TORN = '(out / f"{i}.json").write_text("{"); time.sleep(0.04); save(f"{i}.json", "{}")'


@pytest.mark.parametrize(
    ("write", "score", "wrong"),
    [
        (WHOLE, '"1"', set()),
        (WHOLE, "str(begun)", {"unequal_resumes"}),
        (TORN, '"1"', {"partial_files"}),
        (WHOLE, "('1' if begun == 1 else 1 / 0)", {"crashes"}),
    ],
)
def test_each_kind_of_failure_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, score: str, wrong: set[str]
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(write=write, score=score))
    monkeypatch.setattr(trust_kills, "JOBS", {"collect": Job("worker", ())})
    monkeypatch.setattr(trust_kills, "_command", lambda name, whole, out: [sys.executable, str(script), str(out)])
    work = tmp_path / "work"
    seconds = references(work, ("collect",), say=lambda line: None)
    report = kill_and_resume("collect", 6, work, seconds["collect"], np.random.default_rng(1))
    assert report.kills == 6
    assert len(report.failures) == sum(getattr(report, kind) for kind in wrong)
    assert {line.split(":")[0] for line in report.failures} == wrong
    assert sorted(path.name for path in work.iterdir()) == ["seconds.json", "whole"]


def test_a_benchmark_that_is_stopped_takes_its_command_along(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Stopped(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            started.append(self)
            if len(started) == 1:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    with pytest.raises(KeyboardInterrupt):
        trust_kills._killed([sys.executable, "-c", "import time; time.sleep(60)"], 30.0, KillReport())
    assert started[0].poll() == -signal.SIGKILL


def test_a_job_that_fails_by_itself_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_kills, "JOBS", {"collect": Job("nothing", ())})
    monkeypatch.setattr(trust_kills, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('out of luck')"])
    with pytest.raises(VOCError, match="collect fails when nobody kills it: out of luck"):
        references(tmp_path, ("collect",), say=lambda line: None)


def test_finished_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = Trust(kills=0, mutations=20, out=tmp_path, results=tmp_path)
    assert trust.run()["mutations"] == 20
    assert not (tmp_path / "whole").exists()  # no kills run nothing
    monkeypatch.setattr("voc_rl.benchmarks.trust.fuzz_readers", None)
    assert trust.run()["mutations"] == 20
    text = (tmp_path / "trust.md").read_text()
    assert "| readers of files | 0 | 0 | 20 |" in text
    assert "Made by `python -m voc_rl.benchmarks.trust --kills 0 --mutations 20` on" in text
    again = Trust(kills=0, mutations=20, jobs=("train", "evaluate"), out=tmp_path, results=tmp_path)
    again.run()
    assert "--mutations 20 --jobs train evaluate` on" in (tmp_path / "trust.md").read_text()


def test_contents_are_numbers_without_times(tmp_path: Path) -> None:
    save_tensors(tmp_path / "voc.safetensors", {"a": torch.ones(2)})
    write_json(tmp_path / "metrics.json", {"error": 0.5, "seconds": {"train": 3}, "voc": {"cpu_seconds": 1}})
    with h5py.File(tmp_path / "episode.hdf5", "w") as file:
        file["reward"] = [1.0, 2.0]
    found = contents(tmp_path)
    assert set(found) == {"voc.safetensors", "metrics.json", "episode.hdf5"}
    assert found["metrics.json"] == {"error": 0.5, "voc": {}}
    with h5py.File(tmp_path / "episode.hdf5", "a") as file:
        file["reward"][1] = 3.0
    assert contents(tmp_path)["episode.hdf5"] != found["episode.hdf5"]


def test_files_that_are_cut_are_seen(tmp_path: Path) -> None:
    save_tensors(tmp_path / "voc.safetensors", {"a": torch.ones(200)})
    write_json(tmp_path / "metrics.json", {"error": 0.5})
    with h5py.File(tmp_path / "episode.hdf5", "w") as file:
        file["reward"] = [1.0] * 500
    assert partial_files(tmp_path) == []
    for path in list(tmp_path.iterdir()):
        os.truncate(path, path.stat().st_size // 2)
    assert len(partial_files(tmp_path)) == 3
    assert partial_files(tmp_path / "nowhere") == []


@pytest.mark.slow
def test_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real commands and real kills; the long form is `python -m voc_rl.benchmarks.trust`."""
    found = Trust(kills=3, mutations=30, jobs=("collect",), out=tmp_path, results=tmp_path).run()
    assert found["kills"] == 3
    assert found["mutations"] == found["loaded"] + found["refused"] == 30
    wrong = {name: found[name] for name in ("crashes", "hangs", "silent_misreads", "unequal_resumes", "partial_files")}
    assert set(wrong.values()) == {0}, capsys.readouterr().out


def test_unknown_commands_are_refused() -> None:
    with pytest.raises(VOCError, match="Unknown command 'sleep'"):
        Trust(kills=1, jobs=("sleep",), out=Path("none")).run()
