"""Errors of state values on Walker and Cheetah: a VOC, the paper's recipe and baselines, against true roll-outs.

    python -m voc_rl.benchmarks.value_error --scale cpu --out runs/value_error

Values are of the policy that made the data. The scored states come from episodes that nobody is trained on. Cells
(task, quantizer, discount, method, seed) are kept as they finish; the same command goes on where it stopped. How to
read the table: docs/value_error.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from voc_rl.benchmarks.baselines import BATCH, Budget, train_critic
from voc_rl.benchmarks.cells import Cell, check_reach, finished, hold_settings, run_cells
from voc_rl.benchmarks.demo import POLICIES
from voc_rl.benchmarks.one_step import roll_out, train_one_step
from voc_rl.benchmarks.quantizers import config_of as quantizer_config
from voc_rl.benchmarks.results import options, results_folder, write_results
from voc_rl.benchmarks.value_error_data import DATA_SEED, Scale, TaskData
from voc_rl.benchmarks.value_error_plot import draw_errors
from voc_rl.benchmarks.value_error_table import BASE, PIXELS, results_of, table
from voc_rl.configs import fingerprint
from voc_rl.errors import check_choice, check_choices, check_positive
from voc_rl.model import VOC
from voc_rl.occupancy import OccupancyTransformer, default_n
from voc_rl.precision import choose_device, generator_on, keep_freed_memory
from voc_rl.quantizers import QUANTIZERS, codebook_use
from voc_rl.runs import cpu_seconds
from voc_rl.sizes import with_recipe
from voc_rl.training import VOCConfig, ready_quantizer, train
from voc_rl.values import discounted_returns, from_samples, mean_return

SCALES = {
    "smoke": Scale(10, 40, 12, 2, (0.8, 0.5), 0.8, samples=10, steps=5, baseline_steps=5),
    # the second half of the size's steps buys little (docs/what_was_tried.md) and would take another hour a task
    "cpu": Scale(80, 500, 200, 4, (0.95, 0.9, 0.99), 0.95, samples=100, share=0.5),
    "gpu": Scale(600, 500, 500, 4, (0.95, 0.9, 0.99), 0.95, samples=100, baseline_steps=20_000, size="small"),
}
OTHERS = ("musik", "dino")
BY_CODES = ("voc", "paper", "one_step")
BY_PIXELS = ("constant", "mc", "td")


@dataclass(frozen=True)
class Args:
    """Errors of values of states, by method, quantizer and discount."""

    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke (half a minute a task), cpu (more than an hour a task), or gpu (more data, larger networks)."""
    out: Path = Path("runs/value_error")
    """Folder for episodes, truth, quantizers and finished cells; a folder in it per task."""
    results: Path | None = None
    """Folder for value_error.json, .md and .png; default benchmarks/results, of scale smoke --out."""
    tasks: tuple[str, ...] = tuple(POLICIES)
    gammas: tuple[float, ...] = ()
    """Discounts; none named: those of the scale."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training, and of which episodes are trained on."""
    others: tuple[str, ...] = OTHERS
    """Quantizers besides vqvae, with the first seed and at one discount of the scale; none where that is not asked."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained. Critics get the VOC's CPU seconds at scale cpu, so compare them there on a CPU."""


def main(args: Args) -> dict[str, Any]:
    """Do the cells that are missing, then write table and plot of all that were asked for."""
    scale = SCALES[check_choice(args.scale, SCALES, "scale")]
    gammas = args.gammas or scale.gammas
    check_choices(args.tasks, POLICIES, "task")
    check_choices(args.others, QUANTIZERS, "quantizer")
    check_positive(len(args.tasks), "number of tasks")
    check_positive(len(args.seeds), "number of seeds")
    check_reach(gammas, max(scale.gammas), args.scale)
    hold_settings(args.out / "settings.json", {"scale": args.scale})
    torch.set_num_threads(1)
    keep_freed_memory()
    records, truths = [], {}
    for task in args.tasks:
        path = args.out / task / "cells.jsonl"
        data = TaskData(task, args.out / task, scale, choose_device(args.device))
        truths.update({(task, gamma): data.truth(gamma) for gamma in gammas})
        cells = cells_of(task, args.scale, gammas, args.seeds, args.others)
        records += run_cells(cells, Bench(data, path).work, path)
    results = results_of(records, truths, args.scale)
    default = Args()
    results["command"] += options({
        "tasks": (args.tasks, default.tasks), "gammas": (gammas, scale.gammas), "seeds": (args.seeds, default.seeds),
        "others": (args.others, default.others),
    })  # fmt: skip
    text = table(results)
    folder = write_results("value_error", results, text, results_folder(args.results, args.scale, args.out))
    draw_errors(results["tasks"], folder / "value_error.png")
    print(text)
    return results


