"""How many episodes policy evaluation needs: the policies of ``ope``, from 5 to 100 % of the episodes.

python -m voc_rl.benchmarks.data_efficiency --scale cpu --out runs/ope

Shares episodes and quantizer with ``ope`` (the same --out). Shares of the data are nested, and the starts lie in the
smallest, so that every share values the same states. Frames without actions and rewards are cheap: the quantizer is
that of all episodes, for every method. Cells (task, share, method, seed) are kept as they finish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from voc_rl.benchmarks.cell_benchmark import CellBenchmark
from voc_rl.benchmarks.cells import Cell, grid
from voc_rl.benchmarks.data_efficiency_table import results_of, save_plot, table
from voc_rl.benchmarks.ope import SCALES, estimates_of, settings_of
from voc_rl.benchmarks.ope_data import TaskData, task_data
from voc_rl.data import Episodes
from voc_rl.quantizers import Quantizer

_ALL = (0.05, 0.1, 0.25, 0.5, 1.0)
SHARES = {"smoke": (0.25, 1.0), "cpu": _ALL, "gpu": _ALL}
METHODS = ("voc", "fqe", "wis")


@dataclass
class PartOfData(TaskData):
    """The first episodes of a task, ``share`` of them; ``smallest``: the share that the starts lie in."""

    share: float = 1.0
    smallest: float = 1.0

    @cached_property
    def whole(self) -> TaskData:
        """All episodes."""
        return task_data(self.task, self.folder.parent, self.scale)

    @cached_property
    def episodes(self) -> Episodes:
        return self.whole.episodes.subset(range(self._count(self.share)))

    @cached_property
    def starts(self) -> np.ndarray:
        """First rows, and rows from all over the episodes of the smallest share."""
        dataset, scale, rng = self.episodes, self.scale, np.random.default_rng([self.seed, 29])
        last = dataset.ends[self._count(self.smallest) - 1]
        rows = rng.choice(np.flatnonzero(dataset.steps_left[:last] > 0), scale.anywhere, replace=False)
        return np.concatenate([dataset.starts[: min(scale.resets, self._count(self.smallest))], np.sort(rows)])

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        rows = len(self.episodes)
        codes, features = self.whole.tokens
        return codes[:rows], features[:rows]

    @cached_property
    def quantizer(self) -> Quantizer:
        return self.whole.quantizer

    @property
    def truth_path(self) -> Path:
        return self.folder / "truth_data_efficiency.safetensors"

    def _count(self, share: float) -> int:
        return max(round(share * self.scale.episodes), 1)


@lru_cache(maxsize=16)
def part_of_data(task: str, out: Path, scale: str, share: float) -> PartOfData:
    """A share of a task's episodes; a process reads it once."""
    return PartOfData(task, out / task, SCALES[scale], share=share, smallest=min(SHARES[scale]))


@dataclass(frozen=True)
class DataEfficiency(CellBenchmark):
    """Errors of policy evaluation against the number of episodes."""

    name, file = "data_efficiency", "data_efficiency.jsonl"
    table = staticmethod(table)

    methods: tuple[str, ...] = METHODS
    seeds: int = 1

    def cells(self) -> list[Cell]:
        self.check_words("tasks", "methods")
        gammas, shares = SCALES[self.scale].gammas[:1], SHARES[self.scale]
        return grid(share=shares, task=self.tasks, gamma=gammas, method=self.methods, seed=range(self.seeds))

    def settings(self) -> dict[str, Any]:
        return settings_of(self.scale)

    def data(self, task: str) -> PartOfData:
        """All episodes of a task."""
        return part_of_data(task, self.out, self.scale, 1.0)

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        scale, truth = SCALES[self.scale], {}
        gamma = scale.gammas[0]
        for task in dict.fromkeys(record["cell"]["task"] for record in records):
            data = self.data(task)
            truth[task] = {name: data.true_j(gamma)[name] for name in data.targets(False)}
        return results_of(records, truth, self.scale, gamma, scale.episodes)

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        save_plot(path, found)

    def work(self, cell: Cell) -> dict[str, Any]:
        torch.set_num_threads(1)
        data = part_of_data(cell["task"], self.out, self.scale, cell["share"])
        targets = data.targets(development=False)
        return estimates_of(data, targets, cell["method"], cell["gamma"], cell["seed"], self.scale, self.device)


def main() -> None:
    """Entry point; prints the table."""
    tyro.cli(DataEfficiency, description=__doc__).run()


if __name__ == "__main__":
    main()
