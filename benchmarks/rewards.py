"""Many rewards from one model: the 24 policies of ``ope`` under rewards that nobody logged.

python -m voc_rl.benchmarks.rewards --scale cpu --out runs/ope

Shares data, truth and quantizer with ``ope`` (the same --out). Cells (task, method, part, seed) are kept as they
finish. Rewards: benchmarks/reward_functions.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from voc_rl.benchmarks.cell_benchmark import CellBenchmark
from voc_rl.benchmarks.cells import Cell, grid
from voc_rl.benchmarks.ope import PARTS, SCALES, evaluator_of, settings_of
from voc_rl.benchmarks.ope_baselines import fit
from voc_rl.benchmarks.ope_data import TaskData, discounted_mean, task_data
from voc_rl.benchmarks.reward_functions import REWARDS
from voc_rl.benchmarks.rewards_table import results_of, save_plot, table
from voc_rl.occupancy.stitching import principal_components
from voc_rl.ope import PolicyEvaluator
from voc_rl.precision import choose_device
from voc_rl.values import FittedQ

METHODS = ("voc", "voc_corrected", "sf_td", "fqe_all")
PHI = 32  # features whose successor features ``sf_td`` learns
RIDGE = 1.0

# reward -> policy -> estimated J, and None where there is no number
Estimates = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Rewards(CellBenchmark):
    """Values of policies under new rewards, against true roll-outs."""

    name, file = "rewards", "rewards.jsonl"
    table = staticmethod(table)

    methods: tuple[str, ...] = METHODS
    parts: tuple[str, ...] = PARTS
    seeds: int = 1

    @property
    def gamma(self) -> float:
        """The first discount of the scale."""
        return SCALES[self.scale].gammas[0]

    def cells(self) -> list[Cell]:
        self.check_words("tasks", "methods", "parts")
        return grid(task=self.tasks, part=self.parts, gamma=[self.gamma], method=self.methods, seed=range(self.seeds))

    def settings(self) -> dict[str, Any]:
        return settings_of(self.scale)

    def data(self, task: str) -> TaskData:
        return task_data(task, self.out, SCALES[self.scale])

    def truth(self, records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
        """J of every policy by the tasks of some cells and by reward."""
        asked = dict.fromkeys(record["cell"]["task"] for record in records)
        return {task: true_values(self.data(task), self.gamma) for task in asked}

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return results_of(records, self.truth(records), self.scale, self.gamma)

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        save_plot(path, records, self.truth(records))

    def work(self, cell: Cell) -> dict[str, Any]:
        torch.set_num_threads(1)
        data, device = self.data(cell["task"]), choose_device(self.device)
        targets, gamma, seed = data.targets(cell["part"] == "development"), cell["gamma"], cell["seed"]
        rewards = logged_rewards(data)
        if cell["method"] in ("voc", "voc_corrected"):
            size: dict[str, Any] = {"null_context": True, "head_members": 0}  # the head knows the data's reward only
            evaluator = evaluator_of(data, targets, gamma, self.scale, seed, device, **size)
            return {"estimates": {"voc": _voc, "voc_corrected": _corrected}[cell["method"]](evaluator, rewards)}
        estimate = {"sf_td": _successor_features, "fqe_all": _fitted}[cell["method"]]
        return {"estimates": estimate(data, targets, rewards, gamma, seed, device)}


def logged_rewards(data: TaskData) -> dict[str, np.ndarray]:
    """Rewards float32 (N,) on arrival at the rows, by name; 0 at first rows."""
    state, arrived = data.episodes.state, data.episodes.step_type > 0
    assert state is not None
    return {name: np.where(arrived, f(state), 0.0).astype(np.float32) for name, f in REWARDS[data.task].items()}


def true_values(data: TaskData, gamma: float) -> dict[str, dict[str, float]]:
    """J = (1 - gamma) V of every policy by reward, averaged over starts and roll-outs."""
    return {
        reward: {
            name: float(discounted_mean(function(data.arrived_states(name)), gamma).mean()) for name in data.policies
        }
        for reward, function in REWARDS[data.task].items()
    }


def _voc(evaluator: PolicyEvaluator, rewards: Mapping[str, np.ndarray]) -> Estimates:
    """One network of all policies; every reward is asked of its sampled futures, its density ratios and its chains."""
    gamma = evaluator.gamma
    found: Estimates = {method: {} for method in ("voc", "voc_density", "mfmc")}
    for reward, values in rewards.items():
        head = evaluator.fit_reward(values)
        for method, estimator in (("voc", "sample"), ("voc_density", "density"), ("mfmc", "stitch")):
            found[method][reward] = {}
            for name in evaluator.policies:
                value = evaluator.estimate(name, estimator, values, head).value  # type: ignore[arg-type]
                # NaN: too few rows look like this policy's futures for its density
                found[method][reward][name] = None if np.isnan(value) else value * (1.0 - gamma)
    return found


def _corrected(evaluator: PolicyEvaluator, rewards: Mapping[str, np.ndarray]) -> Estimates:
    """Chains whose jumps a critic corrects, which is fitted to each reward when it is asked for; no network."""
    found: Estimates = {"voc_corrected": {}}
    for reward, values in rewards.items():
        estimates = [evaluator.estimate(name, "corrected", values) for name in evaluator.policies]
        found["voc_corrected"][reward] = {e.policy: e.value * (1.0 - e.gamma) for e in estimates}
    return found


def _successor_features(
    data: TaskData, targets: Mapping[str, Any], rewards: Mapping[str, np.ndarray], gamma: float, seed: int,
    device: torch.device,
) -> Estimates:  # fmt: skip
    """TD successor features (Barreto et al. 2017) of the frames' leading components; a reward is weights on them."""
    components = principal_components(data.tokens[1], PHI).numpy()
    arrived = data.episodes.step_type > 0
    phi = (components - components[arrived].mean(0)) / (components[arrived].std(0) + 1e-6)
    phi = np.concatenate([phi, np.ones((len(phi), 1))], 1).astype(np.float32)
    psi = _of_starts(fit(data, targets, gamma, seed, device, phi), data, gamma)  # (P, K)
    found: Estimates = {"sf_td": {}}
    for reward, values in rewards.items():
        own = phi[arrived].astype(float)
        weights = np.linalg.solve(own.T @ own + RIDGE * np.eye(own.shape[1]), own.T @ values[arrived])
        found["sf_td"][reward] = {name: float(psi[i] @ weights) for i, name in enumerate(targets)}
    return found


def _fitted(
    data: TaskData, targets: Mapping[str, Any], rewards: Mapping[str, np.ndarray], gamma: float, seed: int,
    device: torch.device,
) -> Estimates:  # fmt: skip
    """Fitted Q evaluation with an output for every reward: it has to know them all before it is trained."""
    j = _of_starts(fit(data, targets, gamma, seed, device, np.stack(list(rewards.values()), 1)), data, gamma)
    return {"fqe_all": {r: {name: float(j[i, k]) for i, name in enumerate(targets)} for k, r in enumerate(rewards)}}


def _of_starts(found: FittedQ, data: TaskData, gamma: float) -> np.ndarray:
    """(1 - gamma) V float64 (P, K), averaged over the starts."""
    return found.value[:, data.starts].mean(1) * (1.0 - gamma)


def main() -> None:
    """Entry point; prints the table."""
    tyro.cli(Rewards, description=__doc__).run()


if __name__ == "__main__":
    main()
