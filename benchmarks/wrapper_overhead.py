"""What the value wrappers cost per step: on one thread, alternating with the same environment without them.

python -m voc_rl.benchmarks.wrapper_overhead --voc runs/demo
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import SyncVectorEnv

from voc_rl.benchmarks.results import hardware, options, write_results
from voc_rl.envs import VOCValueVectorWrapper, VOCValueWrapper, make_env
from voc_rl.errors import check_positive
from voc_rl.plugin import open_voc
from voc_rl.runs import versions

WRAPPERS: dict[str, dict[str, Any]] = {
    "info": {},
    "observation: value": {"mode": "observation"},
    "observation: features": {"mode": "observation", "observe": "features"},
    "observation: features instead of pixels": {"mode": "observation", "observe": "features_only"},
    "shaping": {"mode": "shaping", "gamma": 0.99},
    "info, 100 samples instead of the head": {"estimator": "sample"},
    "info, with 4 futures": {"futures": 4},
    "info, with successor features of 100 futures": {"successor_features": True},
}
VECTORS = (1, 4, 16)
COLUMNS = ("wrapper", "environments", "median", "lowest", "highest")
BLOCK = 20  # steps between two alternations


@dataclass(frozen=True)
class Args:
    """Milliseconds per step that the value wrappers add, on one thread."""

    voc: Path = Path("runs/demo")
    """Run folder of a VOC."""
    task: str = "walker-walk"
    """A dm_control task, the VOC's own."""
    blocks: int = 20
    """How often each setting is timed, for 20 steps each."""
    results: Path | None = None
    """Where wrapper_overhead.json and .md go; default: benchmarks/results of the working directory."""


def added_milliseconds(plain: Callable[[], Any], wrapped: Callable[[], Any], blocks: int) -> tuple[float, float, float]:
    """Median, lowest and highest extra milliseconds of a step over blocks that alternate with the plain one."""
    extra = []
    for _ in range(blocks):
        seconds = []
        for step in (plain, wrapped):
            start = time.perf_counter()
            for _ in range(BLOCK):
                step()
            seconds.append(time.perf_counter() - start)
        extra.append((seconds[1] - seconds[0]) / BLOCK * 1e3)
    return float(np.median(extra)), float(min(extra)), float(max(extra))


def stepper(env: Any, actions: Any) -> Callable[[], Any]:
    """Takes one step; starts anew when the time limit has come."""
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(actions)
        if not isinstance(env, gym.vector.VectorEnv) and (terminated or truncated):
            env.reset()

    return step


def main(args: Args) -> dict[str, Any]:
    """Time every wrapper; write the table."""
    check_positive(args.blocks, "blocks")
    torch.set_num_threads(1)
    voc = open_voc(args.voc)

    def made() -> gym.Env[Any, Any]:
        return make_env(args.task)

    plain = made()
    action = np.zeros(plain.action_space.shape or (), np.float32)
    rows = []
    for name, settings in WRAPPERS.items():
        wrapped = VOCValueWrapper(made(), voc, **settings)
        rows.append((name, 1, *added_milliseconds(stepper(plain, action), stepper(wrapped, action), args.blocks)))
        wrapped.close()
    for n in VECTORS:
        envs: Any = SyncVectorEnv([made] * n)
        wrapped_envs = VOCValueVectorWrapper(SyncVectorEnv([made] * n), voc)
        actions = np.repeat(action[None], n, 0)
        timed = added_milliseconds(stepper(envs, actions), stepper(wrapped_envs, actions), args.blocks)
        rows.append(("info, vector", n, *timed))
        envs.close()
        wrapped_envs.close()
    plain.close()
    text = "\n".join(
        ["| wrapper | environments | added ms a step, median | lowest | highest |", "|---|---:|---:|---:|---:|"]
        + [f"| {name} | {n} | {median:.1f} | {low:.1f} | {high:.1f} |" for name, n, median, low, high in rows]
    )
    network = voc.occupancy.config
    results = {
        "what": f"Milliseconds that the value wrappers add to a step of {args.task} (84 px, stack 3), on one thread",
        "scale": f"{network.n_layer} layers of width {network.width}, {network.n_tokens} codes",
        "command": "python -m voc_rl.benchmarks.wrapper_overhead" + options({
            "voc": ((args.voc,), (Args.voc,)), "task": ((args.task,), (Args.task,)),
            "blocks": ((args.blocks,), (Args.blocks,)),
        }),
        "hardware": hardware(), "versions": versions(),
        "rows": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
    }  # fmt: skip
    write_results("wrapper_overhead", results, text, args.results)
    print(text)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.wrapper_overhead"))
