"""Experiments made of cells (task, quantizer, method, seed, ...): each is done once and kept as a line of a JSONL file.

    {"cell": {"task": "walker-walk", "seed": 0}, "result": {...}, "seconds": 12.3, "cpu_seconds": 11.8, ...}

A line is the whole record of a finished cell. It reaches the disk before the next cell starts, or on a full disk
nothing of it does, so a killed benchmark loses the cell that it was in and nothing else; a last line that a kill cut
off is ignored, and removed by the next run.

Processes that torchrun started (``voc_rl.distributed.join``), on machines that share a folder, deal the missing cells
among them. The first one holds the file; each other one keeps its cells in a file beside it, which the first takes in
at the end, or when a run begins whose last one was cut. So any number of processes can go on.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import IO, Any

from voc_rl.benchmarks.results import hardware
from voc_rl.checkpoints import as_json, lock, read_json, write_json, writing
from voc_rl.distributed import alone, dealt, meet, ranks
from voc_rl.errors import VOCError, check_positive
from voc_rl.pipeline import Say
from voc_rl.precision import take_gpu, visible_gpus
from voc_rl.runs import cpu_seconds, versions
from voc_rl.workers import end_with_parent

Cell = Mapping[str, Any]
Work = Callable[[Cell], Mapping[str, Any]]


def grid(**axes: Iterable[Any]) -> list[Cell]:
    """The cells of all combinations of some settings, the last one running fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def check_reach(gammas: Iterable[float], reach: float, scale: str) -> None:
    """Discounts up to ``reach``, that of the roll-outs behind a scale's truth."""
    if (largest := max(gammas)) > reach:
        raise VOCError(f"The truth of scale {scale} reaches to gamma {reach}, not {largest}; give --gammas up to that.")


def run_cells(
    cells: Iterable[Cell], work: Work, path: Path, say: Say = print, processes: int = 1
) -> list[dict[str, Any]]:
    """Do the cells that ``path`` does not hold yet, in order; returns the records of all ``cells``, in order.

    Of several processes that joined, each calls this with the same arguments and gets all records; each cell is done by
    one of them, alone.

    Args:
        cells: JSON-ready settings, all that tells one cell from another; the order of the keys does not matter. A key
            ``settings`` may hold a fingerprint of sizes and schedules: cells of other ones are then done anew.
        work: a cell -> its JSON-ready result. What it raises ends the run; earlier cells are kept, and those that other
            ``processes`` are in are finished and kept.
        path: the JSONL file, held by this run alone until it is done.
        say: is told of every cell and of the time left.
        processes: how many cells are done at once, in so many processes, each of which sees one GPU, where there are
            any; ``work`` then has to pickle, and what cells share has to be there before. 1 works in this process; the
            only choice where several joined.

    Raises:
        VOCError: the file is in use by another run, is damaged, or cannot be written; several that joined
            were told to use ``processes``, have no common folder, or lost one; one of ``processes`` was killed.
    """
    check_positive(processes, "processes")
    own, path = ranks(), Path(path)
    if processes > 1 and own.size > 1:
        raise VOCError(f"{own.size} processes share the cells already; choose 1 process, or start without torchrun.")
    keys = {_key(cell): cell for cell in cells}
    with _held(path) if own.first else nullcontext() as file:
        if file:
            _take_in(path.parent.glob(f"{path.name}.rank*"), path, file)
        meet()
        if not path.exists():
            raise VOCError(f"{path} is not there for every process; choose an --out that all machines share.")
        with nullcontext(file) if file else _held(_beside(path, own.rank)) as kept:
            records = finished(path)
            meet()  # nobody works before all have read: what is dealt is a place in the same list
            _do_missing(keys, records, work, kept, say, processes)
        meet()
        if file:  # by name: the listing of a folder on the network can be an old one
            _take_in([_beside(path, rank) for rank in range(1, own.size)], path, file)
    meet()
    done = {_key(record["cell"]): record for record in finished(path)}
    return [done[key] for key in keys]


def _do_missing(
    keys: Mapping[str, Cell], records: Iterable[Mapping[str, Any]], work: Work, file: IO[bytes], say: Say,
    processes: int,
) -> None:  # fmt: skip
    """Do the cells, by key, of which there are no records."""
    done = {_key(record["cell"]) for record in records}
    todo = [cell for key, cell in keys.items() if key not in done]
    if len(todo) < len(keys) and ranks().first:
        say(f"{len(keys) - len(todo)} of {len(keys)} cells: done already, skipped")
    started = time.perf_counter()
    for count, record in _records(todo, work, processes):
        _write(record, file)
        left = (time.perf_counter() - started) / count * (len(todo) - count)
        cell = keys[_key(record["cell"])]
        say(f"{describe(cell)}: {record['seconds']:.0f} s; {count} of {len(todo)} cells, {left:.0f} s left")


