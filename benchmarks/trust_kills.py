"""Commands killed with SIGKILL at random moments: every resume has to end in what an uninterrupted run ends in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voc_rl.benchmarks.cells import finished
from voc_rl.checkpoints import load_tensors, load_torch_file, read_json, write_json
from voc_rl.errors import VOCError
from voc_rl.pipeline import Say

KILLS_IN_A_ROW = 4  # at most, before a run may end
LIMIT = 900.0  # seconds; a run that takes longer hangs
_SETTINGS = ("--gamma", "0.5", "--quantizer-steps", "30", "--steps", "40", "--threads", "1", "--device", "cpu")
_CLI, _BENCHMARK = ("voc_rl.cli",), ("voc_rl.benchmarks.quantizers",)
_COLLECT = (
    "--task", "walker-walk", "--policy", "walker-walk/step_60000", "--episodes", "4", "--max-episode-steps", "40",
    "--processes", "1",
)  # fmt: skip
_TIMES = ("seconds", "cpu_seconds", "peak_memory_bytes", "stage_peak_memory_bytes")


@dataclass(frozen=True)
class Job:
    """A command: ``python -m module arguments``, with {data} and {out} filled in; it goes on where ``after`` ended."""

    module: str
    arguments: tuple[str, ...]
    after: str | None = None


JOBS = {
    "collect": Job(*_CLI, ("collect", *_COLLECT, "--out", "{out}")),
    "train-quantizer": Job(*_CLI, ("train-quantizer", "--data", "{data}", "--out", "{out}", *_SETTINGS)),
    "tokenize": Job(*_CLI, ("tokenize", "--data", "{data}", "--out", "{out}", *_SETTINGS), "train-quantizer"),
    "train": Job(*_CLI, ("train", "--data", "{data}", "--out", "{out}", *_SETTINGS), "tokenize"),
    "evaluate": Job(*_CLI, ("evaluate", "--data", "{data}", "--out", "{out}", *_SETTINGS, "--samples", "20"), "train"),
    "benchmark": Job(*_BENCHMARK, ("--scale", "smoke", "--out", "{out}", "--results", "{out}/results")),
}


@dataclass
class KillReport:
    """Counts, and a line for everything that went wrong. kills: processes that a SIGKILL really ended."""

    kills: int = 0
    resumes: int = 0
    crashes: int = 0
    hangs: int = 0
    partial_files: int = 0
    unequal_resumes: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, words: str) -> None:
        """Count one more of ``kind``."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.failures.append(f"{kind}: {words}")


def references(folder: Path, jobs: Sequence[str], say: Say = print) -> dict[str, float]:
    """Run commands, and what they go on from, without a kill: seconds of each; those that are there are kept.

    Folder ``folder/whole/NAME`` is the run as it was after command NAME.

    Raises:
        VOCError: a command that fails by itself.
    """
    note = folder / "seconds.json"
    seconds: dict[str, float] = read_json(note) if note.exists() else {}
    for name in dict.fromkeys(_needed(jobs)):
        if name in seconds:
            continue
        out, before = _whole(folder, name), JOBS[name].after
        shutil.rmtree(out, ignore_errors=True)  # of a benchmark that was cut
        if before is not None:
            shutil.copytree(_whole(folder, before), out)
        started = time.monotonic()
        done = subprocess.run(_command(name, folder, out), capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise VOCError(f"{name} fails when nobody kills it: {done.stderr.strip().splitlines()[-1]}")
        seconds[name] = round(time.monotonic() - started, 2)
        write_json(note, seconds)
        say(f"{name}, left alone: {seconds[name]:.0f} s")
    return seconds


def kill_and_resume(name: str, kills: int, folder: Path, seconds: float, rng: np.random.Generator) -> KillReport:
    """Kill a command until ``kills`` of its processes have died; resume it after at most ``KILLS_IN_A_ROW``, and
    compare the end with that of the run of ``references(folder, ...)`` which was left alone.

    Args:
        seconds: what it takes when it is left alone; a kill comes after 0 to so many. rng: of the moments.
    """
    report, out, before = KillReport(), folder / "trial", JOBS[name].after
    while report.kills < kills:
        shutil.rmtree(out, ignore_errors=True)
        if before is not None:
            shutil.copytree(_whole(folder, before), out)
        for _ in range(min(int(rng.integers(1, KILLS_IN_A_ROW + 1)), kills - report.kills)):
            if not _killed(_command(name, folder, out), float(rng.uniform(0.0, seconds)), report):
                break
            for words in partial_files(out):
                report.add("partial_files", f"{name}, {words}")
        _resume(name, folder, out, report)
    shutil.rmtree(out, ignore_errors=True)
    return report


def _whole(folder: Path, name: str) -> Path:
    return folder / "whole" / name


def _needed(jobs: Sequence[str]) -> list[str]:
    """The commands, each behind what it goes on from; with the episodes that ``collect`` makes."""
    found: list[str] = []
    for name in jobs:
        before = JOBS[name].after
        found += [*(_needed([before]) if before is not None else ["collect"]), name]
    return found


def _command(name: str, folder: Path, out: Path) -> list[str]:
    places = {"data": str(_whole(folder, "collect")), "out": str(out)}
    job = JOBS[name]
    return [sys.executable, "-m", job.module, *(word.format(**places) for word in job.arguments)]


def _killed(command: list[str], after: float, report: KillReport) -> bool:
    """Run a command for some seconds, then kill it and what it started; False where it had ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        report.kills += 1
        return True
    except BaseException:  # Ctrl-C, which a session of its own does not hear of
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return False


def _resume(name: str, folder: Path, out: Path, report: KillReport) -> None:
    try:
        done = subprocess.run(_command(name, folder, out), capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        report.add("hangs", f"{name} did not end in {LIMIT:.0f} s after a kill")
        return
    report.resumes += 1
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        report.add("crashes", f"{name} after a kill: exit code {done.returncode}, {last}")
        return
    expected, found = contents(_whole(folder, name)), contents(out)
    for file in sorted(set(expected) | set(found)):
        if expected.get(file) != found.get(file):
            report.add("unequal_resumes", f"{name}: {file} is not that of an uninterrupted run")
            return


def contents(folder: Path) -> dict[str, Any]:
    """What a finished run says: weights, codes, episodes and scores by file, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".hdf5":
            found[name] = _arrays(path)
        elif path.name == "metrics.json":
            found[name] = _without_times(read_json(path))
        elif path.name == "cells.jsonl":
            found[name] = [_without_times(record) for record in finished(path)]
    return found


def partial_files(folder: Path) -> list[str]:
    """Files under a final name that are not whole. A last line of a JSONL file may be cut: readers know."""
    broken = []
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": read_json, ".safetensors": load_tensors, ".hdf5": _arrays, ".pt": load_torch_file,
    }  # fmt: skip
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        read = readers.get(path.suffix)
        if read is not None and path.is_file() and not path.name.startswith("."):
            try:
                read(path)
            except (VOCError, OSError, ValueError) as error:
                broken.append(f"{path.name}: {error}")
    return broken


def _arrays(path: Path) -> dict[str, bytes]:
    with h5py.File(path, "r") as file:
        return {name: file[name][()].tobytes() for name in sorted(file)}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        slow = ("_per_second", "_seconds", "_ratio")
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES and not k.endswith(slow)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
