"""Damage small files of every format in many ways, and see what the readers make of them.

    from voc_rl.benchmarks.fuzz_readers import fuzz_readers
    report = fuzz_readers(10_000)

A mutated file has to load as valid episodes or to be refused with a ``VOCError``. Everything runs in a process of its
own, so that a crash or a hang of a library is counted and not suffered. Mutation ``i`` of a seed is always the same.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.benchmarks.fuzz_mutations import Files, mutated
from voc_rl.benchmarks.fuzz_oracle import what_is_wrong
from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_84px, write_d4rl
from voc_rl.data import DataSpec, Episode, Episodes, load_dataset, write_episode
from voc_rl.errors import VOCError, check_positive

_MEMORY = 16 * 2**30  # address space of the process that reads; a dataset here has some kilobytes
_START = 600.0  # seconds until the process answers for the first time
_PATIENCE = 12  # times as long by the clock as by the processor


@dataclass
class FuzzReport:
    """How many mutations were tried and what came of them.

    Attributes:
        loaded, refused: valid episodes, and refusals with a ``VOCError``.
        crashes: the interpreter ended, or something else than a ``VOCError`` was raised.
        hangs: no answer in time. silent_misreads: it loaded, but not as valid episodes, or not
            as what the files hold when they are read by other means.
        failures: outcome, format, number and reason of each crash, hang and misread.
    """

    mutations: int = 0
    loaded: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    silent_misreads: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, what: str) -> None:
        """Count one outcome, by the name of its attribute; ``what`` is kept where it is a failure."""
        self.mutations += 1
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome not in ("loaded", "refused"):
            self.failures.append(f"{outcome}: {what}")


def fuzz_readers(
    mutations: int,
    seed: int = 0,
    timeout: float = 10.0,
    work: Callable[[Any, int], None] | None = None,
    first: int = 0,
) -> FuzzReport:
    """Try that many mutated files, dealt to the formats in turn.

    Args:
        mutations: how many. seed: of all the damage. timeout: processor seconds that one file may take; twelve times
            as many by the clock, if it waits for something else.
        work: what the other process does; for tests of the counts. first: number of the first mutation.
    """
    check_positive(mutations, "mutations")
    report = FuzzReport()
    work = work or _work
    worker = _Worker(work, seed)
    try:
        for index in range(first, first + mutations):
            outcome, what = worker.ask(index, timeout)
            report.add(outcome, f"{_format(index)}, seed {seed}, mutation {index}: {what}")
            if outcome in ("crashes", "hangs"):
                worker.stop()
                worker = _Worker(work, seed)
    finally:
        worker.stop()
    return report


class _Worker:
    """The process that reads; ends with this one."""

    def __init__(self, work: Callable[[Any, int], None], seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, seed), daemon=True)
        self._process.start()
        other.close()
        if not self._connection.poll(_START):
            raise VOCError(f"The process that reads mutated files did not start in {_START:.0f} seconds.")
        self._connection.recv()

    def ask(self, index: int, timeout: float) -> tuple[str, str]:
        try:
            self._connection.send(index)
            began, started = self._cpu_seconds(), time.monotonic()
            while not self._connection.poll(min(timeout, 1.0)):
                # on a busy machine a sound file may wait for its turn
                if self._cpu_seconds() - began > timeout or time.monotonic() - started > _PATIENCE * timeout:
                    return "hangs", f"no answer in {time.monotonic() - started:.0f} seconds"
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return "crashes", f"the process ended with code {self._process.exitcode}"

    def _cpu_seconds(self) -> float:
        """Processor time that the process has taken; Linux alone says it."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Any, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        originals = {name: SAMPLES[name]() for name in formats()}
        connection.send("ready")
        while True:
            try:
                index = connection.recv()
            except (EOFError, OSError):  # the other side is gone
                return
            name = _format(index)
            place = Path(folder) / str(index)
            write_files(place, mutated(originals[name], np.random.default_rng([seed, index])))
            connection.send(read_mutated(place, name))
            for file in place.iterdir():
                file.unlink()


def read_mutated(place: Path, name: str) -> tuple[str, str]:
    """Load the files of a folder, read everything, and say what came of it: the outcome and a reason."""
    word = {"vd4rl_npz": "vd4rl"}.get(name, name)
    path = next(place.glob("*.hdf5")) if name == "d4rl" else place
    try:
        dataset = load_dataset(f"{word}:{path}")
        rows = np.arange(len(dataset))
        frames = dataset.frames(rows) if dataset.has_frames else None
        if dataset.has_frames:
            dataset.windows(rows[:4], 2)
        wrong = what_is_wrong(dataset, frames, place, name)
    except VOCError as error:
        said = str(error)
        return ("refused", said) if said and "\n" not in said else ("crashes", f"refused in other words: {said!r}")
    except Exception as error:
        return "crashes", f"{type(error).__name__}: {error}"
    return ("silent_misreads", wrong) if wrong else ("loaded", "")


# --- small files to damage


def formats() -> list[str]:
    """What can be tried here: Minari's datasets only where it is installed."""
    return [name for name in SAMPLES if name != "minari" or find_spec("minari") is not None]


def _format(index: int) -> str:
    names = formats()
    return names[index % len(names)]


def write_files(folder: Path, files: Files) -> None:
    """Write the files of a dataset into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _episode(number: int, rows: int) -> Episode:
    rng = np.random.default_rng(number)
    step_type = np.ones(rows, np.uint8)
    step_type[0], step_type[-1] = 0, 2
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    action[0] = 0
    discount = np.ones(rows, np.float32)
    discount[-1] = number % 2
    return Episode(
        frames=rng.integers(256, size=(rows, 3, 4, 4), dtype=np.uint8),
        action=action,
        reward=np.where(step_type > 0, rng.normal(size=rows), 0).astype(np.float32),
        discount=discount,
        step_type=step_type,
        state=rng.normal(size=(rows, 3)).astype(np.float32),
        physics=rng.normal(size=(rows, 4)),
    )


def _files_of(write: Callable[[Path], Any]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def _ours() -> Files:
    return _files_of(lambda folder: write_episode(folder / "a.hdf5", _episode(0, 5), DataSpec(task="fuzz", size=4)))


def _v_d4rl() -> Files:
    return _files_of(lambda folder: write_84px(folder / "a.hdf5", [_episode(0, 4), _episode(1, 5)]))


def _v_d4rl_npz() -> Files:
    def write(folder: Path) -> None:
        for i in range(2):
            write_64px(folder / f"{i}.npz", _episode(i, 4 + i))

    return _files_of(write)


def _d4rl() -> Files:
    return _files_of(lambda folder: write_d4rl(folder / "walker2d.hdf5", d4rl_arrays((3, 4), terminated=(1,))))


def _minari() -> Files:
    from voc_rl.data.minari_data import write_minari_folder

    episodes = Episodes.from_episodes([_episode(0, 4), _episode(1, 3)], DataSpec(task="fuzz"), Path("fuzz"))
    return _files_of(lambda folder: write_minari_folder(folder, "fuzz-v0", episodes))


SAMPLES: dict[str, Callable[[], Files]] = {
    "voc": _ours, "vd4rl": _v_d4rl, "vd4rl_npz": _v_d4rl_npz, "d4rl": _d4rl, "minari": _minari,
}  # fmt: skip