def _records(cells: Sequence[Cell], work: Work, processes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of cells, as they are done, and how many were begun (by all processes that joined) or done."""
    if processes == 1:
        yield from ((place + 1, _measured(cells[place], work)) for place in dealt(len(cells)))
        return
    context, waiting, count = multiprocessing.get_context("spawn"), iter(cells), 0
    errors: list[BaseException] = []
    with ProcessPoolExecutor(processes, context, _begin, (context.Value("i"), visible_gpus())) as pool:
        running = {pool.submit(_measured, cell, work) for cell in itertools.islice(waiting, processes)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                if error := future.exception():
                    errors.append(_ended_early() if isinstance(error, BrokenProcessPool) else error)
                else:
                    count += 1
                    yield count, future.result()
            if not errors:
                running |= {pool.submit(_measured, cell, work) for cell in itertools.islice(waiting, len(ended))}
    if errors:
        raise errors[0]


def _ended_early() -> VOCError:
    return VOCError(
        "A process that did a cell ended early (no memory left?); cells that are done are kept, the same command goes "
        "on, with fewer --processes where memory is short."
    )


def _begin(taken: Synchronized[int], gpus: Sequence[str]) -> None:
    """What a process does before its first cell. It is not left behind: it would hold its GPU for ever."""
    end_with_parent()
    take_gpu(taken, gpus)


def _write(record: Mapping[str, Any], file: IO[bytes]) -> None:
    _append(json.dumps(record, allow_nan=False).encode() + b"\n", file)


def _append(line: bytes, file: IO[bytes]) -> None:
    """Put all of ``line`` on the disk, or nothing of it: a disk that is nearly full takes a part."""
    with writing(Path(file.name), "cells that are done are kept, run again once it can"):
        before = os.fstat(file.fileno()).st_size
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _beside(path: Path, rank: int) -> Path:
    """Where another process than the first keeps its records."""
    return path.with_name(f"{path.name}.rank{rank}")


def _take_in(others: Iterable[Path], path: Path, file: IO[bytes]) -> None:
    """Move the records of other processes to the file of all, which is at ``path`` and open."""
    there = finished(path)
    for other in others:
        for record in finished(other):
            if record not in there:  # a run that was cut here has moved some
                _write(record, file)
        other.unlink()


def finished(path: Path) -> list[dict[str, Any]]:
    """Records of the cells that a file holds, in the order they were done; none where there is no file.

    Raises:
        VOCError: a line, other than a last one that was cut off, is no record.
    """
    path = Path(path)
    whole, _ = _whole_lines(path.read_bytes() if path.exists() else b"")
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        record = _record(line)
        if record is None:
            raise VOCError(f"{path}, line {number}, is not a finished cell; mend or remove the line.")
        records.append(record)
    return records


def hold_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings behind a folder's data, models and cells in a JSON file; refuse a folder that has others.

    Raises:
        VOCError: the file holds other settings.
    """
    own = as_json(settings)
    if not path.exists():
        write_json(path, own)
        return
    there = read_json(path)
    other = sorted(name for name in own.keys() | there.keys() if own.get(name) != there.get(name))
    if other:
        raise VOCError(f"{path.parent} was made with other settings ({', '.join(other)}); choose another --out.")


def describe(cell: Cell) -> str:
    """A cell in words, for messages: its values but for a fingerprint, in the order of its keys."""
    shown = {name: value for name, value in cell.items() if name != "settings"}
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in shown.items())


def _measured(cell: Cell, work: Work) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), cpu_seconds()
    with alone():
        result = dict(work(cell))
    seconds = {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(cpu_seconds() - cpu, 3)}
    return {"cell": dict(cell), "result": result, **seconds, "hardware": hardware(), "versions": versions()}


@contextmanager
def _held(path: Path) -> Iterator[IO[bytes]]:
    """The file, open for appending whole lines and locked."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab", buffering=0))
        except OSError as error:
            raise VOCError(f"{path} cannot be written ({error.strerror}); choose another --out.") from error
        lock(file, f"{path} is in use by another run; wait for it, or choose another --out.")
        content = path.read_bytes()
        whole, torn = _whole_lines(content)
        if torn:
            file.truncate(len(whole))
        elif content and not content.endswith(b"\n"):
            _append(b"\n", file)
        yield file


def _whole_lines(content: bytes) -> tuple[bytes, bytes]:
    """Content up to and with its last whole line, and the rest, which a killed run cut off."""
    tail = content.rpartition(b"\n")[2]
    if tail and _record(tail) is None:
        return content[: len(content) - len(tail)], tail
    return content, b""


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"cell", "result"} <= set(value) else None


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)
