"""Two processes that share the cells of a benchmark, over gloo: each cell once, and the records of one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from test_cell_benchmark import Powers
from worlds import refusal, together

from voc_rl.benchmarks.cells import Cell, finished, run_cells
from voc_rl.checkpoints import read_json
from voc_rl.distributed import Ranks, average, ranks

SCRIPT = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from test_shared_cells import shared
shared(Path(sys.argv[3]), int(sys.argv[4])).run()
"""

LATE = """
import sys, time, torch
from pathlib import Path
from voc_rl.benchmarks import cells
from voc_rl.distributed import join, ranks
join(torch.device("cpu"))
read = cells.finished
def late(path):
    time.sleep(0.7 * ranks().rank)
    return read(path)
cells.finished = late
def work(cell):
    time.sleep(1.0 if cell["seed"] else 0.0)
    return {"square": cell["seed"] ** 2}
records = cells.run_cells([{"seed": seed} for seed in range(4)], work, Path(sys.argv[1]))
assert [record["result"]["square"] for record in records] == [0, 1, 4, 9]
"""


class Noted:
    """Shared data, and a note of every time that they were made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        assert ranks() == Ranks(0, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write("made\n")


@dataclass(frozen=True)
class Shared(Powers):
    """Powers; ``out`` has a line of the process for each time that a cell was begun. In its cell ``lost`` the second of
    two processes is gone; 0: never."""

    lost: int = 0

    def data(self, task: str) -> Any:
        return Noted(self.out / f"{task}.txt")

    def work(self, cell: Cell) -> dict[str, Any]:
        process = os.environ.get("RANK", "alone")
        path = self.out / f"{cell['task']}_{cell['method']}_{cell['seed']}.begun"
        with open(path, "a") as file:
            file.write(f"{process}\n")
        own = len(begun(self.out, process))
        if process == "1" and own == self.lost:
            os._exit(9)
        while process != "alone" and len(begun(self.out, "10"[int(process)])) < min(own, 2):
            time.sleep(0.01)  # so that both processes get two cells at least
        power = torch.tensor([float(cell["task"]) ** (2 if cell["method"] == "square" else 3) + cell["seed"]])
        average([power])  # of this process alone
        return {"power": int(power)}

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        again = run_cells(self.cells(), self.work, self.out / self.file, list[str]().append)  # as control does
        assert again == records
        with open(self.out / "summaries.txt", "a") as file:
            file.write(f"{[record['result']['power'] for record in records]}\n")
        return super().summary(records)

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        path.touch(exist_ok=False)


def shared(folder: Path, lost: int = 0) -> Shared:
    return Shared("smoke", folder / "out", folder / "results", seeds=2, lost=lost)


def begun(out: Path, process: str = "") -> list[str]:
    """The cells that were begun by a process, or by any, each as often as it was."""
    lines = [(path.stem, line) for path in sorted(out.glob("*.begun")) for line in path.read_text().split()]
    return [cell for cell, line in lines if process in ("", line)]


def two(folder: Path, lost: int = 0) -> list[tuple[int, str]]:
    tests = Path(__file__).parent
    return together([sys.executable, "-c", SCRIPT, str(tests), str(tests.parent), str(folder), str(lost)])


POWERS = [4, 5, 8, 9, 9, 10, 27, 28]  # of 2 and 3, square and cube, seeds 0 and 1


def test_two_processes_share_cells(tmp_path: Path) -> None:
    ended = two(tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    out, results = tmp_path / "out", tmp_path / "results"
    assert [(out / f"{task}.txt").read_text() for task in "23"] == ["made\n", "made\n"]
    assert len(begun(out)) == len(set(begun(out))) == 8
    assert {*begun(out, "0"), *begun(out, "1")} == set(begun(out))
    assert min(len(begun(out, "0")), len(begun(out, "1"))) >= 2
    assert (out / "summaries.txt").read_text() == f"{POWERS}\n" * 2  # both know all records
    assert read_json(results / "powers.json")["powers"] == POWERS
    assert sorted(path.name for path in results.iterdir()) == ["powers.json", "powers.md", "powers.png"]
    lines = (out / "done.jsonl").read_bytes()
    (results / "powers.png").unlink()
    assert shared(tmp_path).run() == read_json(results / "powers.json")
    assert (out / "done.jsonl").read_bytes() == lines  # one process finds all of it done
    assert len(begun(out)) == len(lines.splitlines()) == 8


def test_a_process_that_reads_late_shares_the_same_cells(tmp_path: Path) -> None:
    """The first process is through with a cell before the second one has seen what there is."""
    path = tmp_path / "cells.jsonl"
    ended = together([sys.executable, "-c", LATE, str(path)])
    assert [code for code, _ in ended] == [0, 0], ended
    assert sorted(record["cell"]["seed"] for record in finished(path)) == [0, 1, 2, 3]


def test_a_lost_process_ends_the_run_and_one_goes_on(tmp_path: Path) -> None:
    first, second = two(tmp_path, lost=2)
    out = tmp_path / "out"
    assert (first[0], second[0]) == (1, 9)
    assert "VOCError: Another process of this run was lost, or did not answer; start all of them again" in first[1]
    assert not (tmp_path / "results").exists()
    kept, (done, unfinished) = finished(out / "done.jsonl"), begun(out, "1")
    assert len(kept) == 6  # the first process did all that was left
    assert len(finished(out / "done.jsonl.rank1")) == 1
    before = begun(out)
    assert len(before) == len(set(before)) == 8
    assert shared(tmp_path).run()["powers"] == POWERS
    again = begun(out, "alone")
    assert len(again) == 1
    assert again[0] in (done, unfinished)
    assert not (out / "done.jsonl.rank1").exists()
    assert finished(out / "done.jsonl")[:6] == kept
    assert len(finished(out / "done.jsonl")) == 8


def test_records_beside_the_file_are_taken_in_once(tmp_path: Path) -> None:
    path, cells, say = tmp_path / "cells.jsonl", [{"seed": seed} for seed in range(4)], list[str]().append
    run_cells(cells[:3], lambda cell: {"square": cell["seed"] ** 2}, path, say)
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{lines[1]}\n")
    path.with_name("cells.jsonl.rank1").write_text(f"{lines[1]}\n")  # a run was cut after it had moved this line
    path.with_name("cells.jsonl.rank12").write_text(f'{lines[2]}\n{{"cell": {{"seed": 3')
    begun = list[int]()

    def work(cell: Mapping[str, Any]) -> dict[str, Any]:
        begun.append(cell["seed"])
        return {"square": 9}

    assert [record["result"]["square"] for record in run_cells(cells, work, path, say)] == [0, 1, 4, 9]
    assert begun == [3]
    assert path.read_text().splitlines()[:3] == lines
    assert [other.name for other in tmp_path.iterdir()] == ["cells.jsonl"]


def test_what_several_processes_cannot_share(tmp_path: Path) -> None:
    with patch("voc_rl.benchmarks.cells.ranks", return_value=Ranks(1, 2)):
        said = refusal(run_cells, [{"seed": 0}], Powers.work, tmp_path / "cells.jsonl", processes=2)
        assert said == "2 processes share the cells already; choose 1 process, or start without torchrun."
        said = refusal(run_cells, [{"seed": 0}], Powers.work, tmp_path / "cells.jsonl")
        assert said.endswith("is not there for every process; choose an --out that all machines share.")
    assert list(tmp_path.iterdir()) == []
