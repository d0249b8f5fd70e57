"""Policy evaluation on Walker and Cheetah: 24 policies a task, valued from pixels that others logged.

python -m voc_rl.benchmarks.ope --scale cpu --out runs/ope

Cells (task, discount, method, part, seed) are kept as they finish; the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from voc_rl.benchmarks.cell_benchmark import CellBenchmark
from voc_rl.benchmarks.cells import Cell, check_reach, grid
from voc_rl.benchmarks.one_step import ONE_STEP_DROPOUT
from voc_rl.benchmarks.ope_baselines import BASELINES, Estimates, effective_starts
from voc_rl.benchmarks.ope_data import R_MAX, Scale, TaskData, task_data
from voc_rl.benchmarks.ope_protocol import SIXTEEN, Target
from voc_rl.benchmarks.ope_table import results_of, save_plot, table
from voc_rl.errors import check_choices
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import Condition, OccupancyTraining, OccupancyTransformer, PolicyTraining, hops
from voc_rl.ope import EvaluationConfig, PolicyEstimate, PolicyEvaluator, StitchingConfig
from voc_rl.precision import autocast, choose_device, device_of
from voc_rl.sizes import sized
from voc_rl.training import VOCConfig, train
from voc_rl.values import horizon, rewards_of_futures
from voc_rl.values.statistics import normal_interval

SCALES = {
    "smoke": Scale(
        episodes=16, steps=60, resets=4, anywhere=8, roll_outs=2, gammas=(0.8,), quantizer=60, network=20, critic=20
    ),
    "cpu": Scale(
        episodes=80, steps=500, resets=10, anywhere=40, roll_outs=4, gammas=(0.95, 0.9), quantizer=500, network=3000,
        critic=10_000,
    ),
    "gpu": Scale(
        episodes=600, steps=500, resets=40, anywhere=160, roll_outs=2, gammas=(0.95, 0.9, 0.99), quantizer=5000,
        network=20_000, critic=40_000, size="small", protocol=SIXTEEN,
    ),
}  # fmt: skip
PARTS = ("development", "test")
METHODS = ("voc", "one_step", *BASELINES)
# From a behaviour model on, one network for all policies or one for each. Either is as dear as voc, so they are
# done only where they are named.
NETWORKS = ("voc_warm", "voc_alone")
BEHAVIOUR_SHARE = 1 / 3  # of their optimiser steps, which are voc's in all
ROLLED_OUT = 4  # roll-outs per start of the one-step model


@dataclass(frozen=True)
class OPE(CellBenchmark):
    """Policy evaluation against the truth and baselines."""

    name, file = "ope", "cells.jsonl"
    table = staticmethod(table)

    methods: tuple[str, ...] = METHODS
    """Also: voc_warm, voc_alone."""
    parts: tuple[str, ...] = PARTS
    gammas: tuple[float, ...] = ()
    """Discounts; none named: those of the scale."""
    seeds: int = 1

    @property
    def discounts(self) -> tuple[float, ...]:
        """Those that were asked for, or the scale's."""
        return self.gammas or SCALES[self.scale].gammas

    def cells(self) -> list[Cell]:
        self.check_words("tasks", "parts")
        check_choices(self.methods, (*METHODS, *NETWORKS), "method")
        check_reach(self.discounts, max(SCALES[self.scale].gammas), self.scale)
        return grid(task=self.tasks, part=self.parts, gamma=self.discounts, method=self.methods, seed=range(self.seeds))

    def settings(self) -> dict[str, Any]:
        return settings_of(self.scale)

    def data(self, task: str) -> TaskData:
        return task_data(task, self.out, SCALES[self.scale])

    def truth(self, records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], dict[str, float]]:
        """J of every policy by the tasks and discounts of some cells."""
        asked = dict.fromkeys((record["cell"]["task"], record["cell"]["gamma"]) for record in records)
        return {(task, gamma): self.data(task).true_j(gamma) for task, gamma in asked}

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return results_of(records, self.truth(records), self.scale)

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        save_plot(path, records, self.truth(records), records[0]["cell"]["gamma"])

    def work(self, cell: Cell) -> dict[str, Any]:
        torch.set_num_threads(1)
        data = self.data(cell["task"])
        targets = data.targets(cell["part"] == "development")
        return estimates_of(data, targets, cell["method"], cell["gamma"], cell["seed"], self.scale, self.device)


