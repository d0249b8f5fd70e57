"""What benchmarks made of cells share: the order of a run, the command that is written down, words that are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from voc_rl.benchmarks.cell_benchmark import CellBenchmark
from voc_rl.benchmarks.cells import Cell, grid
from voc_rl.benchmarks.results import results_folder
from voc_rl.errors import VOCError

EXPONENTS = {"square": 2, "cube": 3}


class Data:
    prepared: ClassVar[list[str]] = []

    def __init__(self, task: str) -> None:
        self.task = task

    def prepare(self) -> None:
        self.prepared.append(self.task)


@dataclass(frozen=True)
class Powers(CellBenchmark):
    name, file = "powers", "done.jsonl"

    tasks: tuple[str, ...] = ("2", "3")
    methods: tuple[str, ...] = ("square", "cube")
    seeds: int = 1

    def cells(self) -> list[Cell]:
        self.check_words("tasks", "methods")
        return grid(task=self.tasks, method=self.methods, seed=range(self.seeds))

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale, "exponents": EXPONENTS}

    def data(self, task: str) -> Data:
        return Data(task)

    def work(self, cell: Cell) -> dict[str, Any]:
        assert cell["task"] in Data.prepared
        return {"power": int(cell["task"]) ** EXPONENTS[cell["method"]]}

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        powers = [record["result"]["power"] for record in records]
        return {"what": "Powers", "scale": self.scale, "hardware": "paper", "command": "powers", "powers": powers}

    def table(self, found: Mapping[str, Any]) -> str:
        return f"| {found['powers']} |"

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        path.write_text(f"{len(records)} bars")


def test_a_run_from_cells_to_results(tmp_path: Path) -> None:
    Data.prepared.clear()
    bench = Powers("smoke", tmp_path / "out", tmp_path / "results")
    found = bench.run()
    assert found["powers"] == [4, 8, 9, 27]
    assert Data.prepared == ["2", "3"]
    assert json.loads((tmp_path / "results/powers.json").read_text()) == found
    assert "| [4, 8, 9, 27] |" in (tmp_path / "results/powers.md").read_text()
    assert (tmp_path / "results/powers.png").read_text() == "4 bars"
    lines = (tmp_path / "out/done.jsonl").read_text().splitlines()
    assert len(lines) == 4
    more = Powers("smoke", tmp_path / "out", tmp_path / "results", methods=("cube",), seeds=2).run()
    assert more["powers"] == [8, 8, 27, 27]
    assert (tmp_path / "out/done.jsonl").read_text().splitlines()[:4] == lines  # what is done is not done again


def test_a_smoke_run_leaves_committed_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Powers("smoke", tmp_path / "out").run()
    assert sorted(path.name for path in (tmp_path / "out").glob("powers.*")) == [
        "powers.json",
        "powers.md",
        "powers.png",
    ]
    assert not Path("benchmarks").exists()
    assert results_folder(None, "cpu", tmp_path) == Path("benchmarks/results")
    assert results_folder(Path("mine"), "smoke", tmp_path) == Path("mine")


def test_a_folder_of_other_settings_is_refused_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Powers("smoke", tmp_path / "out", tmp_path / "results")
    bench.run()
    kept = (tmp_path / "out/done.jsonl").read_bytes()
    monkeypatch.setitem(EXPONENTS, "cube", 4)
    with pytest.raises(VOCError, match=r"out was made with other settings \(exponents\); choose another --out"):
        bench.run()
    monkeypatch.setitem(EXPONENTS, "cube", 3)
    with pytest.raises(VOCError, match=r"\(scale\)"):
        Powers("cpu", tmp_path / "out", tmp_path / "results").run()
    assert (tmp_path / "out/done.jsonl").read_bytes() == kept
    assert bench.run()["powers"] == [4, 8, 9, 27]


def test_the_command_says_what_is_not_usual(tmp_path: Path) -> None:
    usual = Powers("smoke", tmp_path / "out", tmp_path / "results", device="cpu")
    assert usual.run()["command"] == "powers"
    other = Powers("smoke", tmp_path / "out", tmp_path / "results", ("3",), ("cube", "square"), seeds=3)
    assert other.run()["command"] == "powers --tasks 3 --methods cube square --seeds 3"


def test_a_table_of_all_cells_that_are_done(tmp_path: Path) -> None:
    common: tuple[Any, ...] = ("smoke", tmp_path / "out", tmp_path / "results")
    Powers(*common, ("2",), ("cube",), seeds=2).run()
    Powers(*common, methods=("square",)).run()
    lines = (tmp_path / "out/done.jsonl").read_bytes()
    Data.prepared.clear()
    found = Powers(*common, methods=("square",), finished=True).run()
    assert found["powers"] == [4, 9, 8, 8]  # those of the other options first
    assert found["command"] == "powers --finished"
    one = Powers(*common, ("2",), finished=True).run()
    assert (one["powers"], one["command"]) == ([4, 8, 8], "powers --tasks 2 --finished")
    assert Data.prepared == []
    assert (tmp_path / "out/done.jsonl").read_bytes() == lines
    with pytest.raises(VOCError, match="holds no finished cell of these tasks; leave out --finished"):
        Powers("smoke", tmp_path / "new", tmp_path / "results", finished=True).run()
    assert not (tmp_path / "new").exists()


def test_unknown_words_make_nothing(tmp_path: Path) -> None:
    Data.prepared.clear()
    for bench, said in (
        (Powers(out=tmp_path / "out", tasks=("4",)), "Unknown task '4'; accepted: 2, 3"),
        (Powers(out=tmp_path / "out", methods=("root",)), "Unknown method 'root'; accepted: cube, square"),
    ):
        with pytest.raises(VOCError, match=said):
            bench.run()
    assert Data.prepared == []
    assert list(tmp_path.iterdir()) == []
