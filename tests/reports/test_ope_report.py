"""The report of policy values: everything that was said is in one file that needs nothing else."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from matplotlib.colors import same_color

from voc_rl.ope import ErrorParts
from voc_rl.ope.estimate import COVERS, PolicyEstimate, decimals, format_estimates
from voc_rl.reports.ope_report import _intervals, _labels, write_ope_report
from voc_rl.reports.plots import LIGHT

T = 1.859548  # Student's t of eight degrees of freedom, for 90 %


def estimate(name: str, value: float, half: float, warning: str = "") -> PolicyEstimate:
    """With an interval of ``half`` on either side, all of it noise of its own; NaN: of a single episode."""
    error = ErrorParts(value, np.full(9, value), 1 if np.isnan(half) else 40, noise=half / T)
    diagnostics = {"match_distance": 1.234, "rows_used": 1321.0, "value_at_starts": value, "value_elsewhere": 4.0}
    return PolicyEstimate(
        name, value, error, 0.9, 0.95, "corrected", COVERS, np.full(7, value), diagnostics, warning, (),
    )  # fmt: skip


def test_printed_an_estimate_is_a_line() -> None:
    """In a list too, as several policies' come."""
    found = [estimate("best", 9.5, 0.4), estimate("far", 3.0, float("nan"), "The data hardly support far.")]
    assert str(found) == (
        "[<best: 9.500 (9.100 to 9.900), corrected at gamma 0.95>, "
        "<far: 3.000 (no interval), corrected at gamma 0.95; The data hardly support far.>]"
    )


def test_the_report_holds_ranking_support_and_warnings(tmp_path: Path) -> None:
    ranked = [
        estimate("best <b>", 9.5, 0.4),
        estimate("near", 9.0, 0.3),
        estimate("below", 8.9, 0.3),
        estimate("far", 3.0, 1.0, "The data hardly support far."),
    ]
    write_ope_report(tmp_path / "report.html", ranked, "runs/data")
    text = (tmp_path / "report.html").read_text()
    assert "best &lt;b&gt; is worth 9.500 (9.100 to 9.900)." in text
    assert (
        "Not told apart from best &lt;b&gt; by the 90% interval of each difference: near." in text
    )  # .5 -+ sqrt(.4^2 + .3^2)
    assert [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", text)][:10] == [
        "best &lt;b&gt;", "9.500", "9.100 to 9.900", "", "0.215",
        "near", "9.000", "8.700 to 9.300", "-0.500 (-1.000 to +0.000)", "0.161",
    ]  # fmt: skip
    assert "<td>-0.600 (-1.100 to -0.100)</td>" in text
    assert "The data hardly support far." in text
    assert "1.23" in text
    assert "<td>1,321</td>" in text
    assert "By the logged episodes of runs/data." in text
    assert "averaged over 7 starts" in text
    assert text.count("data:image/png;base64,") == 2  # light and dark
    assert "effective rows" not in text  # not known of these
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_picture_shows_who_is_told_apart_from_the_best() -> None:
    ranked = [estimate("best", 9.5, 0.4), estimate("near", 9.0, 0.3), estimate("below", 8.9, 0.3)]
    points = [axes.collections[-1] for axes in _intervals(ranked, LIGHT).axes]  # after the whiskers
    assert np.asarray(points[0].get_offsets()).tolist() == [[9.5, 2], [9.0, 1], [8.9, 0]]
    np.testing.assert_allclose(points[1].get_offsets(), [[-0.5, 1], [-0.6, 0]])
    assert [same_color(inside, LIGHT.background) for inside in points[1].get_facecolors()] == [True, False]
    assert len(_intervals(ranked[:1], LIGHT).axes) == 1


def test_a_single_policy_is_compared_with_none(tmp_path: Path) -> None:
    only = [estimate("only", 9.5, 0.4)]
    assert "| only | 9.500 | 9.100 to 9.900 | 1.23 | 9.500 / 4.000 |" in format_estimates(only)
    write_ope_report(tmp_path / "report.html", only, "runs/data")
    text = (tmp_path / "report.html").read_text()
    assert "only is worth 9.500 (9.100 to 9.900)." in text
    assert "Points are values, lines 90% intervals of the mean. Grey: with a warning." in text
    assert not any(word in text for word in ("Hollow", "Right:", "median", "drops out", "against the best"))


def test_numbers_show_two_digits_of_their_standard_error_in_any_unit(tmp_path: Path) -> None:
    small = [estimate("best", 9.5e-5, 4e-6), estimate("near", 9.3e-5, 3e-6)]
    write_ope_report(tmp_path / "report.html", small, "runs/data")
    text = (tmp_path / "report.html").read_text()
    assert "best is worth 0.0000950 (0.0000910 to 0.0000990)." in text
    assert "<td>-0.0000020 (-0.0000070 to +0.0000030)</td>" in text
    assert "| near | 0.0000930 | 0.0000900 to 0.0000960 | -0.0000020 " in format_estimates(small)
    for value, stderr, known in (
        (9.5, 0.4, 3), (1234.5, 60.0, 3), (0.5, 1e-9, 6), (0.0, 1e-4, 5), (2e-9, 0.01, 3), (4e-4, np.nan, 7),
        (np.nan, np.nan, 3),
    ):  # fmt: skip
        assert decimals(value, stderr) == known


def test_labels_leave_room_and_tell_policies_apart() -> None:
    path = "/home/me/offline/sac_seed{}/checkpoints/rl_model_{}00000_steps.zip, deterministic"
    assert _labels([path.format(i, i) for i in range(2)]) == [
        f"rl_model_{i}00000_steps.zip, deterministic" for i in (0, 1)
    ]
    assert _labels(["a/x/last.zip", "a/y/last.zip", "left"]) == ["x/last.zip", "y/last.zip", "left"]
    assert _labels(["walker-walk/step_20000"]) == ["step_20000"]
    assert _labels(["w" * 100 + "end"]) == ["…" + "w" * 36 + "end"]


def test_an_estimate_without_an_interval_says_so(tmp_path: Path) -> None:
    few = "One episode gives no interval."
    write_ope_report(tmp_path / "report.html", [estimate(name, 2.0, np.nan, few) for name in "ab"], "runs/data")
    text = (tmp_path / "report.html").read_text()
    assert "a is worth 2.000 (no interval)." in text
    assert text.count("<td>no interval</td>") == 2
    assert text.count(few) == 1  # what holds for all is said once
    assert "Not told apart from a by the 90% interval of each difference: b." in text
    assert "<td>+0.000 (no interval)</td>" in text


def test_a_policy_without_a_value_is_told_apart_from_none(tmp_path: Path) -> None:
    ranked = [estimate("best", 9.5, 0.5), estimate("far", 3.0, 1.0), estimate("nowhere", np.nan, np.nan, "No value.")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_ope_report(tmp_path / "report.html", ranked, "runs/data")
    text = (tmp_path / "report.html").read_text()
    assert "All others are told apart from best by the 90% interval" in text
    assert "<td>no difference</td>" in text
    assert "<td>nowhere</td><td>nan</td><td>no interval</td>" in text
