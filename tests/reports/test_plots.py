"""The small computations behind the plots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from voc_rl.reports.plots import LIGHT, value_range
from voc_rl.reports.plots_frames import plot_episode, psnr, to_hwc
from voc_rl.reports.plots_training import (
    curve_series,
    duration,
    memory,
    plot_curves,
    short_count,
)
from voc_rl.reports.text import share_inside


def test_small_numbers_of_figures() -> None:
    assert psnr(np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)) == pytest.approx(0.0)
    assert share_inside(np.array([1.0, 2.0, np.nan]), np.zeros(3), np.full(3, 1.5)) == pytest.approx(0.5)
    assert to_hwc(np.arange(9, dtype=np.uint8).reshape(9, 1, 1)).tolist() == [[[6, 7, 8]]]
    assert [duration(s) for s in (3.14, 71, 7260)] == ["3.1 s", "1 min 11 s", "2 h 01 min"]
    assert [memory(b) for b in (2.27e9, 729e6)] == ["2.27 GB", "729 MB"]
    assert [short_count(v) for v in (500, 1500, 2e6)] == ["500", "1.5k", "2M"]
    low, high = value_range(np.array([0.0, 10.0]), np.r_[np.zeros(999), 1e6])
    assert low < 0.0
    assert 10.0 < high < 1e6


def test_curves_of_a_resumed_run_count_a_step_once() -> None:
    rows: list[dict[str, Any]] = [
        {"stage": "td", "step": 0, "loss": 3.0, "note": "start", "lr": 1e-3},
        {"stage": "td", "step": 10, "loss": 2.0},
        {"stage": "td", "step": 10, "loss": 1.5, "head": None},
        {"stage": "mc", "step": 0, "loss": float("nan")},
    ]
    series = curve_series(rows)
    assert list(series) == [("td", "loss")]
    assert series["td", "loss"][1].tolist() == [3.0, 1.5]
    same = [{"stage": "one_step", "step": t, "loss": 1.0 / t, "cross_entropy": 1.0 / t, "head": 0.0} for t in (1, 2)]
    assert list(curve_series(same)) == [("one_step", "loss"), ("one_step", "head")]  # no curve is drawn twice
    assert plot_curves([], LIGHT) is None


@pytest.mark.parametrize(
    ("unknown", "spans"),
    [
        ([3, 4, 5, 9], [(2.5, 5.5), (8.5, 9.5)]),  # in the middle too, as of data with several time limits
        ([0, 4], [(-0.5, 0.5), (3.5, 4.5)]),
        ([8, 9], [(7.5, 9.5)]),
        (range(10), [(-0.5, 9.5)]),
        ([], []),
    ],
)
def test_every_stretch_of_unknown_truth_is_shaded(unknown: list[int], spans: list[tuple[float, float]]) -> None:
    truth = np.arange(10.0)
    truth[list(unknown)] = np.nan
    axes = plot_episode(np.zeros((10, 3, 8, 8), np.uint8), truth, {}, LIGHT).axes[0]
    boxes = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    np.testing.assert_allclose([(box.x0, box.x1) for box in boxes], spans)
    # one label, right-aligned at the end of the last one
    assert [text.get_position()[0] for text in axes.texts] == [end - 0.5 for _, end in spans[-1:]]


def test_every_stage_and_number_has_a_panel() -> None:
    rows = [{"stage": stage, "step": t, "loss": 1.0 / t, "val_error": 2.0} for stage in ("mc", "td") for t in (1, 2, 3)]
    figure = plot_curves(rows, LIGHT)
    assert figure is not None
    titles = [(panel.get_title("left"), panel.get_title("right")) for panel in figure.axes]
    assert titles == [
        ("Monte-Carlo", "loss"), ("Monte-Carlo", "val error"), ("n-step TD", "loss"), ("n-step TD", "val error"),
    ]  # fmt: skip
    assert [panel.lines[0].get_ydata().tolist() for panel in figure.axes[:2]] == [[1.0, 0.5, 1 / 3], [2.0, 2.0, 2.0]]
