"""Scores, table and picture of the data-efficiency benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.benchmarks.ope_scores import policy_scores
from voc_rl.benchmarks.ope_table import WHAT
from voc_rl.benchmarks.results import hardware_of, versions_of
from voc_rl.reports.plots import LIGHT, legend, new_figure, save, style

SCORES = ("mae", "bias", "spearman", "spearman_top_half", "regret@1", "coverage90")
ORDER = ("voc", "voc_head", "voc_corrected", "mfmc", "fqe", "dr", "wis")
COLOURS = ("#1f6fb4", "#5aa7e0", "#7a4fb5", "#2a9a4a", "#d08020", "#a05030", "#999999")


def results_of(
    records: Sequence[Mapping[str, Any]], truth: Mapping[str, Mapping[str, float]], scale: str, gamma: float, count: int
) -> dict[str, Any]:
    """What data_efficiency.json holds: by task and method, scores at every share, averaged over seeds."""
    tasks: dict[str, Any] = {}
    for task, true in truth.items():
        values = np.array(list(true.values()))
        scored: dict[str, dict[float, list[dict[str, float]]]] = {}
        for record in (record for record in records if record["cell"]["task"] == task):
            for method, estimates in record["result"]["estimates"].items():
                mean, low, high = ({name: e[i] for name, e in estimates.items()} for i in range(3))
                rng = np.random.default_rng([record["cell"]["seed"], 53])
                scores = policy_scores(mean, true, low, high, rng)
                scored.setdefault(method, {}).setdefault(record["cell"]["share"], []).append(scores)
        tasks[task] = {
            "gamma": gamma, "policies": len(true), "range": float(np.ptp(values)),
            "constant_mae": float(np.abs(values - np.median(values)).mean()),
            "methods": {
                method: [
                    {
                        "share": share, "episodes": max(round(share * count), 1), "seeds": len(seeds),
                        **{key: float(np.mean([s[key] for s in seeds])) for key in SCORES},
                    }
                    for share, seeds in sorted(by_share.items())
                ]
                for method, by_share in scored.items()
            },
        }  # fmt: skip
    return {
        "what": "Errors of policy values against the number of logged episodes, J = (1 - gamma) V / r_max",
        "scale": scale, "tasks": tasks, "hardware": hardware_of(records), "versions": versions_of(records),
        "command": f"python -m voc_rl.benchmarks.data_efficiency --scale {scale}",
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a table per task; MAE (Spearman, coverage) by method and number of episodes."""
    lines = []
    for task, entry in found["tasks"].items():
        episodes = sorted({row["episodes"] for rows in entry["methods"].values() for row in rows})
        lines.append(
            f"**{task}**, γ = {entry['gamma']:g}, {entry['policies']} policies, true J over a range of "
            f"{entry['range']:.3f}; MAE of J (Spearman, covered by 90 % intervals); the best constant has "
            f"{entry['constant_mae']:.3f}\n"
        )
        lines.append(f"| method | what it is | {' | '.join(f'{count} episodes' for count in episodes)} |")
        lines.append(f"|---|---|{'---:|' * len(episodes)}")
        for method in [name for name in ORDER if name in entry["methods"]]:
            rows = {row["episodes"]: row for row in entry["methods"][method]}
            cells = [_cell(rows[count]) if count in rows else "–" for count in episodes]
            lines.append(f"| `{method}` | {WHAT[method]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['mae']:.3f} ({row['spearman']:.2f}, {row['coverage90']:.0%})"


def save_plot(path: Path, found: Mapping[str, Any]) -> None:
    """MAE against episodes, a panel per task, both axes logarithmic."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = new_figure(4.2, LIGHT)
    panels = figure.subplots(1, len(found["tasks"]), squeeze=False)[0]
    for axes, (task, entry) in zip(panels, found["tasks"].items(), strict=True):
        style(axes, LIGHT)
        for method, colour in zip(ORDER, COLOURS, strict=True):
            rows = entry["methods"].get(method, [])
            if rows:
                points = [(row["episodes"], row["mae"]) for row in rows]
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=method)
        axes.axhline(entry["constant_mae"], color=LIGHT.muted, linestyle=(0, (1, 2)), label="best constant")
        axes.set_xscale("log")
        axes.set_yscale("log")
        counts = sorted({row["episodes"] for rows in entry["methods"].values() for row in rows})
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # errors often lie within one decade
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel("episodes")
        axes.set_title(task, color=LIGHT.text, fontsize=11, fontweight="bold", loc="left")
    panels[0].set_ylabel("MAE of J")
    legend(figure, panels[0].lines, LIGHT, loc="outside upper left")
    save(path, figure)
