"""Learning curves of Stable-Baselines3's PPO from pixels, with and without a VOC.

    python -m voc_rl.benchmarks.sb3_curves --voc runs/demo

Four arms with the same settings: frames through the policy's own convolutions, or VOC features instead of frames;
each with the environment's reward, or shaped by the VOC's values. Every arm and seed gets the same CPU time. A
finished arm and seed is kept in its own file and skipped, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from voc_rl.benchmarks.cells import hold_settings
from voc_rl.benchmarks.results import hardware, hardware_of, options, results_folder, versions_of, write_results
from voc_rl.benchmarks.sb3_curves_plot import draw_curves
from voc_rl.checkpoints import read_json, write_json
from voc_rl.envs import VecVOCValue, make_env
from voc_rl.errors import check_choice, check_positive
from voc_rl.model_files import weights_mark
from voc_rl.plugin import open_voc
from voc_rl.runs import versions

# arm -> (VOC features instead of frames, rewards shaped by the VOC), and what it is
ARMS = {
    "pixels": (False, False, "PPO from frames (CnnPolicy)"),
    "pixels+shaping": (False, True, "PPO from frames, rewards shaped by VOC values"),
    "features": (True, False, "PPO from VOC features instead of frames (MlpPolicy)"),
    "features+shaping": (True, True, "PPO from VOC features, rewards shaped by VOC values"),
}
# scale -> CPU minutes of an arm and seed, and agent steps of an episode (None: the task's own)
SCALES: dict[str, tuple[float, int | None]] = {"smoke": (0.05, 20), "cpu": (7.0, None)}
ENVS = 8
PPO_SETTINGS: dict[str, Any] = {"n_steps": 256, "batch_size": 256, "n_epochs": 5, "gamma": 0.99}
LAST = 16  # episodes behind a final return


@dataclass(frozen=True)
class Args:
    """Learning curves of PPO from pixels on walker-walk, with and without VOC features and shaping."""

    voc: Path = Path("runs/demo")
    """Run folder of a VOC of the task, for example what `voc-rl demo` left."""
    scale: str = "cpu"
    """smoke (seconds) or cpu."""
    out: Path = Path("runs/sb3_curves")
    """Where finished arms and seeds are kept; those of another VOC, task or setting are refused there."""
    task: str = "walker-walk"
    """A dm_control task, the VOC's own."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms to run; the table shows all that are finished."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which seeds to run."""
    results: Path | None = None
    """Where sb3_curves.json, .md and .png go; default: benchmarks/results of the working directory, of scale
    smoke --out."""


class _Episodes(BaseCallback):
    """Keeps (environment steps, CPU seconds, raw return) of every finished episode; stops when the time is up."""

    def __init__(self, seconds: float, bar: tqdm[Any]) -> None:
        super().__init__()
        self.seconds, self.bar = seconds, bar
        self.rows: list[list[float]] = []

    def _on_training_start(self) -> None:
        self.started = time.process_time()

    def _on_step(self) -> bool:
        used = time.process_time() - self.started
        for info in self.locals["infos"]:
            if "episode" in info:  # of the Monitor, inside the shaping
                self.rows.append([self.num_timesteps, round(used, 2), float(info["episode"]["r"])])
        self.bar.update(min(used, self.seconds) - self.bar.n)
        return used < self.seconds


def run_cell(arm: str, seed: int, args: Args) -> dict[str, Any]:
    """Train one agent for its CPU time."""
    minutes, limit = SCALES[args.scale]
    env = agent_env(arm, args.task, args.voc, seed, limit)
    policy = "MlpPolicy" if ARMS[arm][0] else "CnnPolicy"
    with tqdm(
        total=60 * minutes, desc=f"{arm}, seed {seed}", unit="s", bar_format="{l_bar}{bar}| {remaining} left"
    ) as bar:
        episodes = _Episodes(60 * minutes, bar)
        model = PPO(policy, env, seed=seed, device="cpu", **PPO_SETTINGS)
        model.learn(10**9, callback=episodes)
    env.close()
    found = {"arm": arm, "seed": seed, "steps": model.num_timesteps, "episodes": episodes.rows}
    return {**found, "hardware": hardware(), "versions": versions()}


