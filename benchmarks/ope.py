"""Policy evaluation on Walker and Cheetah: 24 policies a task, valued from pixels that others logged.

python -m voc_rl.benchmarks.ope --scale cpu --out runs/ope

Cells (task, discount, method, part, seed) are kept as they finish; the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from voc_rl.benchmarks import ope_baselines
from voc_rl.benchmarks.cells import run_cells
from voc_rl.benchmarks.ope_baselines import Estimates
from voc_rl.benchmarks.ope_data import R_MAX, Scale, TaskData
from voc_rl.benchmarks.ope_protocol import TASKS
from voc_rl.benchmarks.ope_table import results_of, save_plot, table
from voc_rl.benchmarks.results import options, write_results
from voc_rl.errors import VOCError, check_choices
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import Condition, OccupancyTraining, PolicyTraining, hops
from voc_rl.policy_chains import StitchingConfig
from voc_rl.policy_evaluation import EvaluationConfig, PolicyEvaluator
from voc_rl.precision import autocast, device_of
from voc_rl.values import horizon, rewards_of_futures
from voc_rl.values.statistics import normal_interval

SCALES = {
    "smoke": Scale(episodes=16, steps=60, resets=4, anywhere=8, roll_outs=2, gammas=(0.8,), quantizer_steps=60),
    "cpu": Scale(episodes=80, steps=500, resets=10, anywhere=40, roll_outs=4, gammas=(0.95, 0.9)),
}
STEPS = {"smoke": 20, "cpu": 3000}  # of the policies' network
PARTS = ("development", "test")
METHODS = ("voc", "one_step", *ope_baselines.BASELINES)
ROLLED_OUT = 4  # roll-outs per start of the one-step model


@dataclass(frozen=True)
class OPE:
    """Policy evaluation against the truth and baselines."""

    scale: Literal["smoke", "cpu"] = "cpu"
    out: Path = Path("runs/ope")
    """Folder for data, truth and finished cells."""
    results: Path | None = None
    """Folder for ope.json, .md and .png; default benchmarks/results."""
    tasks: tuple[str, ...] = TASKS
    methods: tuple[str, ...] = METHODS
    parts: tuple[str, ...] = PARTS
    gammas: tuple[float, ...] = ()
    """Discounts; none named: those of the scale."""
    seeds: int = 1

    def run(self) -> dict[str, Any]:
        """Do the cells that are missing, then write table and plot of all that were asked for."""
        torch.set_num_threads(1)
        check_choices(self.tasks, TASKS, "task")
        check_choices(self.methods, METHODS, "method")
        check_choices(self.parts, PARTS, "part")
        scale = SCALES[self.scale]
        data = {task: TaskData(task, self.out / task, scale) for task in self.tasks}
        gammas = self.gammas or scale.gammas
        if max(gammas) > max(scale.gammas):
            raise VOCError(f"The truth of scale {self.scale} reaches to gamma {max(scale.gammas)}, not {max(gammas)}.")
        cells = [
            {"task": task, "gamma": gamma, "method": method, "part": part, "seed": seed}
            for task in self.tasks
            for part in self.parts
            for gamma in gammas
            for method in self.methods
            for seed in range(self.seeds)
        ]
        records = run_cells(cells, lambda cell: self._cell(cell, data[cell["task"]]), self.out / "cells.jsonl")
        truth = {(task, gamma): data[task].true_j(gamma) for task in self.tasks for gamma in gammas}
        found = results_of(records, truth, self.scale)
        found["command"] += options({
            "tasks": (self.tasks, TASKS), "parts": (self.parts, PARTS), "gammas": (gammas, scale.gammas),
            "methods": (self.methods, METHODS),
        })  # fmt: skip
        folder = write_results("ope", found, table(found), self.results)
        save_plot(folder / "ope.png", records, truth, gammas[0])
        return found

    def _cell(self, cell: Mapping[str, Any], data: TaskData) -> dict[str, Any]:
        method, gamma, development = cell["method"], cell["gamma"], cell["part"] == "development"
        targets = data.targets(development)
        if method in ("voc", "one_step"):
            if method == "voc":
                estimates, extra = _voc(data, evaluator_of(data, targets, gamma, self.scale, cell["seed"]))
            else:
                evaluator = evaluator_of(data, targets, 0.0, self.scale, cell["seed"])
                estimates, extra = _one_step(data, evaluator, gamma), {}
        else:
            baseline = ope_baselines.BASELINES[method]
            estimates, extra = baseline(data, targets, gamma, cell["seed"], data.true_j(gamma)), {}
            if method == "wis":
                sizes = {name: ope_baselines.effective_starts(data, policy, gamma) for name, policy in targets.items()}
                extra = {"effective_starts": sizes}
        return {"estimates": estimates, **extra}


def _config(scale: str, gamma: float, seed: int) -> EvaluationConfig:
    loop = LoopConfig(steps=STEPS[scale], batch_size=128, learning_rate=4e-3, weight_decay=0.05)
    training = PolicyTraining(occupancy=OccupancyTraining(gamma=gamma, loop=loop))
    config = EvaluationConfig(training=training)
    if scale == "smoke":
        few = replace(config.voc.reward, loop=LoopConfig(steps=50, batch_size=256))
        config = EvaluationConfig(StitchingConfig(replicates=3), 16, 200, training, replace(config.voc, reward=few))
    return replace(config, voc=replace(config.voc, seed=seed))


def evaluator_of(
    data: TaskData, targets: Mapping[str, Any], gamma: float, scale: str, seed: int, null_context: bool = False
) -> PolicyEvaluator:
    """The evaluator of a cell, with the settings that were chosen on development policies."""
    config = _config(scale, gamma, seed)
    network = replace(config.voc.network, null_context=null_context)
    return PolicyEvaluator(
        data.episodes, targets, gamma, data.starts, replace(config, voc=replace(config.voc, network=network)),
        quantizer=data.quantizer, tokens=data.tokens, progress=True,
    )  # fmt: skip


def _voc(data: TaskData, evaluator: PolicyEvaluator) -> tuple[Estimates, dict[str, Any]]:
    """``mfmc`` (the chains alone), ``voc_head`` and ``voc`` (sampled futures), and what the data say of each policy."""
    unit = (1.0 - evaluator.gamma) / R_MAX
    estimates: Estimates = {}
    diagnostics = {}
    for method, estimator in (("mfmc", "stitch"), ("voc_head", "head"), ("voc", "sample")):
        found = {name: evaluator.estimate(name, estimator) for name in evaluator.policies}  # type: ignore[arg-type]
        estimates[method] = {name: (e.value * unit, e.low * unit, e.high * unit) for name, e in found.items()}
        diagnostics = {name: {**e.diagnostics, "stderr": e.stderr * unit} for name, e in found.items()}
    return estimates, {"diagnostics": diagnostics}


def _one_step(data: TaskData, evaluator: PolicyEvaluator, gamma: float) -> Estimates:
    """The same network trained for the next observation (discount 0), rolled out to the horizon."""
    targets, model, head = list(evaluator.policies), evaluator.model.network, evaluator.reward_head
    codes, features = data.tokens
    starts = torch.from_numpy(data.starts).repeat(len(targets))
    contexts, seen = codes[starts].long(), features[starts].float()
    policy = torch.arange(len(targets)).repeat_interleave(len(data.starts))
    generator = torch.Generator().manual_seed(evaluator.seed)
    total, weights = np.zeros((len(starts), ROLLED_OUT)), gamma ** np.arange(horizon(gamma))
    with autocast(device_of(model)):
        paths = hops(model, contexts, seen, ROLLED_OUT, len(weights), generator, condition=Condition(policy=policy))
        for weight, state in zip(weights, paths, strict=True):
            total += weight * rewards_of_futures(state, evaluator.quantizer.embed, head, model.config.end_code).numpy()
    j = (total / weights.sum() / R_MAX).reshape(len(targets), len(data.starts), ROLLED_OUT)
    noise = np.sqrt((j.var(2, ddof=1) / ROLLED_OUT).mean(1) / len(data.starts))  # of the roll-outs alone
    means = j.mean((1, 2))
    low, high = normal_interval(means, noise)
    return {"one_step": {name: (float(means[i]), float(low[i]), float(high[i])) for i, name in enumerate(targets)}}


def main() -> None:
    """Entry point; prints the table."""
    print(table(tyro.cli(OPE, description=__doc__).run()))


if __name__ == "__main__":
    main()
