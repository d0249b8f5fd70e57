"""Cells of a benchmark: done once, kept line by line, whatever kills the run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from worlds import kill_when, one_sentence, outlive, refusal

from voc_rl.benchmarks.cells import describe, finished, grid, run_cells
from voc_rl.benchmarks.results import versions_of
from voc_rl.errors import VOCError
from voc_rl.runs import versions

CELLS = [{"task": task, "seed": seed} for task in ("one", "two") for seed in (0, 1)]

WORKER = """
import sys, time
from pathlib import Path
from voc_rl.benchmarks.cells import run_cells
path = Path(sys.argv[1])
def work(cell):
    if cell["seed"] == 2:
        path.with_name("reached").touch()
        time.sleep(60)
    return {"square": cell["seed"] ** 2}
run_cells([{"seed": seed} for seed in range(4)], work, path)
"""


class Work:
    def __init__(self) -> None:
        self.done: list[Mapping[str, Any]] = []

    def __call__(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        self.done.append(cell)
        return {"name": f"{cell['task']}{cell['seed']}"}


def names(records: list[dict[str, Any]]) -> list[str]:
    return [record["result"]["name"] for record in records]


def test_every_cell_is_done_once_and_told_in_order(tmp_path: Path) -> None:
    path, work, said = tmp_path / "new" / "cells.jsonl", Work(), list[str]()
    assert finished(path) == []
    first = run_cells(CELLS[1:3], work, path, said.append)
    assert (names(first), work.done) == (["one1", "two0"], CELLS[1:3])
    assert said[0].startswith("one, seed 1: 0 s; 1 of 2 cells, ")
    more = [{"seed": 0, "task": "one"}, *CELLS[1:]]  # another order of keys is the same cell
    second = run_cells([*more, more[0]], work, path, said.append)
    assert names(second) == ["one0", "one1", "two0", "two1"]
    assert work.done == [*CELLS[1:3], CELLS[0], CELLS[3]]
    assert said[2] == "2 of 4 cells: done already, skipped"
    assert second[1:3] == first
    assert names(finished(path)) == ["one1", "two0", "one0", "two1"]  # append-only: in the order they were done
    assert run_cells(more, work, path, said.append) == second
    assert len(work.done) == 4


def test_records_hold_settings_result_and_time(tmp_path: Path) -> None:
    def work(cell: Mapping[str, Any]) -> dict[str, Any]:
        return {"sum": sum(i % 7 for i in range(2_000_000)), "pair": (1, 2)}

    (record,) = run_cells([{"a": 1, "levels": (8, 6)}], work, tmp_path / "cells.jsonl", list[str]().append)
    assert record["cell"] == {"a": 1, "levels": [8, 6]}
    assert record["result"] == {"sum": sum(i % 7 for i in range(2_000_000)), "pair": [1, 2]}
    assert 0.01 < record["cpu_seconds"] <= record["seconds"] + 0.05
    assert record["versions"] == versions()
    assert finished(tmp_path / "cells.jsonl") == [record]


def test_results_say_all_versions_that_their_cells_were_made_with() -> None:
    new, old = {**versions(), "torch": "2.0"}, {**versions(), "torch": "1.9"}
    assert versions_of([{"versions": new}, {"versions": old}, {"versions": new}]) == {**new, "torch": "2.0; 1.9"}
    assert versions_of([{"versions": new}, {}])["torch"] == "2.0; not noted"
    assert set(versions_of([{}]).values()) == {"not noted"}


@pytest.mark.parametrize("torn", ['{"cell": {"task": "two", "seed": 0}, "res', '{"cell"', "5", '{"cell": {}}'])
def test_a_torn_last_line_is_ignored_and_removed(torn: str, tmp_path: Path) -> None:
    path, work = tmp_path / "cells.jsonl", Work()
    run_cells(CELLS[:2], work, path, list[str]().append)
    whole = path.read_text()
    path.write_text(whole + torn)
    assert names(finished(path)) == ["one0", "one1"]
    assert names(run_cells(CELLS, work, path, list[str]().append)) == ["one0", "one1", "two0", "two1"]
    assert path.read_text().startswith(whole)
    assert [json.loads(line)["result"]["name"] for line in path.read_text().splitlines()] == [
        "one0", "one1", "two0", "two1",
    ]  # fmt: skip


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path, work = tmp_path / "cells.jsonl", Work()
    run_cells(CELLS[:2], work, path, list[str]().append)
    path.write_text(path.read_text().rstrip("\n"))
    assert names(run_cells(CELLS, work, path, list[str]().append)) == ["one0", "one1", "two0", "two1"]
    assert work.done == CELLS
    assert len(path.read_text().splitlines()) == 4


def test_a_kill_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    kill_when(tmp_path / "reached", [sys.executable, "-c", WORKER, str(path)])
    assert [record["result"] for record in finished(path)] == [{"square": 0}, {"square": 1}]
    done = list[int]()

    def work(cell: Mapping[str, Any]) -> dict[str, Any]:
        done.append(cell["seed"])
        return {"square": cell["seed"] ** 2}

    records = run_cells([{"seed": seed} for seed in range(4)], work, path, list[str]().append)
    assert done == [2, 3]
    assert [record["result"]["square"] for record in records] == [0, 1, 4, 9]


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a full disk: of a longer write a part is taken, silently."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("free", [0, 100])  # bytes: for nothing of the next line, and for a part
def test_a_full_disk_costs_one_cell(free: int, tmp_path: Path) -> None:
    path, work = tmp_path / "cells.jsonl", Work()
    run_cells(CELLS[:1], work, path, list[str]().append)
    whole = path.read_bytes()
    with room(len(whole) + free), pytest.raises(VOCError, match="cannot be written") as caught:
        run_cells(CELLS, work, path, list[str]().append)
    assert str(caught.value) == (
        f"{path} cannot be written (File too large); cells that are done are kept, run again once it can."
    )
    assert work.done == CELLS[:2]
    assert path.read_bytes() == whole
    assert names(run_cells(CELLS, work, path, list[str]().append)) == ["one0", "one1", "two0", "two1"]
    assert work.done == [*CELLS[:2], *CELLS[1:]]
    path.write_bytes(whole.rstrip(b"\n"))
    with room(len(whole) - 1), pytest.raises(VOCError, match="cannot be written"):  # for its end alone
        run_cells(CELLS[:1], work, path, list[str]().append)


def test_an_error_keeps_what_is_finished(tmp_path: Path) -> None:
    def work(cell: Mapping[str, Any]) -> dict[str, Any]:
        if cell["task"] == "two":
            raise RuntimeError("no")
        return {"name": cell["task"]}

    with pytest.raises(RuntimeError):
        run_cells(CELLS, work, tmp_path / "cells.jsonl", list[str]().append)
    assert names(finished(tmp_path / "cells.jsonl")) == ["one", "one"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    other = subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        for _ in range(2):  # it is in its third cell after two lines
            other.stdout.readline()
        with pytest.raises(VOCError) as caught:
            run_cells(CELLS, Work(), path)
        assert str(caught.value) == f"{path} is in use by another run; wait for it, or choose another --out."
        assert len(finished(path)) == 2  # reading is free
    finally:
        other.kill()
        other.communicate()
    assert len(run_cells(CELLS, Work(), path)) == 4


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text('{"cell": {}, "result": {}}\n{"cell": {}\n{"cell": {}, "result": {}}\n')
    for call in (lambda: finished(path), lambda: run_cells(CELLS, Work(), path)):
        with pytest.raises(VOCError) as caught:
            call()
        assert str(caught.value) == f"{path}, line 2, is not a finished cell; mend or remove the line."
    (tmp_path / "file").write_text("")
    with pytest.raises(VOCError, match="cannot be written") as caught:
        run_cells(CELLS, Work(), tmp_path / "file" / "cells.jsonl")
    assert one_sentence(str(caught.value))
    with pytest.raises(ValueError, match="JSON"):  # NaN is no JSON: nothing is written
        run_cells([{"a": 1}], lambda cell: {"x": float("nan")}, tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_text() == ""


def test_cells_in_words() -> None:
    assert (
        describe({"task": "walker-walk", "quantizer": "dino", "seed": 2, "settings": "5f0c"})
        == "walker-walk, dino, seed 2"
    )


def slow_square(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {"square": cell["seed"] ** 2, "process": os.getpid(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}


def test_cells_in_several_processes_are_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cells, said = grid(task=("one", "two"), seed=range(3)), list[str]()
    assert cells[:4] == [{"task": "one", "seed": seed} for seed in range(3)] + [{"task": "two", "seed": 0}]
    records = run_cells(cells, slow_square, tmp_path / "cells.jsonl", said.append, processes=2)
    assert [record["result"]["square"] for record in records] == [0, 1, 4, 0, 1, 4]
    seen = {record["result"]["process"]: record["result"]["gpu"] for record in records}
    assert os.getpid() not in seen
    assert sorted(seen.values()) == ["0", "1"][: len(seen)]  # one each; a process may have found nothing left
    assert run_cells(cells, slow_square, tmp_path / "cells.jsonl", said.append, processes=2) == records
    with pytest.raises(VOCError, match="processes"):
        run_cells(cells, slow_square, tmp_path / "cells.jsonl", processes=0)


def square_once_the_first_has_failed(cell: Mapping[str, Any]) -> dict[str, Any]:
    failed = Path(cell["failed"])
    if cell["seed"] == 0:
        failed.touch()
        raise RuntimeError("no")
    while not failed.exists():  # both began at once, but a busy machine may start one process long before the other
        time.sleep(0.05)
    time.sleep(0.5)
    return {"square": cell["seed"] ** 2}


def test_a_cell_that_fails_leaves_what_other_processes_are_in(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cells = [{"seed": seed, "failed": str(tmp_path / "failed")} for seed in range(5)]
    with pytest.raises(RuntimeError, match="no"):
        run_cells(cells, square_once_the_first_has_failed, path, processes=2)
    assert [record["result"] for record in finished(path)] == [{"square": 1}]  # and no other is begun


def sleep_beside_a_note(cell: Mapping[str, Any]) -> dict[str, Any]:
    Path(cell["folder"], f"{os.getpid()}.began").touch()
    time.sleep(60)
    return {}


def end_at_once(cell: Mapping[str, Any]) -> dict[str, Any]:
    os._exit(9)


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}\n"
        "from pathlib import Path\n"
        "from test_cells import run_cells, sleep_beside_a_note\n"
        "if __name__ == '__main__':\n"
        "    cells = [{'folder': sys.argv[1], 'seed': seed} for seed in range(2)]\n"
        "    run_cells(cells, sleep_beside_a_note, Path(sys.argv[1]) / 'cells.jsonl', processes=2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path)]
    assert outlive(command, lambda: len(list(tmp_path.glob("*.began"))) == 2) == []


def test_a_process_that_ends_early_is_told_in_a_sentence(tmp_path: Path) -> None:
    said = refusal(run_cells, CELLS, end_at_once, tmp_path / "cells.jsonl", processes=2)
    assert said.startswith("A process that did a cell ended early (no memory left?); cells that are done are kept, ")