def estimates_of(
    data: TaskData, targets: Mapping[str, Target], method: str, gamma: float, seed: int, scale: str, device: str
) -> dict[str, Any]:
    """``estimates`` by method and policy, and what else is worth keeping."""
    there = choose_device(device)
    if method == "voc":
        return _voc(evaluator_of(data, targets, gamma, scale, seed, there))
    if method in NETWORKS:
        return {"estimates": {method: _from_behaviour(data, targets, method, gamma, seed, scale, there)}}
    if method == "one_step":
        evaluator = evaluator_of(data, targets, 0.0, scale, seed, there, head_members=0)
        return {"estimates": _one_step(data, evaluator, gamma)}
    result: dict[str, Any] = {"estimates": BASELINES[method](data, targets, gamma, seed, there)}
    if method == "wis":
        sizes = {name: effective_starts(data, policy, gamma) for name, policy in targets.items()}
        result["effective_starts"] = sizes
    return result


def settings_of(scale: str) -> dict[str, Any]:
    """What the folder of a scale was made with; the benchmarks that share it share this too."""
    network = SCALES[scale].network
    configs = {f"config_{gamma:g}": asdict(_config(scale, gamma, 0, network)) for gamma in (*SCALES[scale].gammas, 0)}
    return {"scale": scale, **asdict(SCALES[scale]), **configs}


def _config(scale: str, gamma: float, seed: int, steps: int) -> EvaluationConfig:
    own = SCALES[scale]
    sizes = sized(own.size)
    loop = replace(sizes.occupancy.loop, steps=steps)
    voc = replace(VOCConfig(), network=sizes.network, seed=seed)
    occupancy = OccupancyTraining(gamma=gamma, loop=loop)
    training = PolicyTraining(occupancy=occupancy)
    if gamma == 0:  # the one-step model, which is rolled out by the policies alone
        occupancy = replace(occupancy, feature_dropout=ONE_STEP_DROPOUT)
        training = PolicyTraining(occupancy=occupancy, action_share=0.0, start_share=0.0)
    stitching = StitchingConfig(draws=4, replicates=8)  # for small shares of the data too, so that all are alike
    config = EvaluationConfig(stitching, critic=own.fitted_q, training=training, voc=voc)
    if scale == "smoke":
        few = LoopConfig(steps=50, batch_size=256)
        voc = replace(voc, reward=replace(voc.reward, loop=few))
        config = replace(config, stitching=StitchingConfig(replicates=3), samples=16, density_rows=200, voc=voc)
    return config


def evaluator_of(
    data: TaskData,
    targets: Mapping[str, Any],
    gamma: float,
    scale: str,
    seed: int,
    device: torch.device,
    behaviour: OccupancyTransformer | None = None,
    steps: int | None = None,
    **size: Any,
) -> PolicyEvaluator:
    """The evaluator of a cell, with the settings that were chosen on development policies; ``steps`` of its network
    (None: the scale's), and ``size``, what is not usual (``NetworkSize``)."""
    config = _config(scale, gamma, seed, steps or SCALES[scale].network)
    network = replace(config.voc.network, **size)
    return PolicyEvaluator(
        data.episodes, targets, gamma, data.starts, replace(config, voc=replace(config.voc, network=network)),
        quantizer=data.quantizer, tokens=data.tokens, device=device, behaviour=behaviour, progress=True,
    )  # fmt: skip


