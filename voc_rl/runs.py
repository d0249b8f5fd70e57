"""Run folders: who is using one, what is done in it, its curve, seconds and memory.

config.json     per stage its settings, and what it was made with: versions, threads, device
stages.json     finished stages: fingerprint, seconds, peak memory
metrics.jsonl   the curve, one line per logged step
checkpoints/    states of unfinished training
estimates/      values that stages of an evaluation found
figures/        of a report
"""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from voc_rl.checkpoints import atomic_path, hold_folder, read_json, unwritable, write_json
from voc_rl.distributed import agreed, ranks
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, kept_every

PACKAGES = (
    "voc_rl",
    "torch",
    "numpy",
    "mujoco",
    "dm-control",
    "gymnasium",
    "h5py",
    "vector-quantize-pytorch",
)
# stage -> what its curve is called, where that is another word
CURVES = {
    "quantizer": ("teacher", "quantizer"),
    "train": ("joint", "occupancy", "reward", "reward_in_context"),
}
FOLDERS = ("checkpoints", "estimates", "figures")  # a run's own
MODEL = ("quantizer", "tokenize", "train")  # stages that make the model of a run
FOUND = ("metrics.json", "report.html", "figures/*.png")  # what was found of it, without a word of which one it was
NOTE_EVERY = 2.0  # seconds between notes of the time that an unfinished stage has taken