def cells_of(task: str, scale: str, gammas: Sequence[float], seeds: Sequence[int], others: Sequence[str]) -> list[Cell]:
    """All cells of a task, each after those that it needs, seed by seed."""
    cells: list[Cell] = []
    compared_at = SCALES[scale].compared_at
    for place, seed in enumerate(seeds):
        for quantizer in (BASE, *(others if place == 0 and compared_at in gammas else ())):
            mark = fingerprint(_settings(quantizer, SCALES[scale]))
            common = {"task": task, "seed": seed, "scale": scale, "settings": mark}
            cells.append({**common, "quantizer": quantizer, "method": "quantizer"})
            for gamma in gammas:
                if quantizer == BASE or gamma == compared_at:
                    cells += [{**common, "quantizer": quantizer, "gamma": gamma, "method": m} for m in BY_CODES]
                if quantizer == BASE:
                    cells += [{**common, "quantizer": PIXELS, "gamma": gamma, "method": m} for m in BY_PIXELS]
    return cells


def config_of(quantizer: str, gamma: float, scale: Scale, seed: int = 0) -> VOCConfig:
    """The scale's size with its share of the occupancy steps; with few of all where the scale says so."""
    config = quantizer_config(quantizer, scale.steps, seed, scale.size)
    loop, reward = config.occupancy.loop, config.reward
    loop = replace(loop, steps=scale.steps or round(scale.share * loop.steps))
    if scale.steps:
        reward = replace(reward, loop=replace(reward.loop, steps=scale.steps))
    return replace(config, occupancy=replace(config.occupancy, gamma=gamma, loop=loop), reward=reward)


