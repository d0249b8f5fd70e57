"""How long a planner takes to decide: one observation at a time, split into its parts, on the models of ``control``.

    python -m voc_rl.benchmarks.decision_time --out runs/control

The planners and their models are those of ``control`` at the same --scale and --out; models that are missing are
trained. Settings alternate, so that a busy moment of the machine meets them all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from voc_rl.agents.planner import VOCPlanner
from voc_rl.benchmarks.control import NEEDS, SAMPLES, SCALES, policy_of
from voc_rl.benchmarks.control_data import ControlData, control_data, make_model
from voc_rl.benchmarks.control_table import WHAT
from voc_rl.benchmarks.ope_protocol import TASKS
from voc_rl.benchmarks.results import hardware, options, results_folder, write_results
from voc_rl.benchmarks.throughput_machine import spread
from voc_rl.errors import check_choice, check_positive
from voc_rl.precision import choose_device, device_name
from voc_rl.runs import versions

# the method of control, candidates and rounds; the first of a method is what control plays with
SETTINGS = (
    ("planner", 64, 3), ("planner", 32, 2), ("planner", 16, 2), ("planner_samples", 16, 2), ("one_step_mppi", 16, 2),
)  # fmt: skip
WARM = 2  # decisions of a planner that are not counted


@dataclass(frozen=True)
class Args:
    """Milliseconds of one decision of a planner."""

    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """Whose models decide. smoke has the networks of cpu, trained for a minute: they are as fast."""
    out: Path = Path("runs/control")
    """Folder of the control benchmark."""
    task: str = "walker-walk"
    """A task of the control benchmark."""
    decisions: int = 20
    """How often each setting is timed, at another row of the data each time."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads to decide with."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are."""
    results: Path | None = None
    """Where decision_time.json and .md go; default: benchmarks/results of the working directory, of scale
    smoke --out."""


def main(args: Args) -> dict[str, Any]:
    """Time every setting; write the table."""
    check_choice(args.task, TASKS, "task")
    for count in (args.decisions, len(args.threads), *args.threads):
        check_positive(count, "number of decisions and of threads")
    device = choose_device(args.device)
    data = control_data(args.task, "mixed", args.out, SCALES[args.scale])
    planners = _planners(data, args.scale, device)
    rows = [
        {"threads": threads, "method": method, "candidates": candidates, "rounds": rounds, **spent}
        for threads in args.threads
        for (method, candidates, rounds), spent in zip(
            SETTINGS, timed(planners, data, args.decisions, threads), strict=True
        )
    ]  # fmt: skip
    found = {
        "what": f"Milliseconds of one decision of a planner on {args.task} (84 px, stack 3), one observation at a time",
        "scale": args.scale, "size": SCALES[args.scale].size, "device": device_name(device), "samples": SAMPLES,
        "decisions": args.decisions, "hardware": hardware(), "versions": versions(), "rows": rows,
        "command": f"python -m voc_rl.benchmarks.decision_time --scale {args.scale}" + options({
            "task": ((args.task,), (Args.task,)), "decisions": ((args.decisions,), (Args.decisions,)),
            "threads": (args.threads, Args.threads), "device": ((args.device,), (Args.device,)),
        }),
    }  # fmt: skip
    text = table(found)
    write_results("decision_time", found, text, results_folder(args.results, args.scale, args.out))
    print(text)
    return found


def _planners(data: ControlData, scale: str, device: torch.device) -> list[VOCPlanner]:
    """A planner per setting, on the first seed's models."""
    data.prepare()
    for model in sorted({model for method, _, _ in SETTINGS for model in NEEDS[method]}):
        make_model(data, model, 0, SCALES[scale], device)
    planners = []
    for method, candidates, rounds in SETTINGS:
        own = policy_of(method, data, 0, SCALES[scale], device)
        planners.append(VOCPlanner(own.prior, own.score, replace(own.config, candidates=candidates, rounds=rounds)))
    return planners


def timed(planners: list[VOCPlanner], data: ControlData, decisions: int, threads: int) -> list[dict[str, float]]:
    """By planner: median, lowest and highest milliseconds of a decision, and the medians of its parts."""
    torch.set_num_threads(threads)
    rows = np.random.default_rng(0).choice(len(data.episodes), WARM + decisions)
    spent: list[list[dict[str, float]]] = [[] for _ in planners]
    for row in rows:
        obs = data.episodes.observations(np.array([row]))[0]
        for planner, own in zip(planners, spent, strict=True):
            planner.seconds = dict.fromkeys(planner.seconds, 0.0)
            started = time.perf_counter()
            planner.predict(obs, deterministic=True)
            own.append({"total": time.perf_counter() - started, **planner.seconds})
    found = []
    for own in spent:
        parts = {part: [1e3 * decision[part] for decision in own[WARM:]] for part in own[0]}
        total = spread(parts.pop("total"))
        found.append({**total, **{part: float(np.median(each)) for part, each in parts.items()}})
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown, a line per setting and number of threads."""
    lines = [
        "| planner | what it is | candidates × rounds | threads | median ms | from, to | see | propose | score |",
        "|---|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| `{row['method']}` | {WHAT[row['method']]} | {row['candidates']} × {row['rounds']} | {row['threads']} "
            f"| {row['median']:.0f} | {row['lowest']:.0f}, {row['highest']:.0f} "
            f"| {row['see']:.1f} | {row['propose']:.1f} | {row['score']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m voc_rl.benchmarks.decision_time"))