class RunFolder:
    """A folder that one process works in at a time; use it as a context manager.

    Attributes:
        path: the folder. device: where its networks are computed, in words. writes: whether this process keeps the
            folder; of several that train as one only the first does, and says to the others what is finished.
        listeners: called with every logged step, e.g. to send it to Weights & Biases.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path, self.device, self.writes = Path(path), device, ranks().first
        self.listeners: list[Callable[[str, int, Mapping[str, float]], None]] = []
        self._clock: _Clock | None = None

    def __enter__(self) -> RunFolder:
        if not self.writes:
            return self
        self._lock = hold_folder(self.path, "run folder")
        self._sweep()
        self._end_last_line()
        return self

    def __exit__(self, *_: object) -> None:
        if self.writes:
            self._lock.close()

    def _sweep(self) -> None:
        """Delete files that a killed run was writing: its own alone, for other runs and collections may lie below, and
        the folder of a cut drawing, from which it goes on, has such a name too."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            for leftover in folder.glob(".*.part"):
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)

    def _end_last_line(self) -> None:
        path = self.path / "metrics.jsonl"
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with open(path, "a") as file:
                file.write("\n")

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps({"stage": stage, "step": step, **numbers}) + "\n")
        except OSError as error:
            reason = unwritable(error, self.path) or error.strerror
            raise VOCError(f"{path} cannot be written ({reason}); run again once it can.") from error
        for listener in self.listeners:
            listener(stage, step, numbers)
        if self._clock is not None and self._clock.due():  # so that a killed stage's seconds are not lost
            self._record(f"{self._clock.name} (unfinished)", self._clock.record())

    def curve(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a killed run left unfinished is skipped.

        So are repeated lines: a resumed run logs again what was logged after its checkpoint.
        """
        path = self.path / "metrics.jsonl"
        rows = []
        for line in dict.fromkeys(path.read_text().splitlines()) if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def checkpoints(self, stage: str, fingerprint: str, steps: int, anew: str = "--force") -> Checkpoints:
        """Where the training of a stage keeps its state. ``anew``: what a user says to begin it anew."""
        advice = f"use {anew} to start anew, or another --out"
        return Checkpoints(self._checkpoint(stage), fingerprint, every=kept_every(steps), advice=advice)

    def _checkpoint(self, stage: str) -> Path:
        return self.path / "checkpoints" / f"{stage}.pt"

    def settings(self, stage: str) -> dict[str, Any] | None:
        """With what a stage was finished; None where it was not."""
        path = self.path / "config.json"
        if stage not in self._stages() or not path.exists():
            return None
        found: dict[str, Any] | None = read_json(path)["stages"].get(stage)
        return found

    def began(self, *stages: str) -> bool:
        """Whether one of some stages was ever begun here."""
        path = self.path / "config.json"
        return path.exists() and not read_json(path)["stages"].keys().isdisjoint(stages)

    def finished(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage was finished with the same fingerprint."""
        return agreed(self._stages().get(stage, {}).get("fingerprint") == fingerprint)

    def outdated(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage was finished with another fingerprint."""
        return self._stages().get(stage, {}).get("fingerprint", fingerprint) != fingerprint

    def forget(self, stage: str) -> None:
        """Make a stage unfinished: its record, curve and checkpoint go."""
        if not self.writes:
            return
        stages = self._stages()
        kept = {name: record for name, record in stages.items() if name not in (stage, f"{stage} (unfinished)")}
        if kept != stages:
            write_json(self.path / "stages.json", kept)
        self._checkpoint(stage).unlink(missing_ok=True)
        self._drop_curve(stage)

    def _drop_curve(self, stage: str) -> None:
        curve, gone = self.curve(), CURVES.get(stage, (stage,))
        if stage == "train" and "quantizer" not in self._stages():  # joint training, whose quantizer has a teacher too
            gone = (*gone, "teacher")
        if any(row.get("stage") in gone for row in curve):
            with atomic_path(self.path / "metrics.jsonl") as temporary:
                lines = [json.dumps(row) + "\n" for row in curve if row.get("stage") not in gone]
                temporary.write_text("".join(lines))

    @contextmanager
    def stage(self, name: str, fingerprint: str, settings: Mapping[str, Any], resumes: bool = True) -> Iterator[None]:
        """Do a stage: measure it, and when it ends well record it as finished.

        Seconds of an interrupted stage and of its resumed rest add up; one that does not resume starts from zero. They
        stay with its checkpoint, also when that refuses other settings. The curve of an interrupted one goes where it
        left no checkpoint: the work, maybe of other settings, begins anew.
        A record of other settings is forgotten first: what it vouches for is about to be replaced. So is what was found
        of the model that was there, where a stage makes another; ``estimates`` stay, whose records know their model.
        """
        if not self.writes:
            yield
            agreed(True)  # that the first one has recorded it
            return
        if name in self._stages() or not resumes:
            self.forget(name)
        elif not self._checkpoint(name).exists():
            self._drop_curve(name)
        if name in MODEL:
            for path in (path for pattern in FOUND for path in self.path.glob(pattern)):
                path.unlink(missing_ok=True)
        self._note_settings(name, settings)
        reset_peak_memory()
        before = self._stages().get(f"{name} (unfinished)", {})
        another = self._checkpoint(name).exists() and before.get("fingerprint") != fingerprint
        self._clock = clock = _Clock(name, fingerprint, before)
        try:
            yield
        except BaseException as error:
            refused = another and isinstance(error, VOCError)
            self._record(f"{name} (unfinished)", before if refused else clock.record())
            raise
        finally:
            self._clock = None
        stages = self._stages()
        stages.pop(f"{name} (unfinished)", None)
        write_json(self.path / "stages.json", {**stages, name: clock.record()})
        self._checkpoint(name).unlink(missing_ok=True)
        agreed(True)

    def measured(self, what: str) -> dict[str, float]:
        """``seconds``, ``cpu_seconds`` or ``peak_memory_bytes`` of every finished stage."""
        return {
            name: record[what]
            for name, record in self._stages().items()
            if what in record and not name.endswith(" (unfinished)")
        }

    def _stages(self) -> dict[str, Any]:
        path = self.path / "stages.json"
        return read_json(path) if path.exists() else {}

    def _record(self, name: str, record: dict[str, Any]) -> None:
        write_json(self.path / "stages.json", {**self._stages(), name: record})

    def _note_settings(self, stage: str, settings: Mapping[str, Any]) -> None:
        path = self.path / "config.json"
        config = {"stages": {}, "made_with": {}} | (read_json(path) if path.exists() else {})
        config["stages"][stage] = dict(settings)
        config["made_with"][stage] = {"versions": versions(), "threads": _threads(), "device": self.device}
        write_json(path, config)


class _Clock:
    """Seconds and memory of a stage, on top of what an interrupted part with the same fingerprint took."""

    def __init__(self, name: str, fingerprint: str, before: Mapping[str, Any]) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.before = before if before.get("fingerprint") == fingerprint else {}
        self.wall, self.cpu = time.perf_counter(), cpu_seconds()
        self.noted = self.wall

    def due(self) -> bool:
        return time.perf_counter() - self.noted > NOTE_EVERY

    def record(self) -> dict[str, Any]:
        self.noted = time.perf_counter()
        return {
            "fingerprint": self.fingerprint,
            "seconds": round(self.before.get("seconds", 0.0) + self.noted - self.wall, 6),
            "cpu_seconds": round(self.before.get("cpu_seconds", 0.0) + cpu_seconds() - self.cpu, 6),
            "peak_memory_bytes": max(self.before.get("peak_memory_bytes", 0), peak_memory_bytes()),
        }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds() -> float:
    """Processor time of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_memory_bytes() -> int:
    """Largest resident memory since the last reset (where the system can reset it, else since the start)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def reset_peak_memory() -> None:
    """Let ``peak_memory_bytes`` count from now on, where the system can."""
    with suppress(OSError, AttributeError):  # else what is freed but kept for later would count (glibc)
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # then later stages report the peak so far
        Path("/proc/self/clear_refs").write_text("5")


def _threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1
