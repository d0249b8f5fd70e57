"""The report of a run: one HTML file that a person can open anywhere.

The file holds everything it shows: styles inline, pictures as data, no scripts. Each picture is there twice,
for light and for dark displays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voc_rl.errors import VOCError
from voc_rl.reports.page import (
    facts,
    figure,
    headline,
    in_both_themes,
    score_table,
    standing_table,
    write_page,
)
from voc_rl.reports.plots import Interval, Theme, plot_scatter
from voc_rl.reports.plots_frames import Band, plot_episode, plot_futures, plot_reconstructions
from voc_rl.reports.plots_training import plot_codebook, plot_cost, plot_curves
from voc_rl.reports.table import as_number, percent
from voc_rl.reports.text import captions, how_to_read


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. What is empty is left out, with a word in its place.

    Attributes:
        metrics: the content of ``metrics.json``: task, gamma, methods, seconds, peak_memory_bytes, ...
        truth: (M,) true discounted returns of held-out states.
        predictions: method -> (M,) predicted values of the same states.
        intervals: method -> (low, high), each (M,).
        covers: method -> what its interval covers, in words.
        episode_frames: (T, 3, H, W) uint8 frames of one held-out episode.
        episode_truth: (T,) true discounted returns, NaN where too few steps are left to know them.
        episode_values: method -> (mean, low, high), each (T,).
        gammas: discounts of the futures, one to three.
        context_frames: (R, 3, H, W) newest frames of R contexts.
        real_futures: (R, len(gammas), S, 3, H, W) logged frames at geometric times after the contexts.
        sampled_futures: decoded samples of the model, the same shape.
        originals: (P, 3, H, W) frames.
        reconstructions: (P, 3, H, W) what their codes decode to.
        code_counts: (n_tokens, codebook_size) how often each code occurs.
        curves: rows of ``metrics.jsonl``: {"stage": name, "step": int, name: value, ...}.
    """

    metrics: dict[str, Any]
    truth: NDArray[Any]
    predictions: dict[str, NDArray[Any]]
    intervals: dict[str, Interval]
    covers: dict[str, str]
    episode_frames: NDArray[Any]
    episode_truth: NDArray[Any]
    episode_values: dict[str, Band]
    gammas: tuple[float, ...]
    context_frames: NDArray[Any]
    real_futures: NDArray[Any]
    sampled_futures: NDArray[Any]
    originals: NDArray[Any]
    reconstructions: NDArray[Any]
    code_counts: NDArray[Any]
    curves: list[dict[str, Any]]

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        for name, values in self.predictions.items():
            _same_length(f"predictions of {name}", len(values), "truth", len(self.truth))
        for name, bounds in self.intervals.items():
            for bound in bounds:
                _same_length(f"interval of {name}", len(bound), "truth", len(self.truth))
        for name, band in self.episode_values.items():
            for values in band:
                _same_length(f"episode_values of {name}", len(values), "episode_truth", len(self.episode_truth))
        if self.real_futures.shape != self.sampled_futures.shape:
            raise VOCError(
                f"real_futures has shape {self.real_futures.shape} and sampled_futures "
                f"{self.sampled_futures.shape}; they must be equal."
            )
        if self.real_futures.size and self.real_futures.shape[:2] != (
            len(self.context_frames),
            len(self.gammas),
        ):
            raise VOCError(
                f"real_futures has shape {self.real_futures.shape}; {len(self.context_frames)} contexts and "
                f"{len(self.gammas)} discounts are needed in front."
            )


def _same_length(what: str, found: int, other: str, needed: int) -> None:
    if found != needed:
        raise VOCError(f"{what} has {found} entries; {other} has {needed}, and they must be equal.")


def _scatter(data: ReportData, theme: Theme) -> Figure | None:
    if not (len(data.truth) and data.predictions):
        return None
    methods = data.metrics.get("methods") or {}
    numbers = {name: as_number((methods.get(name) or {}).get("nrmse")) for name in data.predictions}
    notes = {name: f"NRMSE {percent(value)}" for name, value in numbers.items() if np.isfinite(value)}
    return plot_scatter(data.truth, data.predictions, data.intervals, theme, notes)


def _episode(data: ReportData, theme: Theme) -> Figure | None:
    if not (len(data.episode_frames) and data.episode_values):
        return None
    return plot_episode(data.episode_frames, data.episode_truth, data.episode_values, theme)


def _futures(data: ReportData, theme: Theme) -> Figure | None:
    if not data.real_futures.size:
        return None
    return plot_futures(data.context_frames, data.real_futures, data.sampled_futures, data.gammas, theme)


def _reconstructions(data: ReportData, theme: Theme) -> Figure | None:
    if not (len(data.originals) and len(data.reconstructions)):
        return None
    return plot_reconstructions(data.originals, data.reconstructions, theme)


def _codebook(data: ReportData, theme: Theme) -> Figure | None:
    return plot_codebook(data.code_counts, theme) if data.code_counts.size else None


def _curves(data: ReportData, theme: Theme) -> Figure | None:
    return plot_curves(data.curves, theme)


def _cost(data: ReportData, theme: Theme) -> Figure | None:
    return plot_cost(data.metrics.get("seconds") or {}, data.metrics.get("stage_peak_memory_bytes") or {}, theme)


FIGURES: dict[str, Callable[[ReportData, Theme], Figure | None]] = {
    "scatter": _scatter,
    "episode": _episode,
    "futures": _futures,
    "reconstructions": _reconstructions,
    "codebook": _codebook,
    "curves": _curves,
    "cost": _cost,
}


def write_report(path: Path, data: ReportData) -> dict[str, bytes]:
    """Write the report as one HTML file, in one step.

    Returns:
        name in ``FIGURES`` -> the figure as a PNG for light displays, of less than 300 kB; those alone that were drawn.
    """
    task, gamma = str(data.metrics.get("task", "unknown task")), as_number(data.metrics.get("gamma"))
    discount = f" · discount γ = {gamma:g}" if np.isfinite(gamma) else ""
    title = f"What are the states of {task} worth?"
    pictures = {name: in_both_themes(partial(draw, data)) for name, draw in FIGURES.items()}
    write_page(path, f"voc_rl report{discount}", title, headline(data.metrics), _sections(data, pictures))
    return {name: both[0] for name, both in pictures.items() if both}


def _sections(data: ReportData, pictures: Mapping[str, tuple[bytes, bytes] | None]) -> dict[str, str]:
    """Title -> HTML of each section, from top to bottom."""
    words = captions(data.metrics, data.truth, data.intervals, data.covers)
    shown = {name: figure(both, **words[name]) for name, both in pictures.items()}
    return {
        "Scores": score_table(data.metrics) + standing_table(data.metrics),
        "Predicted and true values": shown["scatter"],
        "Along an episode": shown["episode"],
        "Futures": shown["futures"],
        "Frames as codes": shown["reconstructions"] + "<br>" + shown["codebook"],
        "Training": shown["curves"],
        "Time and memory": shown["cost"],
        "How to read the numbers": how_to_read(data.metrics),
        "Settings and versions": facts(data.metrics),
    }
