"""The picture of ``quantizers``: frames beside what the codes of each quantizer decode to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voc_rl.reports.plots import LIGHT, WIDTH, new_figure, save
from voc_rl.reports.plots_frames import to_hwc

LABEL, GAP, TITLE = 1.35, 0.04, 0.3  # inches: left of the frames, between them, above a task


def draw_reconstructions(
    tasks: Mapping[str, Mapping[str, NDArray[np.uint8]]], notes: Mapping[str, str], path: Path
) -> None:
    """Write a PNG with a block per task side by side and a row per kind of picture.

    Args:
        tasks: task -> kind of picture ("original", a quantizer's name) -> uint8 (P, 3, H, W), the same P everywhere.
        notes: kind of picture -> a few words below its name.
        path: the file to write.
    """
    kinds = list(dict.fromkeys(kind for pictures in tasks.values() for kind in pictures))
    columns = sum(len(next(iter(pictures.values()))) for pictures in tasks.values())
    block_gap = 4 * GAP
    cell = (WIDTH - LABEL - (len(tasks) - 1) * block_gap) / columns - GAP
    height = TITLE + len(kinds) * (cell + GAP)
    figure = new_figure(height, LIGHT)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, kind in enumerate(kinds):
        middle = TITLE + row * (cell + GAP) + cell / 2
        axes.text(0.05, middle - 0.03, kind, color=LIGHT.text, fontsize=11, va="bottom")
        axes.text(0.05, middle + 0.03, notes.get(kind, ""), color=LIGHT.muted, fontsize=8.5, va="top")
    x = LABEL
    for task, pictures in tasks.items():
        axes.text(x, TITLE / 2, task, color=LIGHT.text, fontsize=11, fontweight="bold", va="center")
        for row, kind in enumerate(kinds):
            y = TITLE + row * (cell + GAP)
            for i, frame in enumerate(pictures.get(kind, ())):
                left = x + i * (cell + GAP)
                axes.imshow(to_hwc(frame), extent=(left, left + cell, y + cell, y), interpolation="nearest")
        x += len(next(iter(pictures.values()))) * (cell + GAP) + block_gap
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    save(path, figure)
