"""Plots made of frames: an episode below its values, real and sampled futures, reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from voc_rl.reports.plots import WIDTH, Theme, legend, new_figure, style, value_range
from voc_rl.reports.table import method, ordered

Band = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # mean, low, high

MAX_CONTEXTS = 4
MAX_SAMPLES = 5
MAX_RECONSTRUCTIONS = 10
PICTURES = 12  # frames below an episode


def to_hwc(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """A (C, H, W) frame as (H, W, 3); of a stack the newest frame, of a grey one three equal channels."""
    frame = np.asarray(frame)
    newest = frame[-3:] if len(frame) >= 3 else np.repeat(frame[-1:], 3, axis=0)
    return np.ascontiguousarray(newest.transpose(1, 2, 0)).astype(np.uint8)


def psnr(original: NDArray[Any], reconstruction: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in decibels; infinite where they are equal."""
    error = float(np.mean((original.astype(np.float64) - reconstruction.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _sheet(height: float, theme: Theme) -> tuple[Figure, Axes]:
    """A figure with one invisible pair of axes in inches, the origin at the top left."""
    figure = new_figure(height, theme)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _squared(picture: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) in the middle of a square."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), background)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _paste(
    axes: Axes, frames: Iterable[NDArray[Any]], x: float, y: float, size: float, gap: float, theme: Theme
) -> None:
    """Draw frames side by side, each ``size`` wide and ``gap`` apart, the first with its corner at (x, y).

    They are joined into one picture before it is drawn: far quicker than one by one.
    """
    background = np.array([int(theme.background[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    pictures = [_squared(to_hwc(frame), background) for frame in frames]
    height, width = pictures[0].shape[:2]
    seam = np.full((height, max(1, round(width * gap / size)), 3), background)
    strip = np.concatenate([part for picture in pictures for part in (picture, seam)][:-1], axis=1)
    right = x + len(pictures) * (size + gap) - gap
    axes.imshow(strip, extent=(x, right, y + size, y), aspect="auto", interpolation="lanczos")


def plot_futures(
    contexts: NDArray[Any],
    real: NDArray[Any],
    sampled: NDArray[Any],
    gammas: Sequence[float],
    theme: Theme,
) -> Figure:
    """Logged frames at geometric times beside decoded samples: a block per context, a row per discount.

    Args:
        contexts: (R, 3, H, W), what the model saw.
        real: (R, len(gammas), S, 3, H, W), frames that came later in the same episode.
        sampled: the same shape, what the model draws.
        gammas: the discounts of the rows of a block.
        theme: the colours.
    """
    rows, lines = min(len(contexts), MAX_CONTEXTS), len(gammas)
    samples = min(real.shape[2], sampled.shape[2], MAX_SAMPLES)
    label, gap, thin, top = 0.92, 0.24, 0.03, 0.52
    context = 1.25 if lines > 1 else 0.75
    cell = (WIDTH - context - label - gap) / (2 * samples) - thin
    line = cell + 0.05
    block = max(lines * line, context + 0.05) + 0.22
    figure, axes = _sheet(top + rows * block - 0.25, theme)
    start = {"real": context + label}
    start["sampled"] = start["real"] + samples * (cell + thin) + gap
    _heading(axes, 0, "now", "what the model sees", theme)
    _heading(axes, start["real"], "real futures", "frames logged later in the episode", theme)
    _heading(axes, start["sampled"], "sampled futures", "drawn by the model, decoded", theme)
    for r in range(rows):
        y = top + r * block
        if r:
            axes.plot([0, WIDTH], [y - 0.135] * 2, color=theme.grid, linewidth=1)
        _paste(axes, contexts[r : r + 1], 0, y, context, thin, theme)
        for g, gamma in enumerate(gammas):
            middle = y + g * line + cell / 2
            right = start["real"] - 0.14
            axes.text(right, middle - 0.02, f"γ = {gamma:g}", color=theme.text, fontsize=10, ha="right", va="bottom")
            ahead = f"~{1 / (1 - gamma):.0f} steps" if gamma < 1 else ""
            axes.text(right, middle + 0.04, ahead, color=theme.muted, fontsize=8.5, ha="right", va="top")
            for name, frames in (("real", real), ("sampled", sampled)):
                _paste(axes, frames[r, g, :samples], start[name], y + g * line, cell, thin, theme)
    axes.set(xlim=(0, WIDTH), ylim=(figure.get_figheight(), 0))
    return figure


def _heading(axes: Axes, x: float, title: str, note: str, theme: Theme) -> None:
    axes.text(x, 0.2, title, color=theme.text, fontsize=11, fontweight="bold", va="baseline")
    axes.text(x, 0.4, note, color=theme.muted, fontsize=8.5, va="baseline")


def plot_reconstructions(originals: NDArray[Any], reconstructions: NDArray[Any], theme: Theme) -> Figure:
    """Original frames above what their codes decode to, with the PSNR of each pair."""
    count = min(len(originals), len(reconstructions), MAX_RECONSTRUCTIONS)
    label, thin = 0.95, 0.04
    cell = min(1.4, (WIDTH - label) / count - thin)
    figure, axes = _sheet(2 * cell + thin + 0.3, theme)
    for i, (name, frames) in enumerate((("original", originals), ("decoded", reconstructions))):
        y = i * (cell + thin)
        axes.text(label - 0.12, y + cell / 2, name, color=theme.text, fontsize=9.5, ha="right", va="center")
        _paste(axes, frames[:count], label, y, cell, thin, theme)
    for i in range(count):
        x = label + i * (cell + thin)
        text = f"{psnr(originals[i], reconstructions[i]):.1f} dB"
        axes.text(x + cell / 2, 2 * cell + thin + 0.17, text, color=theme.muted, fontsize=8.5, ha="center")
    axes.set(xlim=(0, WIDTH), ylim=(figure.get_figheight(), 0))
    return figure


def plot_episode(
    frames: NDArray[Any],
    truth: NDArray[Any],
    values: Mapping[str, Band],
    theme: Theme,
) -> Figure:
    """Values along one episode, with the episode's frames below on the same time axis.

    The frame shown in a cell is the one at the cell's middle, marked by a tick in the plot above it.
    """
    steps = max(1, len(frames))
    pictures = min(PICTURES, steps)
    left, width = 0.065, 0.925
    cell = WIDTH * width / pictures
    bottom, plot_height, top = 0.5, 3.1, 0.5
    height = bottom + cell + 0.08 + plot_height + top
    figure = new_figure(height, theme)
    axes = figure.add_axes((left, (bottom + cell + 0.08) / height, width, plot_height / height))
    film = figure.add_axes((left, bottom / height, width, cell / height))
    style(axes, theme, grid="y")
    style(film, theme, grid="")
    edges = np.linspace(-0.5, steps - 0.5, pictures + 1)
    middles = np.clip(np.round((edges[:-1] + edges[1:]) / 2).astype(int), 0, steps - 1)
    gap = 0.02 * (edges[1] - edges[0])
    for t, start, end in zip(middles, edges[:-1], edges[1:], strict=True):
        if len(frames):
            film.imshow(
                to_hwc(frames[t]),
                extent=(start + gap, end - gap, 0, 1),
                aspect="auto",
                interpolation="lanczos",
            )
        axes.axvline(t, color=theme.grid, linewidth=0.8, zorder=0)
    handles = _episode_lines(axes, np.asarray(truth, dtype=float), values, theme)
    axes.set(xlim=(-0.5, steps - 0.5), ylabel="value")
    axes.set_ylim(*value_range(np.asarray(truth, dtype=float), *(b for band in values.values() for b in band)))
    axes.tick_params(labelbottom=False)
    film.set(xlim=(-0.5, steps - 0.5), ylim=(0, 1), yticks=[], xlabel="agent step")
    film.spines["left"].set_visible(False)
    film.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    legend(figure, handles, theme, loc="upper left", bbox_to_anchor=(left - 0.012, 1.0))
    return figure


def _episode_lines(axes: Axes, truth: NDArray[np.float64], values: Mapping[str, Band], theme: Theme) -> list[Line2D]:
    """Draw bands, lines and the stretches whose truth is not known; return what the legend shows."""
    handles = []
    for i, name in enumerate(ordered(values)):
        mean, low, high = (np.asarray(v, dtype=float) for v in values[name])
        steps = np.arange(len(mean))
        axes.fill_between(steps, low, high, color=theme.colour(name), alpha=0.2, linewidth=0)
        dashes = (["-", (0, (5, 1.5)), (0, (2, 1))])[i % 3]
        handles += axes.plot(steps, mean, color=theme.colour(name), linewidth=1.7, linestyle=dashes)
        handles[-1].set_label(method(name).label)
    known = np.isfinite(truth)
    if known.any():
        line = axes.plot(np.arange(len(truth)), truth, color=theme.text, linewidth=1.5, label="true discounted return")
        handles = line + handles
    edges = np.flatnonzero(np.diff(known, prepend=True, append=True))  # of runs of unknown rows: first, one after last
    for start, end in edges.reshape(-1, 2):
        axes.axvspan(start - 0.5, end - 0.5, color=theme.grid, alpha=0.45, linewidth=0, zorder=0.5)
    if len(edges):
        axes.text(
            edges[-1] - 1, 1.0, "truth unknown: too few steps left ", transform=axes.get_xaxis_transform(),
            color=theme.muted, fontsize=8.5, ha="right", va="bottom",
        )  # fmt: skip
    return handles