@dataclass
class Bench:
    """What is done in a cell of one task. ``path``: the file of finished cells, which tells the critics' budget.

    A result holds ``values`` (method -> one per scored state) and ``train_cpu_seconds``, of all that was trained for
    them, the quantizer too.
    """

    data: TaskData
    path: Path
    _one_step_models: dict[tuple[str, int], tuple[OccupancyTransformer, float]] = field(default_factory=dict)

    def work(self, cell: Cell) -> dict[str, Any]:
        """The result of a cell."""
        steps = {"quantizer": self._quantizer, "voc": self._voc, "paper": self._paper, "one_step": self._one_step,
                 "constant": self._constant, "mc": self._critic, "td": self._critic}  # fmt: skip
        return steps[cell["method"]](cell)

    def _quantizer(self, cell: Cell) -> dict[str, Any]:
        training = self.data.training(cell["seed"])
        config = quantizer_config(cell["quantizer"], self.data.scale.steps, cell["seed"], self.data.scale.size)
        started = cpu_seconds()
        quantizer = ready_quantizer(None, training, config, self.data.device)
        seconds = cpu_seconds() - started
        codes = self.data.keep_quantizer(quantizer, _name(cell))
        use = codebook_use(codes.numpy(), quantizer.codebook_size)
        return {"train_cpu_seconds": seconds, "n_tokens": quantizer.n_tokens, "perplexity": use["perplexity"]}

    def _voc(self, cell: Cell) -> dict[str, Any]:
        voc, seconds = self._train(cell, self._config(cell))
        voc.save(self._folder(cell))
        codes, features = self._scored(cell)
        futures = voc.futures_of_codes(codes, features, self.data.scale.samples, generator=self._generator(cell))
        read = {"voc": voc.rewards(futures, features), "voc_codes": voc.rewards(futures)}
        values = {name: from_samples(r.cpu().numpy(), voc.gamma).mean.tolist() for name, r in read.items()}
        values["voc_head"] = voc.value_of_codes(codes, features).mean.tolist()
        return {"values": values, "train_cpu_seconds": seconds}

    def _paper(self, cell: Cell) -> dict[str, Any]:
        voc, seconds = self._train(cell, with_recipe(self._config(cell), "paper"))
        return {"values": {"paper": self._sampled(voc, cell)}, "train_cpu_seconds": seconds}

    def _one_step(self, cell: Cell) -> dict[str, Any]:
        voc, key = VOC.load(self._folder(cell)).to(self.data.device), (cell["quantizer"], cell["seed"])
        if key not in self._one_step_models:  # a model of one step knows no discount: one serves all
            training, started = self.data.training(cell["seed"]), cpu_seconds()
            model = train_one_step(voc, training, self._tokens(cell, training.source_rows), self._config(cell))
            self._one_step_models = {key: (model, cpu_seconds() - started)}
        model, seconds = self._one_step_models[key]
        found = roll_out(model, voc, *self._scored(cell), self.data.scale.samples, self._generator(cell))
        seconds += self._spent({**cell, "method": "quantizer"})
        return {"values": {"one_step": found.mean.tolist()}, "train_cpu_seconds": seconds}

    def _constant(self, cell: Cell) -> dict[str, Any]:
        value = mean_return(self.data.training(cell["seed"]), cell["gamma"])
        return {"values": {"constant": [value] * len(self.data.rows)}}

    def _critic(self, cell: Cell) -> dict[str, Any]:
        kind, gamma, seed = cell["method"], cell["gamma"], cell["seed"]
        training = self.data.training(seed)
        known = int(discounted_returns(training, gamma)[1].sum())
        rows = {"known_rows": known, "rows": len(training)}
        if kind == "mc" and known < BATCH:
            return {"values": {}, "refused": f"{known} rows have a known return, fewer than a batch of {BATCH}", **rows}
        budget = Budget(self._spent({**cell, "quantizer": BASE, "method": "voc"}), self.data.scale.baseline_steps)
        critic = train_critic(kind, training, gamma, default_n(gamma), budget, seed, device=self.data.device)
        values = critic.values(self.data.held_out, self.data.rows).tolist()
        return {"values": {kind: values}, "train_cpu_seconds": critic.cpu_seconds, "steps": critic.steps, **rows}

    def _train(self, cell: Cell, config: VOCConfig) -> tuple[VOC, float]:
        """A VOC on a kept quantizer, and the CPU seconds of both trainings."""
        training, started = self.data.training(cell["seed"]), cpu_seconds()
        quantizer, *tokens = self.data.vision(_name(cell))
        own = torch.from_numpy(training.source_rows)
        voc = train(training, config, quantizer=quantizer, tokens=(tokens[0][own], tokens[1][own]))
        return voc, cpu_seconds() - started + self._spent({**cell, "method": "quantizer"})

    def _config(self, cell: Cell) -> VOCConfig:
        return config_of(cell["quantizer"], cell["gamma"], self.data.scale, cell["seed"])

    def _tokens(self, cell: Cell, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and features of some rows of the whole dataset."""
        _, codes, features = self.data.vision(_name(cell))
        return codes[torch.from_numpy(rows)], features[torch.from_numpy(rows)]

    def _scored(self, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
        return self._tokens(cell, self.data.held_out.source_rows[self.data.rows])

    def _sampled(self, voc: VOC, cell: Cell) -> list[float]:
        samples, generator = self.data.scale.samples, self._generator(cell)
        found = voc.value_of_codes(*self._scored(cell), estimator="sample", samples=samples, generator=generator)
        return found.mean.tolist()

    def _generator(self, cell: Cell) -> torch.Generator:
        return generator_on(self.data.device, cell["seed"])

    def _folder(self, cell: Cell) -> Path:
        return self.data.folder / "vocs" / f"{_name(cell)}_{cell['gamma']:g}"

    def _spent(self, cell: Cell) -> float:
        """CPU seconds of training behind the finished cell like ``cell``; a quantizer's has no discount."""
        wanted = {k: v for k, v in cell.items() if not (k == "gamma" and cell["method"] == "quantizer")}
        return next(r["result"]["train_cpu_seconds"] for r in finished(self.path) if r["cell"] == wanted)


def _name(cell: Cell) -> str:
    """Of a quantizer's folder: another seed or other settings make another."""
    return f"{cell['quantizer']}_{cell['seed']}_{cell['settings']}"


def _settings(quantizer: str, scale: Scale) -> dict[str, Any]:
    """What tells the cells of a quantizer from those of other sizes, schedules and data."""
    config = asdict(config_of(quantizer, 0.0, scale))
    return {"scale": asdict(scale), "config": config, "policies": POLICIES, "data_seed": DATA_SEED}


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.value_error"))
