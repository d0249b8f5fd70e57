"""The report of ``voc-rl ope``: policies ranked by their values, with intervals and what the data say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from voc_rl.ope.estimate import (
    FAR,
    PolicyDifference,
    PolicyEstimate,
    against_best,
    logged_of,
    ranking,
    rivals_of,
    warnings_of,
)
from voc_rl.reports.page import escape, figure, in_both_themes, write_page
from voc_rl.reports.plots import Theme, new_figure, style

# diagnostic -> heading, and what it tells
SUPPORT = {
    "match_distance": (
        "match distance",
        f"How far the logged rows are that the policy follows, frame and action together, in units of the distance to "
        f"the 32nd nearest frame. Above {FAR:g} do not rely on the value.",
    ),
    "action_distance": ("action distance", "How far the policy's actions are from those of the rows it follows."),
    "rows_used": (
        "rows used",
        "From how many different rows the chains of all starts go on: few, and little is known.",
    ),
    "value_at_starts": ("at the starts", "Value by the chain alone where the question was asked."),
    "value_elsewhere": ("elsewhere", "The same over all rows. Far apart: the starts are unlike the rest of the data."),
    "excluded_followed": (
        "left-out episodes",
        "Share of the rows where resampled chains followed an episode that they leave out, for want of another: the "
        "larger, the narrower the intervals are drawn.",
    ),
    "effective_rows": ("effective rows", "How many rows the density weights really use; below 50 there is no number."),
}
COUNTS = ("rows_used", "effective_rows")
LONGEST_LABEL = 40  # letters of a policy's name in the picture


def write_ope_report(path: Path, estimates: Sequence[PolicyEstimate], data: str) -> None:
    """Write one HTML file for the estimates of one call, best first; ``data`` says which episodes they are from."""
    first = estimates[0]
    sections = {
        "Ranking": _picture(estimates) + _ranking(estimates),
        "What the data say of them": _support(estimates),
        "How to read the numbers": _reading(first),
    }  # fmt: skip
    best = f"{first.policy} is worth {first.value:{first.digits}} ({first.interval})."
    write_page(
        path, f"voc_rl report · discount γ = {first.gamma:g} · estimator {first.estimator}",
        "What are these policies worth?",
        f'<p class="verdict">{escape(best)}</p><p class="more">{escape(" ".join(rivals_of(estimates)))}</p>'
        f'<p class="more">By the logged episodes of {escape(data)}.</p>', sections,
    )  # fmt: skip


def _picture(estimates: Sequence[PolicyEstimate]) -> str:
    """Values and intervals, drawn; of several policies also who is told apart from the best."""
    points = f"Points are values, lines {estimates[0].level:.0%} intervals of the mean"
    lead, alt, caption = "", "Value of the policy with its interval.", f"{points}. Grey: with a warning."
    if len(estimates) > 1:
        lead = "What all policies share drops out of differences: their intervals say who is told apart from the best."
        alt = "Left: value of each policy with its interval, best first. Right: its difference to the best."
        caption = (
            f"{points}; the upright line on the left is their median. Grey: with a warning. Hollow: not told apart "
            "from the best."
        )
    return figure(in_both_themes(lambda theme: _intervals(estimates, theme)), lead, alt, caption, "")


def _ranking(estimates: Sequence[PolicyEstimate]) -> str:
    """Values, by how much each is below the best, and standard errors."""
    head, *rows = ranking(estimates)
    rows = [[*row, f"{e.stderr:{e.digits}}"] for row, e in zip(rows, estimates, strict=True)]
    return _table([*head, "standard error"], rows)


def _intervals(estimates: Sequence[PolicyEstimate], theme: Theme) -> Figure:
    """Values, and beside them what each has less than the best: dots with whiskers, a line per policy."""
    drawn = new_figure(1.2 + 0.34 * len(estimates), theme, ConstrainedLayoutEngine())
    several = len(estimates) > 1
    panels = drawn.subplots(1, 1 + several, sharey=True, squeeze=False, width_ratios=[3, 2] if several else None)[0]
    places = np.arange(len(estimates))[::-1]
    colours = [theme.other if e.warning else theme.methods["voc"] for e in estimates]
    axes = panels[0]
    if several:
        axes.axvline(float(np.nanmedian([e.value for e in estimates])), color=theme.grid, linewidth=2)
    _whiskers(axes, theme, places, estimates, colours, colours)
    axes.set_yticks(places, _labels([e.policy for e in estimates]))
    axes.tick_params(axis="y", labelcolor=theme.text)
    axes.set_ylim(-0.6, len(estimates) - 0.4)
    axes.set_xlabel("discounted return, averaged over the starts")
    if several:
        others = against_best(estimates)
        edges = [theme.other] * len(others) if estimates[0].warning else colours[1:]
        inside = [edge if d.told_apart else theme.background for edge, d in zip(edges, others, strict=True)]
        panels[1].axvline(0.0, color=theme.grid, linewidth=2)
        _whiskers(panels[1], theme, places[1:], others, edges, inside)
        panels[1].set_xlabel("against the best")
    return drawn


def _whiskers(
    axes: Axes, theme: Theme, places: np.ndarray, found: Sequence[PolicyEstimate | PolicyDifference],
    colours: Sequence[str], inside: Sequence[str],
) -> None:  # fmt: skip
    style(axes, theme, "x")
    axes.hlines(places, [e.low for e in found], [e.high for e in found], colors=colours, linewidth=2)
    axes.scatter([e.value for e in found], places, edgecolors=colours, facecolors=inside, linewidth=1.5, s=36, zorder=3)


def _labels(names: Sequence[str]) -> list[str]:
    """Names for the picture: of paths as much of the end as tells them apart, and no more than leaves room."""
    parts = [name.split("/") for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-count:]) for part in parts]
        if len(set(short)) == len(names):
            break
    return [name if len(name) <= LONGEST_LABEL else f"…{name[1 - LONGEST_LABEL :]}" for name in short]


def _support(estimates: Sequence[PolicyEstimate]) -> str:
    known = [name for name in SUPPORT if all(name in e.diagnostics for e in estimates)]
    shown = {name: ",.0f" if name in COUNTS else ".3g" for name in known}
    rows = [[e.policy, *(format(e.diagnostics[name], shown[name]) for name in known)] for e in estimates]
    told = "".join(f"<dt>{escape(SUPPORT[name][0])}</dt><dd>{escape(SUPPORT[name][1])}</dd>" for name in known)
    said = [*logged_of(estimates), *warnings_of(estimates)]
    warned = "".join(f'<p class="more">{escape(line)}</p>' for line in said)
    return warned + _table(["policy", *(SUPPORT[name][0] for name in known)], rows) + f"<dl>{told}</dl>"


def _reading(first: PolicyEstimate) -> str:
    lines = (
        "A value is the discounted sum of rewards from the next step on, in reward units, averaged over "
        f"{len(first.start_values)} starts.",
        f"Intervals are of the mean, never of the return of one episode. They cover {first.covers}.",
        "Policies are told apart by the interval of their difference, in which luck that they share has no part. What "
        "makes one value wrong, as actions that the data lack, it does not know. It is of one difference: the best of "
        "many may be so by luck.",
        "Where the data hold no row with the policy's action, its chain follows another: values of such policies are "
        "drawn towards the data. docs/policy_evaluation.md says when not to believe a value.",
    )
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