def _voc(evaluator: PolicyEvaluator) -> dict[str, Any]:
    """``mfmc`` (the chains alone), ``voc_corrected`` (their jumps corrected), ``voc_head`` and ``voc`` (sampled
    futures), what the data say of each policy, and the intervals of the differences of all pairs."""
    estimates: Estimates = {}
    diagnostics, pairs = {}, {}
    for method, estimator in (
        ("mfmc", "stitch"), ("voc_corrected", "corrected"), ("voc_head", "head"), ("voc", "sample"),
    ):  # fmt: skip
        found = {name: evaluator.estimate(name, estimator) for name in evaluator.policies}  # type: ignore[arg-type]
        estimates[method] = {name: _j(e) for name, e in found.items()}
        pairs[method] = [_pair(one, other) for one, other in combinations(found.values(), 2)]
        diagnostics = {name: {**e.diagnostics, "stderr": e.stderr * _unit(e)} for name, e in found.items()}
    return {"estimates": estimates, "diagnostics": diagnostics, "pairs": pairs}


def _pair(one: PolicyEstimate, other: PolicyEstimate) -> tuple[str, str, float, float]:
    """Two names, and the interval of the difference of their J."""
    found, unit = one.difference(other), _unit(one)
    return found.policy, found.than, found.low * unit, found.high * unit


def _unit(found: PolicyEstimate) -> float:
    return (1.0 - found.gamma) / R_MAX


def _j(found: PolicyEstimate) -> tuple[float, float, float]:
    """J with its interval."""
    unit = _unit(found)
    return found.value * unit, found.low * unit, found.high * unit


def _from_behaviour(
    data: TaskData,
    targets: Mapping[str, Target],
    method: str,
    gamma: float,
    seed: int,
    scale: str,
    device: torch.device,
) -> dict[str, tuple[float, float, float]]:
    """J by sampled futures of one network for all policies (``voc_warm``) or of one for each, which share the steps
    (``voc_alone``). All start from a network of the data's own futures, and know rewards by its reward head."""
    steps = SCALES[scale].network
    alone, first = method == "voc_alone", max(round(BEHAVIOUR_SHARE * steps), 1)
    left = steps - first
    config = _config(scale, gamma, seed, first)
    size = replace(config.voc.network, head_members=0)
    behaviour = train(
        data.episodes, replace(config.voc, network=size, occupancy=config.training.occupancy),
        quantizer=data.quantizer, tokens=data.tokens, device=device, progress=True,
    )  # fmt: skip
    each = max(left // len(targets), 1) if alone else left
    evaluator = evaluator_of(data, targets, gamma, scale, seed, device, behaviour.occupancy, each, head_members=0)
    found = {}
    for name in targets:
        own = evaluator.alone(name) if alone else evaluator
        found[name] = _j(own.estimate(name, "sample", reward_head=behaviour.reward_head))
    return found


def _one_step(data: TaskData, evaluator: PolicyEvaluator, gamma: float) -> Estimates:
    """The same network trained for the next observation (discount 0), rolled out to the horizon."""
    targets, model, head = list(evaluator.policies), evaluator.model.network, evaluator.reward_head
    (codes, features), device = data.tokens, device_of(model)
    starts = torch.from_numpy(data.starts).repeat(len(targets))
    contexts, seen = codes[starts].to(device).long(), features[starts].to(device).float()
    policy = torch.arange(len(targets), device=device).repeat_interleave(len(data.starts))
    generator = torch.Generator().manual_seed(evaluator.seed)
    total, weights = np.zeros((len(starts), ROLLED_OUT)), gamma ** np.arange(horizon(gamma))
    with autocast(model):
        paths = hops(model, contexts, seen, ROLLED_OUT, len(weights), generator, condition=Condition(policy=policy))
        for weight, state in zip(weights, paths, strict=True):
            found = rewards_of_futures(state, evaluator.quantizer.embed, head, model.config.end_code)
            total += weight * found.cpu().numpy()
    j = (total / weights.sum() / R_MAX).reshape(len(targets), len(data.starts), ROLLED_OUT)
    noise = np.sqrt((j.var(2, ddof=1) / ROLLED_OUT).mean(1) / len(data.starts))  # of the roll-outs alone
    means = j.mean((1, 2))
    low, high = normal_interval(means, noise)
    return {"one_step": {name: (float(means[i]), float(low[i]), float(high[i])) for i, name in enumerate(targets)}}


def main() -> None:
    """Entry point; prints the table."""
    tyro.cli(OPE, description=__doc__).run()


if __name__ == "__main__":
    main()
