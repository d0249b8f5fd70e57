"""Learning curves of Stable-Baselines3's PPO from pixels, with and without a VOC.

    python -m voc_rl.benchmarks.sb3_curves --voc runs/demo

Four arms with the same settings: frames through the policy's own convolutions, or VOC features instead of frames;
each with the environment's reward, or shaped by the VOC's values. Every arm and seed gets the same CPU time. A
finished arm and seed is kept and skipped, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro

from voc_rl.benchmarks.cells import Cell, describe, finished, grid, hold_settings, run_cells
from voc_rl.benchmarks.results import hardware_of, options, results_folder, versions_of, write_results
from voc_rl.benchmarks.sb3_curves_plot import draw_curves
from voc_rl.envs import make_env
from voc_rl.errors import VOCError, check_choice, check_positive
from voc_rl.model_files import weights_mark
from voc_rl.plugin import open_voc
from voc_rl.progress import progress_bar

if TYPE_CHECKING:  # which not every installation has
    from stable_baselines3.common.vec_env import VecEnv

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
    """Where finished arms and seeds are kept; those of another VOC, task, scale or setting are refused there."""
    task: str = "walker-walk"
    """A dm_control task, the VOC's own."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms to run; the table shows all that are finished."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which seeds to run."""
    results: Path | None = None
    """Where sb3_curves.json, .md and .png go; default: benchmarks/results of the working directory, of scale
    smoke --out."""


def train_agent(cell: Cell, args: Args) -> dict[str, Any]:
    """Train the agent of an arm and seed for its CPU time: its steps, and [steps, CPU seconds, raw return] of every
    episode."""
    from stable_baselines3 import PPO

    minutes, limit = SCALES[args.scale]
    env = agent_env(cell["arm"], args.task, args.voc, cell["seed"], limit)
    model = PPO(
        "MlpPolicy" if ARMS[cell["arm"]][0] else "CnnPolicy", env, seed=cell["seed"], device="cpu", **PPO_SETTINGS
    )
    episodes: list[list[float]] = []
    with progress_bar(desc=describe(cell), unit="s", total=round(60 * minutes)) as bar:
        started = time.process_time()

        def in_time(found: dict[str, Any], _: dict[str, Any]) -> bool:
            """After every step: keep the episodes that ended; whether there is time left."""
            used = time.process_time() - started
            for info in found["infos"]:
                if "episode" in info:  # of the Monitor, inside the shaping
                    episodes.append([model.num_timesteps, round(used, 2), float(info["episode"]["r"])])
            bar.update(int(used) - bar.n)
            return used < 60 * minutes

        model.learn(10**9, callback=in_time)
    env.close()
    return {"steps": model.num_timesteps, "episodes": episodes}


def agent_env(arm: str, task: str, voc: Path, seed: int, limit: int | None = None) -> VecEnv:
    """What the agent of an arm sees and is paid."""
    from stable_baselines3.common.env_util import make_vec_env

    from voc_rl.envs import VecVOCValue

    features, shaping, _ = ARMS[arm]
    # environment i is seeded with the seed plus i: far apart, so that no two seeds share starts
    env = make_vec_env(partial(make_env, task, max_episode_steps=limit), ENVS, seed=1000 * seed)
    if shaping:
        env = VecVOCValue(env, voc, mode="shaping", gamma=PPO_SETTINGS["gamma"])
    if features:
        env = VecVOCValue(env, voc, mode="observation", observe="features_only")
    return env


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: steps, and the mean return of each seed's last episodes with its standard error over seeds."""
    found = {}
    for arm in ARMS:
        own = [r["result"] for r in records if r["cell"]["arm"] == arm and r["result"]["episodes"]]
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
    if find_spec("stable_baselines3") is None:
        raise VOCError("The agents need Stable-Baselines3; pip install 'voc_rl[sb3]'.")
    check_choice(args.scale, SCALES, "scale")
    for arm in args.arms:
        check_choice(arm, ARMS, "arm")
    check_positive(len(args.seeds), "number of seeds")
    voc = open_voc(args.voc)
    mark = weights_mark(voc.quantizer, voc.occupancy, voc.reward_head, voc.value_head)
    torch.set_num_threads(1)
    minutes, limit = SCALES[args.scale]
    hold_settings(args.out / "settings.json", {
        "scale": args.scale, "task": args.task, "voc": mark, "voc_gamma": voc.gamma,
        "ppo": {**PPO_SETTINGS, "n_envs": ENVS}, "cpu_minutes": minutes, "max_episode_steps": limit,
    })  # fmt: skip
    path = args.out / "cells.jsonl"
    run_cells(grid(seed=args.seeds, arm=args.arms), partial(train_agent, args=args), path)
    records = sorted(finished(path), key=lambda record: record["cell"]["seed"])
    found = summary(records)
    results = {
        "what": f"PPO on {args.task} from pixels, with and without VOC features and shaping: raw returns of episodes",
        "scale": args.scale, "cpu_minutes": minutes, "task": args.task, "ppo": {**PPO_SETTINGS, "n_envs": ENVS},
        "voc_gamma": voc.gamma, "arms": found, "hardware": hardware_of(records), "versions": versions_of(records),
        "command": f"python -m voc_rl.benchmarks.sb3_curves --voc {args.voc} --scale {args.scale}"
        + options({"task": ((args.task,), (Args.task,))}),
    }  # fmt: skip
    text = table(found, minutes)
    folder = write_results("sb3_curves", results, text, results_folder(args.results, args.scale, args.out))
    draw_curves(records, {arm: what for arm, (_, _, what) in ARMS.items()}, folder / "sb3_curves.png")
    print(text)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.sb3_curves"))
