"""A benchmark made of cells, as a command: the options, the run and the checks that such benchmarks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from voc_rl.benchmarks.cells import Cell, finished, hold_settings, run_cells
from voc_rl.benchmarks.ope_protocol import TASKS
from voc_rl.benchmarks.results import options, results_folder, write_results
from voc_rl.distributed import alone, join, meet, ranks
from voc_rl.errors import VOCError, check_choices
from voc_rl.precision import choose_device

UNSAID = ("scale", "out", "results", "device", "processes")  # options that do not choose which cells there are
PATIENCE = timedelta(days=7)  # processes that joined wait for what others make, and for the last cell


@dataclass(frozen=True)
class CellBenchmark(ABC):
    """Options and run of a benchmark. Cells are kept as they finish; the same command goes on where it stopped.

    Under ``torchrun --nproc-per-node N -m voc_rl.benchmarks.NAME ...`` N processes share the cells, each with a GPU of
    its own where there are GPUs; on several machines ``out`` has to be a folder that they share.

    Options that list words (``tasks``, ``methods``) have all words as their default.

    name: of the results (NAME.json, .md and .png). file: of the finished cells, in the folder ``out``.
    """

    name: ClassVar[str]
    file: ClassVar[str]

    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke: minutes, to see that it runs. cpu: hours on two cores. gpu: more data, larger networks, for a GPU."""
    out: Path = Path("runs/ope")
    """Folder for data, truth and finished cells."""
    results: Path | None = None
    """Folder for table and plot; default benchmarks/results, of scale smoke --out."""
    tasks: tuple[str, ...] = TASKS
    methods: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained."""
    processes: int = 1
    """Cells that are done at once, on the GPUs of this machine in turn. On several machines: 1, and torchrun
    --nproc-per-node N -m voc_rl.benchmarks.NAME, of whose processes each does one cell at a time."""
    finished: bool = False
    """Table of the cells of --tasks that are done, whichever other options they were done with; does none."""

    def run(self) -> dict[str, Any]:
        """Do the cells that are missing, then write table and plot of all that were asked for, and print the table.

        Of several processes that torchrun started, the first one writes and prints.

        Raises:
            VOCError: unknown words, or other options that do not fit; ``out`` was made with other settings; another
                process was lost; ``finished``, and no cell is.
        """
        cells = self.cells()
        join(choose_device(self.device), PATIENCE)
        records = self.done(self.file, cells) if self.finished else []
        if self.finished and not records:
            raise VOCError(f"{self.out / self.file} holds no finished cell of these tasks; leave out --finished.")
        if ranks().first:
            hold_settings(self.out / "settings.json", self.settings())
        if not self.finished:
            self.prepare()
            records = run_cells(cells, self.work, self.out / self.file, processes=self.processes)
        found = self.summary(records)
        found["command"] += options(self._said())
        if ranks().first:
            table = self.table(found)
            folder = write_results(self.name, found, table, results_folder(self.results, self.scale, self.out))
            self.draw(folder / f"{self.name}.png", records, found)
            print(table)
        return found

    def done(self, file: str, asked: Sequence[Cell] = ()) -> list[dict[str, Any]]:
        """All records of the tasks that a file in ``out`` holds, those ``asked`` for first, in their order."""
        own = [record for record in finished(self.out / file) if record["cell"]["task"] in self.tasks]
        return sorted(own, key=lambda r: asked.index(r["cell"]) if r["cell"] in asked else len(asked))

    @abstractmethod
    def cells(self) -> list[Cell]:
        """All cells that were asked for; raises where options do not fit."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What all cells, data and models of the folder ``out`` have in common: sizes, schedules. JSON-ready."""

    @abstractmethod
    def data(self, task: str) -> Any:
        """What the cells of a task share, in the folder ``out``."""

    @abstractmethod
    def work(self, cell: Cell) -> dict[str, Any]:
        """The result of a cell."""

    @abstractmethod
    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the results hold, of the records of all cells; ``command`` without its options but the scale."""

    @abstractmethod
    def table(self, found: Mapping[str, Any]) -> str:
        """The results as Markdown."""

    @abstractmethod
    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        """Write the plot of the results."""

    def shared(self) -> Iterator[Any]:
        """What cells share, one after another."""
        for task in self.tasks:
            yield self.data(task)

    def prepare(self) -> None:
        """Make what all cells share, so that several processes can read it; the first one makes it."""
        if ranks().first:
            with alone():
                for data in self.shared():
                    data.prepare()
        meet()

    def check_words(self, *names: str) -> None:
        """Refuse words that are not among the default of the options ``names``."""
        for name in names:
            check_choices(getattr(self, name), getattr(type(self), name), name.removesuffix("s"))

    def _said(self) -> dict[str, tuple[Sequence[Any], Sequence[Any]]]:
        """What was chosen and the default, by option."""
        told = [f for f in fields(self) if f.name not in UNSAID]
        if self.finished:  # no other option matters then
            told = [f for f in told if f.name in ("tasks", "finished")]
        chosen = {f.name: (getattr(self, f.name), f.default) for f in told}
        return {name: (_listed(own), _listed(usual)) for name, (own, usual) in chosen.items()}


def _listed(value: Any) -> tuple[Any, ...]:
    """The words behind an option's name; none behind a switch that is on."""
    if value is True:
        return ()
    return value if isinstance(value, tuple) else (value,)