def agent_env(arm: str, task: str, voc: Path, seed: int, limit: int | None = None) -> VecEnv:
    """What the agent of an arm sees and is paid."""
    features, shaping, _ = ARMS[arm]
    # environment i is seeded with the seed plus i: far apart, so that no two seeds share starts
    env = make_vec_env(partial(make_env, task, max_episode_steps=limit), ENVS, seed=1000 * seed)
    if shaping:
        env = VecVOCValue(env, voc, mode="shaping", gamma=PPO_SETTINGS["gamma"])
    if features:
        env = VecVOCValue(env, voc, mode="observation", observe="features_only")
    return env


def summary(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: steps, and the mean return of each seed's last episodes with its standard error over seeds."""
    found = {}
    for arm in ARMS:
        own = [cell for cell in cells if cell["arm"] == arm and cell["episodes"]]
        if not own:
            continue
        last = np.array([np.mean([row[2] for row in cell["episodes"][-LAST:]]) for cell in own])
        first = np.array([np.mean([row[2] for row in cell["episodes"][:ENVS]]) for cell in own])
        found[arm] = {
            "what": ARMS[arm][2],
            "seeds": len(own),
            "steps": int(np.mean([cell["steps"] for cell in own])),
            "first_return": float(first.mean()),
            "last_return": float(last.mean()),
            "stderr": float(last.std(ddof=1) / len(last) ** 0.5) if len(last) > 1 else None,
            "last_returns": last.round(1).tolist(),
        }
    return found


def table(found: dict[str, dict[str, Any]], minutes: float) -> str:
    """The summary as Markdown."""
    lines = [
        f"| arm | what it is | agent steps in {minutes:g} CPU-min | first return | last return | seeds |",
        "|---|---|---:|---:|---:|---|",
    ]
    for arm, row in found.items():
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.0f}"
        lines.append(
            f"| `{arm}` | {row['what']} | {row['steps']:,} | {row['first_return']:.0f} "
            f"| {row['last_return']:.0f}{error} | {', '.join(f'{r:.0f}' for r in row['last_returns'])} |"
        )
    return "\n".join(lines)


def main(args: Args) -> dict[str, Any]:
    """Run what is not finished; write table and picture of all that is."""
    check_choice(args.scale, SCALES, "scale")
    for arm in args.arms:
        check_choice(arm, ARMS, "arm")
    check_positive(len(args.seeds), "number of seeds")
    voc = open_voc(args.voc)
    mark = weights_mark(voc.quantizer, voc.occupancy, voc.reward_head, voc.value_head)
    torch.set_num_threads(1)
    hold_settings(args.out / f"{args.scale}.settings.json", {
        "task": args.task, "voc": mark, "voc_gamma": voc.gamma, "ppo": {**PPO_SETTINGS, "n_envs": ENVS},
        "cpu_minutes and steps": SCALES[args.scale],
    })  # fmt: skip
    for seed in args.seeds:
        for arm in args.arms:
            path = args.out / args.scale / f"{arm}_{seed}.json"
            if path.exists():
                print(f"{arm}, seed {seed}: done already, skipped")
            else:
                write_json(path, run_cell(arm, seed, args))
    cells = [read_json(path) for path in sorted((args.out / args.scale).glob("*.json"))]
    found, minutes = summary(cells), SCALES[args.scale][0]
    results = {
        "what": f"PPO on {args.task} from pixels, with and without VOC features and shaping: raw returns of episodes",
        "scale": args.scale, "cpu_minutes": minutes, "task": args.task, "ppo": {**PPO_SETTINGS, "n_envs": ENVS},
        "voc_gamma": voc.gamma, "arms": found, "hardware": hardware_of(cells), "versions": versions_of(cells),
        "command": f"python -m voc_rl.benchmarks.sb3_curves --voc {args.voc} --scale {args.scale}"
        + options({"task": ((args.task,), (Args.task,))}),
    }  # fmt: skip
    text = table(found, minutes)
    folder = write_results("sb3_curves", results, text, results_folder(args.results, args.scale, args.out))
    draw_curves(cells, {arm: what for arm, (_, _, what) in ARMS.items()}, folder / "sb3_curves.png")
    print(text)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.sb3_curves"))
