"""Numbers, table and pictures of the control benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.benchmarks.results import hardware
from voc_rl.checkpoints import atomic_path
from voc_rl.runs import versions
from voc_rl.values.statistics import student_interval

LEVEL = 0.9
WHAT = {
    "behaviour": "what made the data",
    "best_logged": "the best checkpoint of the data, acting as it was logged (of the true state)",
    "bc": "behaviour cloning, mean action",
    "bc_sampled": "behaviour cloning, sampled action",
    "bc_top10": "cloning of the best tenth of the episodes",
    "td3bc": "TD3+BC on features",
    "td3bc_tokens": "TD3+BC on token vectors",
    "drqv2bc": "DrQ-v2+BC from frames",
    "mc_awr": "clone weighted by logged returns less a linear value of the features, no VOC; else as voc_awr",
    "voc_awr": "clone weighted by VOC advantages",
    "voc_awr_2": "the same once more, on a VOC of that clone",
    "planner": "planner, Q by the head",
    "planner_awr": "planner around the weighted clone, Q by the head",
    "planner_samples": "planner, Q by samples",
    "one_step_mppi": "MPPI on a one-step model, as many tokens as planner_samples",
    "zero_shot": "planner for another goal (its return is of the data's reward)",
}


def interval_of(returns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and interval of returns by seed and episode: over the seeds where there are several, else over episodes."""
    means = np.array([np.mean(own) for own in returns])
    parts = means if len(means) > 1 else np.asarray(returns[0], float)
    stderr = parts.std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else 0.0
    low, high = student_interval(np.asarray(parts.mean()), np.asarray(stderr), max(len(parts), 2), LEVEL)
    return {
        "mean": float(means.mean()), "low": float(low), "high": float(high),
        "seeds": len(returns), "episodes": int(sum(map(len, returns))), "seed_means": means.round(1).tolist(),
    }  # fmt: skip


def results_of(records: Sequence[Mapping[str, Any]], scale: str) -> dict[str, Any]:
    """What is committed."""
    tasks: dict[str, Any] = {}
    for record in records:
        cell, result = record["cell"], record["result"]
        methods = tasks.setdefault(cell["task"], {}).setdefault("methods", {})
        methods.setdefault(cell["method"], []).append(result)
    for task in tasks.values():
        for name, found in task["methods"].items():
            # the data are the same for all seeds
            returns = [r["returns"] for r in found[: 1 if name == "behaviour" else None]]
            own = interval_of(returns)
            for key in ("outside_support", "goal_reward_data"):
                if key in found[0]:
                    own[key] = float(np.mean([r[key] for r in found]))
            if "milliseconds" in found[0]:
                parts = found[0]["milliseconds"]
                own["milliseconds"] = {
                    p: round(float(np.mean([r["milliseconds"][p] for r in found])), 2) for p in parts
                }
                own["decisions_at_once"] = found[0]["decisions"]
            if "goal" in found[0]:
                own["goal"] = found[0]["goal"]
                own["goal_reward"] = interval_of([r["goal_reward"] for r in found])
            task["methods"][name] = own
    return {
        "what": "Returns of policies learned from logged pixels; 90 % intervals of the mean, over seeds where there "
        "are several",
        "scale": scale, "tasks": tasks,
        "hardware": ", ".join(sorted({str(record.get("hardware", hardware())) for record in records})),
        "versions": versions(), "command": f"python -m voc_rl.benchmarks.control --scale {scale}",
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for name, task in found["tasks"].items():
        head = "| method | what it is | return | 90 % interval | seeds | outside support | ms per decision |"
        lines += [f"**{name}**", "", head, "|---|---|---:|---|---|---:|---|"]
        for method, own in task["methods"].items():
            outside = f"{own['outside_support']:.0%}" if "outside_support" in own else ""
            spent = own.get("milliseconds", {})
            split = ", ".join(f"{part} {value:.0f}" for part, value in spent.items())
            if split:
                split += f" ({own['decisions_at_once']} at once)"
            seeds = ", ".join(f"{mean:.0f}" for mean in own["seed_means"])
            lines.append(
                f"| `{method}` | {WHAT[method]} | {own['mean']:.0f} | {own['low']:.0f} to {own['high']:.0f} | {seeds} "
                f"| {outside} | {split} |"
            )
        for method, own in task["methods"].items():
            if "goal" in own:
                goal = own["goal_reward"]
                got = f"{goal['mean']:.3f} ({goal['low']:.3f} to {goal['high']:.3f})"
                said = f"`{method}`, goal {own['goal']}: mean reward of the goal {got}"
                lines += ["", f"{said}; in the data {own['goal_reward_data']:.3f}."]
        lines.append("")
    return "\n".join(lines).rstrip()


def save_plot(path: Path, found: Mapping[str, Any]) -> None:
    """Returns by method with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = found["tasks"]
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4.5), squeeze=False)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        methods = list(task["methods"])
        means = np.array([task["methods"][m]["mean"] for m in methods])
        low, high = (np.array([task["methods"][m][end] for m in methods]) for end in ("low", "high"))
        colours = ["tab:orange" if m.startswith(("voc", "planner")) else "tab:gray" for m in methods]
        errors = np.maximum([means - low, high - means], 0)
        axis.barh(methods, means, xerr=errors, color=colours)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(name)
        axis.set_xlabel("return of an episode")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    plt.close(figure)


def save_sheet(path: Path, folder: Path) -> None:
    """Frames of the first episode of some methods, one row each; nothing where none were kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = sorted(folder.glob("*.npy"))
    if not files:
        return
    rows = [np.load(file, allow_pickle=False) for file in files]
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 1.25 * len(rows)), squeeze=False)
    for axis, file, frames in zip(axes[:, 0], files, rows, strict=True):
        axis.imshow(np.concatenate(list(frames.transpose(0, 2, 3, 1)), 1))
        axis.set_title(file.stem.replace("_", ", ", 1), fontsize=7, loc="left", pad=2)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)
