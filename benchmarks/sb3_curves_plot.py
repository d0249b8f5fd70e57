"""The picture of ``sb3_curves``: returns against environment steps and against CPU time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from voc_rl.reports.plots import save

COLOURS = {"pixels": "#555555", "pixels+shaping": "#d08020", "features": "#1f6fb4", "features+shaping": "#2a9a4a"}
POINTS = 60
WINDOW = 16  # episodes behind a point of a curve


def draw_curves(records: Sequence[Mapping[str, Any]], labels: Mapping[str, str], path: Path) -> None:
    """Mean over seeds of the mean return of the last episodes, with its standard error; one panel per axis."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, column, scale, name in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), (1e3, 60.0), ("thousand agent steps", "CPU minutes"), strict=True
    ):
        for arm, label in labels.items():
            done = [record["result"]["episodes"] for record in records if record["cell"]["arm"] == arm]
            own = [np.array(episodes) for episodes in done if episodes]
            if not own:
                continue
            grid, mean, error = curve(own, column)
            axes.plot(grid / scale, mean, color=COLOURS[arm], label=label)
            axes.fill_between(grid / scale, mean - error, mean + error, color=COLOURS[arm], alpha=0.2, linewidth=0)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)  # of both panels, once all curves are there
    figure.axes[0].set_ylabel(f"return (mean of {WINDOW} episodes), ± standard error over seeds")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=2)
    save(path, figure)


def curve(runs: list[np.ndarray], column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid, mean and standard error over runs, each rows of (steps, seconds, return); only where all runs still are."""
    first = max(run[min(WINDOW, len(run)) - 1, column] for run in runs)
    grid = np.linspace(first, max(min(run[-1, column] for run in runs), first), POINTS)
    lines = np.empty((len(runs), POINTS))
    for i, run in enumerate(runs):
        ends = np.searchsorted(run[:, column], grid, side="right")
        lines[i] = [run[max(end - WINDOW, 0) : end, 2].mean() for end in ends]
    error = lines.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.zeros(POINTS)
    return grid, lines.mean(0), error
