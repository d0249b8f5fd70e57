"""Control on Walker and Cheetah from logged pixels: behaviour, clones, offline critics, planner, VOC-weighted clones.

    python -m voc_rl.benchmarks.control --scale cpu --out runs/control

Models (task, model, seed) and cells (task, mix, method, seed) are kept as they finish; the same command goes on where
it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from voc_rl.agents.action_values import ActionValues, RollOutScores
from voc_rl.agents.improvement import ImprovementConfig, policy_voc, row_weights
from voc_rl.agents.objectives import TD3BC, Cloning, advantage_weights, return_advantages, top_episodes
from voc_rl.agents.offline import OfflineAgent
from voc_rl.agents.planner import PlannerConfig, VOCPlanner
from voc_rl.benchmarks.cell_benchmark import CellBenchmark
from voc_rl.benchmarks.cells import Cell, grid, run_cells
from voc_rl.benchmarks.control_data import (
    CONV,
    FILM_STEP,
    GAMMA,
    MIXES,
    ControlData,
    ControlScale,
    Curve,
    Sampled,
    agent_config,
    clone,
    control_data,
    keep,
    kept_curve,
    load_voc,
    make_model,
    model_path,
    name_of,
    new_agent,
    played,
    voc_training,
)
from voc_rl.benchmarks.control_pictures import FILM, save_curves, save_film, save_plot, save_sheet
from voc_rl.benchmarks.control_table import results_of, table
from voc_rl.benchmarks.reward_functions import REWARDS, fallen, overturned
from voc_rl.data import going_rows
from voc_rl.errors import VOCError, check_choices
from voc_rl.pipeline import Say
from voc_rl.precision import choose_device

SCALES = {
    "smoke": ControlScale(episodes=6, steps=40, played=2, voc=10, agent=20, frames=5, conv=5, quantizer=20),
    "cpu": ControlScale(
        episodes=240, steps=500, played=10, voc=1500, agent=4000, frames=6000, conv=5000, quantizer=500
    ),
    "gpu": ControlScale(
        episodes=600, steps=500, played=20, voc=20_000, agent=50_000, frames=100_000, conv=50_000, quantizer=5000,
        size="small",
    ),
}  # fmt: skip
VOCS = {"voc": GAMMA, "one_step": 0.0}  # models that are a VOC, and their discount
IMPROVED = "voc_awr"  # a model too, made from another one, voc: several methods act by it or start from it
MODELS = ("bc", *VOCS, IMPROVED)
SAMPLES, SAMPLING = 8, PlannerConfig(candidates=16, rounds=2)  # fewer candidates where each costs samples
# Stable-Baselines3's TD3: weight of the VOC's Q in its critic, and of Q against cloning (None: no cloning)
CRITICS: dict[str, tuple[float, float | None]] = {
    "td3": (0.0, None), "voc_critic": (1.0, None), "voc_critic_alone": (math.inf, None),
    "td3_near": (0.0, 2.5), "voc_critic_near": (1.0, 2.5), "voc_critic_alone_near": (math.inf, 2.5),
}  # fmt: skip
METHODS = (
    "behaviour", "best_logged", "bc", "bc_sampled", "bc_top10", "td3bc", "mc_awr", "voc_awr", "voc_awr_v", "voc_awr_q",
    "voc_awr_2", "bc_conv", "bc_top10_conv", "td3bc_conv", "mc_awr_conv", "voc_awr_conv", "td3bc_tokens", "drqv2bc",
    "planner", "planner_awr", "planner_samples", "one_step_mppi", "zero_shot", *CRITICS,
)  # fmt: skip
NEEDS = {
    "bc": ("bc",), "bc_sampled": ("bc",), "voc_awr": ("voc", IMPROVED), "voc_awr_v": ("voc",), "voc_awr_q": ("voc",),
    "voc_awr_2": ("voc", IMPROVED), "voc_awr_conv": ("voc",), "planner": ("voc", "bc"),
    "planner_awr": ("voc", IMPROVED),
    "planner_samples": ("voc", "bc"), "one_step_mppi": ("one_step", "bc"), "zero_shot": ("voc", "bc"),
    **dict.fromkeys(CRITICS, ("voc",)),
}  # fmt: skip
THROUGH = f"_{CONV}"  # rows whose agent sees through the model of that name
VOC_WEIGHTS = {
    "voc_awr": ImprovementConfig(),
    "voc_awr_v": ImprovementConfig(trace=1.0, baseline="voc"),
    "voc_awr_q": ImprovementConfig(trace=None),
}
ZERO_SHOT = {"walker-walk": "stand", "cheetah-run": "backward"}
DOWN = {"walker-walk": fallen, "cheetah-run": overturned}  # what costs most return


@dataclass(frozen=True)
class Control(CellBenchmark):
    """Returns of policies that were learned from logged pixels."""

    name, file = "control", "cells.jsonl"
    table = staticmethod(table)

    out: Path = Path("runs/control")
    """Folder for data, models and finished cells."""
    methods: tuple[str, ...] = METHODS
    mixes: tuple[str, ...] = ("mixed",)
    """What made the data: mixed, random, medium, medium-replay, expert."""
    seeds: tuple[int, ...] = (0, 1, 2)
    curve: int = 0
    """How often an agent plays three episodes while it learns, for its curve (each takes some ten seconds)."""

    def cells(self) -> list[Cell]:
        self.check_words("tasks", "methods")
        check_choices(self.mixes, MIXES, "mix")
        if CRITICS.keys() & set(self.methods) and find_spec("stable_baselines3") is None:
            raise VOCError(
                f"Methods {', '.join(CRITICS)} need Stable-Baselines3; pip install 'voc_rl[sb3]', or leave them out."
            )
        return grid(task=self.tasks, mix=self.mixes, seed=self.seeds, method=self.methods)

    def settings(self) -> dict[str, Any]:
        scale = SCALES[self.scale]
        made: dict[str, Any] = {"agents": agent_config(scale.agent)}
        for model, gamma in VOCS.items():
            made[f"{model}_training"], made[f"{model}_networks"] = voc_training(scale, gamma)
        return {"scale": self.scale, **asdict(scale), **{name: asdict(own) for name, own in made.items()}}

    def data(self, task: str, mix: str = "mixed") -> ControlData:
        return control_data(task, mix, self.out, SCALES[self.scale])

    def shared(self) -> Iterator[ControlData]:
        for task, mix in product(self.tasks, self.mixes):
            yield self.data(task, mix)

    def prepare(self) -> None:
        super().prepare()
        self.models()

    def models(self, say: Say = print) -> list[dict[str, Any]]:
        """Train the models that the methods need and that are missing; returns the records of all."""
        if self.finished:
            return self.done("models.jsonl")
        file = self.out / "models.jsonl"
        if any(method.endswith(THROUGH) for method in self.methods):  # one for all seeds
            run_cells(grid(task=self.tasks, mix=self.mixes, model=(CONV,), seed=(0,)), self.make, file, say)
        needed = [model for model in MODELS if any(model in NEEDS.get(method, ()) for method in self.methods)]
        records = []
        for models in ([model for model in needed if model != IMPROVED], [IMPROVED] if IMPROVED in needed else []):
            cells = grid(task=self.tasks, mix=self.mixes, model=models, seed=self.seeds)
            records += run_cells(cells, self.make, file, say, self.processes)
        return records

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return results_of(records, self.scale, self.models(say=lambda line: None))

    def draw(self, path: Path, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        save_plot(path, found)
        save_curves(path.with_name("control_curves.png"), found)
        save_sheet(path.with_name("control_frames.png"), self.out / "frames")
        save_film(path.with_suffix(".gif"), self.out / "frames", list(found["tasks"]))

    def make(self, cell: Cell) -> dict[str, Any]:
        """Train a model and keep it."""
        torch.set_num_threads(1)
        data, seed = self.data(cell["task"], cell["mix"]), cell["seed"]
        curve, device = Curve(data, seed, self.curve), choose_device(self.device)
        if cell["model"] == IMPROVED:
            improve(data, seed, SCALES[self.scale], device, curve)
        else:
            make_model(data, cell["model"], seed, SCALES[self.scale], device, curve)
        return {"curve": kept_curve(model_path(data, cell["model"], seed))}

    def work(self, cell: Cell) -> dict[str, Any]:
        """The returns of a method, and what else is worth keeping."""
        torch.set_num_threads(1)
        task, method, seed, scale = cell["task"], cell["method"], cell["seed"], SCALES[self.scale]
        data, device = self.data(task, cell["mix"]), choose_device(self.device)
        if method == "behaviour":
            episodes, middle = data.episodes, int(np.argsort(data.episodes.returns)[len(data.episodes.returns) // 2])
            rows = np.arange(episodes.starts[middle] + 1, episodes.ends[middle], FILM_STEP)
            self._film(cell, episodes.frames(rows))
            down = DOWN[task](data.states)
            own = [float(down[a:b].mean()) for a, b in zip(episodes.starts, episodes.ends, strict=True)]
            return {"returns": episodes.returns.tolist(), "down": own}
        curve = Curve(data, seed, self.curve)
        policy = policy_of(method, data, seed, scale, device, curve)
        returns, frames, visited = played(task, policy, scale.played, scale.steps, seed)
        self._film(cell, np.stack(frames))
        down = DOWN[task](visited).mean(0).tolist()
        result: dict[str, Any] = {"returns": returns.tolist(), "down": down, "curve": curve.points}
        if isinstance(policy, VOCPlanner):
            each = {part: 1000 * seconds / policy.calls for part, seconds in policy.seconds.items()}
            result |= {"outside_support": policy.below_floor, "milliseconds": each, "decisions": scale.played}
        if method == "zero_shot":
            goal = REWARDS[task][ZERO_SHOT[task]]
            prior = played(task, policy.prior, scale.played, scale.steps, seed)[2]
            result |= {
                "goal": ZERO_SHOT[task], "goal_reward": goal(visited).mean(0).tolist(),
                "goal_reward_prior": goal(prior).mean(0).tolist(), "goal_reward_data": float(goal(data.states).mean()),
            }  # fmt: skip
        return result

    def _film(self, cell: Cell, frames: np.ndarray) -> None:
        """Keep frames uint8 (F, 3, H, W) of the first seed of methods that are shown."""
        if cell["seed"] == self.seeds[0] and cell["method"] in FILM:
            path = self.out / "frames" / f"{name_of(cell['task'], cell['mix'])}_{cell['method']}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, frames)


def policy_of(
    method: str, data: ControlData, seed: int, scale: ControlScale, device: torch.device, curve: Curve | None = None
) -> Any:
    """The policy of a method; models of ``MODELS`` are read. ``curve``: of the agents that are trained here."""
    common = agent_config(scale.agent, inputs="frames" if method.endswith(THROUGH) else "features")
    critic = replace(common, gamma=0.97, loop=replace(common.loop, steps=2 * scale.agent, weight_decay=0.0, clip=10.0))
    plain = method.removesuffix(THROUGH)
    if method == "best_logged":
        return data.member(MIXES[data.mix][-1])
    if method == "drqv2bc":
        slower = replace(critic.loop, steps=scale.frames, batch_size=128, learning_rate=3e-4)
        own = replace(critic, inputs="frames", loop=slower)
        agent = new_agent(data, own, seed, device, method)
        return agent.learn(data.episodes, TD3BC, log=curve.of(agent) if curve else None, progress=True)
    if method == "td3bc_tokens":
        return clone(data, replace(critic, inputs="tokens"), seed, device, TD3BC, method, curve)
    if plain == "td3bc":
        return clone(data, critic, seed, device, TD3BC, method, curve)
    if plain in ("bc_top10", "mc_awr", "voc_awr_v", "voc_awr_q") or method in ("bc_conv", "voc_awr_conv"):
        objective = partial(Cloning, weights=_weights(plain, data, seed, device))
        return clone(data, common, seed, device, objective, method, curve)
    if method in CRITICS:
        from voc_rl.benchmarks.control_sb3 import offline_td3  # the other rows do without Stable-Baselines3

        return offline_td3(data, *CRITICS[method], seed, scale.agent, str(device))
    if IMPROVED in NEEDS.get(method, ()):
        return _improved(method, data, seed, scale, device, curve)
    prior = OfflineAgent.load(model_path(data, "bc", seed))
    prior.networks.to(device)
    if method in ("bc", "bc_sampled"):
        return Sampled(prior) if method == "bc_sampled" else prior
    if method == "one_step_mppi":
        scores = RollOutScores(load_voc(data, "one_step", seed, device), GAMMA, SAMPLES)
        return VOCPlanner(prior, scores, SAMPLING, seed)
    voc = load_voc(data, "voc", seed, device)
    if method == "planner":
        return VOCPlanner(prior, ActionValues(voc, caution=1.0), PlannerConfig(), seed)
    if method == "zero_shot":
        goal = REWARDS[data.task][ZERO_SHOT[data.task]]
        voc = voc.fit_reward(data.episodes, lambda episodes: goal(data.states), tokens=data.tokens, seed=seed)
    return VOCPlanner(prior, ActionValues(voc, "sample", SAMPLES), SAMPLING, seed)


def _weights(method: str, data: ControlData, seed: int, device: torch.device) -> np.ndarray | None:
    """Weights (N,) of the rows in a clone; None: all alike."""
    if method == "bc":
        return None
    if method == "bc_top10":
        return top_episodes(data.episodes)
    if method in VOC_WEIGHTS:
        return row_weights(load_voc(data, "voc", seed, device), data.episodes, data.tokens, VOC_WEIGHTS[method])
    advantages = return_advantages(data.episodes, data.tokens[1], GAMMA)
    return advantage_weights(advantages, going_rows(data.episodes), ImprovementConfig.temperature)


def improve(data: ControlData, seed: int, scale: ControlScale, device: torch.device, curve: Curve | None) -> None:
    """Train the clone weighted by the advantages of the model ``voc``, and keep it; one that is there already stays."""
    path = model_path(data, IMPROVED, seed)
    if not path.exists():
        objective = partial(Cloning, weights=_weights(IMPROVED, data, seed, device))
        keep(clone(data, agent_config(scale.agent), seed, device, objective, IMPROVED, curve), path, curve)


def _improved(
    method: str, data: ControlData, seed: int, scale: ControlScale, device: torch.device, curve: Curve | None
) -> Any:
    """The clone weighted by VOC advantages, a planner around it, or one round more: evaluate it, weight anew, clone."""
    common, voc = agent_config(scale.agent), load_voc(data, "voc", seed, device)
    agent = OfflineAgent.load(model_path(data, IMPROVED, seed))
    agent.networks.to(device)
    if method == IMPROVED:
        return agent
    if method == "planner_awr":
        return VOCPlanner(agent, ActionValues(voc, caution=1.0), PlannerConfig(), seed)
    training, networks = voc_training(scale, GAMMA)
    config = ImprovementConfig(agent=common, training=training, voc=replace(networks, seed=seed))
    voc = policy_voc(agent, data.episodes, data.tokens, voc, config, seed)
    objective = partial(Cloning, weights=row_weights(voc, data.episodes, data.tokens, VOC_WEIGHTS["voc_awr_q"]))
    return clone(data, common, seed, device, objective, method, curve)


def main() -> None:
    """Entry point; prints the table."""
    tyro.cli(Control, description=__doc__).run()


if __name__ == "__main__":
    main()
