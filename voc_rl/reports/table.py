"""The table of methods: their order, what each one is, and the numbers as text.

``metrics`` is the content of a run's ``metrics.json``. A number that is absent, null or not finite is
shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"


@dataclass(frozen=True)
class Method:
    """A method's name in a table, its name in a sentence and what it does, in one line."""

    label: str
    phrase: str
    description: str


METHODS: dict[str, Method] = {
    "voc": Method("VOC samples", "sampled VOC values", "mean reward of sampled futures, divided by 1 − γ"),
    "voc_codes": Method("VOC codes", "VOC values by codes alone", "the same futures, rewards by their codes alone"),
    "voc_head": Method("VOC head", "the VOC head", "value head of the same model; one pass, nothing is sampled"),
    "mc": Method("Monte-Carlo", "Monte-Carlo regression", "regression from pixels to the stored returns"),
    "td": Method("n-step TD", "the n-step TD critic", "critic from pixels, n-step targets with the n of VOC"),
    "one_step": Method(
        "one-step model", "the one-step model", "one-step token model, rolled out at an equal token budget"
    ),
    "paper": Method("paper recipe", "the paper's recipe", "VOC trained as published, at our size and tokens"),
    "constant": Method("constant", "the constant", "one value for every state, taken from the training data"),
}
OURS = ("voc", "voc_head")


@dataclass(frozen=True)
class Column:
    """A column: the key in ``metrics``, its heading, and which numbers are better."""

    key: str
    heading: str
    better: str  # "low", "high", "zero" or "" where no number is better than another

    def show(self, value: Any) -> str:
        """The number as text, a dash where there is none."""
        number = as_number(value)
        if math.isnan(number):
            return DASH
        if self.key == "nrmse":
            return percent(number)
        if self.key == "cpu_seconds":
            return f"{number:,.0f}"
        if self.key in ("error", "spearman", "pearson"):
            return f"{number:.2f}" if abs(number) < 1000 else f"{number:.2g}"
        digits = f"{abs(number):.2f}" if abs(number) < 1000 else f"{abs(number):.2g}"
        if self.key != "bias" or digits == "0.00":
            return digits
        return ("+" if number > 0 else "−") + digits


COLUMNS = (
    Column("error", "error", "low"),
    Column("nrmse", "NRMSE", "low"),
    Column("mae", "MAE", "low"),
    Column("bias", "bias", "zero"),
    Column("spearman", "Spearman", "high"),
    Column("pearson", "Pearson", "high"),
    Column("cpu_seconds", "CPU s", ""),
)


def as_number(value: Any) -> float:
    """``value`` as a finite float; NaN for everything else."""
    if value is None or isinstance(value, (str, bool)):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal, or none from 100 % on."""
    value = 100 * fraction
    if abs(value - round(value)) < 1e-9:
        return f"{value:,.0f} %"
    return f"{value:.1f} %" if abs(value) < 99.95 else f"{value:,.0f} %"


def method(name: str) -> Method:
    """What is known about a method; an unknown one is called by its own name."""
    return METHODS.get(name, Method(name.replace("_", " "), name.replace("_", " "), ""))


def ordered(names: Any) -> list[str]:
    """Method names in the fixed order: ours, the baselines, unknown ones by name, the constant last."""
    known = [name for name in METHODS if name in names]
    unknown = sorted(name for name in names if name not in METHODS)
    return [name for name in known if name != "constant"] + unknown + [n for n in known if n == "constant"]


def scores(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The methods of ``metrics`` with their numbers, in the fixed order."""
    methods = metrics.get("methods") or {}
    return {name: methods[name] or {} for name in ordered(methods)}


def shown_columns(metrics: Mapping[str, Any]) -> list[Column]:
    """The columns in which at least one method has a number."""
    rows = scores(metrics).values()
    return [c for c in COLUMNS if any(not math.isnan(as_number(row.get(c.key))) for row in rows)]


def best_in(column: Column, metrics: Mapping[str, Any]) -> set[str]:
    """The methods that show the best number of a column; all of them where several print the same."""
    sign = {"low": 1.0, "high": -1.0}.get(column.better, 0.0)
    rows = scores(metrics)
    ranked = {name: as_number(row.get(column.key)) for name, row in rows.items()}
    known = {name: abs(v) if column.better == "zero" else sign * v for name, v in ranked.items() if not math.isnan(v)}
    if not column.better or len(known) < 2:
        return set()
    winner = min(known, key=lambda name: known[name])
    text = column.show(rows[winner].get(column.key)).lstrip("+−")
    return {name for name in known if column.show(rows[name].get(column.key)).lstrip("+−") == text}


def format_table(metrics: Mapping[str, Any]) -> str:
    """The table for a terminal: aligned columns, then one line about each method."""
    columns, rows = shown_columns(metrics), scores(metrics)
    if not rows:
        return "no methods were evaluated"
    cells = [["method", *(c.heading for c in columns)]]
    cells += [[name, *(c.show(row.get(c.key)) for c in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{name.ljust(widths[0])}  {method(name).description}" for name in rows if method(name).description]
    return "\n".join([*lines, "", *notes])
