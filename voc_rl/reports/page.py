"""Pieces of HTML: headline, tables, figures, settings. Every text from outside is escaped here."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from voc_rl.checkpoints import atomic_path
from voc_rl.reports.plots import DARK, LIGHT, Theme, fitted_png
from voc_rl.reports.plots_training import duration, memory
from voc_rl.reports.table import (
    DASH,
    OURS,
    as_number,
    best_in,
    method,
    percent,
    scores,
    shown_columns,
)
from voc_rl.reports.verdict import TIE, judge, rmse_scores, signed

SHOWN_ELSEWHERE = frozenset({"methods", "seconds", "cpu_seconds", "peak_memory_bytes", "stage_peak_memory_bytes"})


def escape(value: Any) -> str:
    """Text that is safe inside HTML, quotes included."""
    return html.escape(str(value), quote=True)


def slug(title: str) -> str:
    """A title as an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def write_page(path: Path, kicker: str, title: str, headline: str, sections: Mapping[str, str]) -> None:
    """Write a report as one HTML file, in one step; ``headline`` and the bodies of ``sections`` are HTML already."""
    template = resources.files("voc_rl.reports").joinpath("template.html").read_text(encoding="utf-8")
    text = Template(template).substitute(
        kicker=escape(kicker), title=escape(title), headline=headline, contents=contents(sections),
        sections="\n".join(section(title, body) for title, body in sections.items()),
    )  # fmt: skip
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def contents(titles: Mapping[str, str]) -> str:
    """Links to the sections."""
    return " ".join(f'<a href="#{slug(title)}">{escape(title)}</a>' for title in titles)


def section(title: str, body: str) -> str:
    """A section with its heading."""
    return f'<section id="{slug(title)}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'


def headline(metrics: Mapping[str, Any]) -> str:
    """The verdict in words and the run in five numbers."""
    first, *more = judge(metrics).sentences
    words = f'<p class="verdict">{escape(first)}</p>'
    words += "".join(f'<p class="more">{escape(text)}</p>' for text in more)
    words += (
        f'<p class="note">Percentages are differences in NRMSE, negative is better for VOC; '
        f"errors within {percent(TIE)} of each other count as a tie.</p>"
    )
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in _tiles(metrics))
    return words + (f'<div class="tiles">{tiles}</div>' if tiles else "")


def _tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and number of each tile."""
    rows, numbers = scores(metrics), rmse_scores(metrics)
    with_nrmse = {name: v for name, v in numbers.items() if not math.isnan(as_number(rows[name].get("nrmse")))}
    tiles = [(f"NRMSE of {method(n).label}", percent(with_nrmse[n])) for n in OURS if n in with_nrmse]
    others = {name: value for name, value in with_nrmse.items() if name not in OURS}
    if others:
        best = min(others, key=lambda name: others[name])
        tiles.append((f"NRMSE of {method(best).label}, the best baseline", percent(others[best])))
    seconds = [v for v in map(as_number, (metrics.get("seconds") or {}).values()) if not math.isnan(v)]
    if seconds:
        tiles.append(("all stages together, before this report", duration(sum(seconds))))
    peaks = [v for v in map(as_number, (metrics.get("stage_peak_memory_bytes") or {}).values()) if not math.isnan(v)]
    if peaks:
        tiles.append(("peak memory, before this report", memory(max(peaks))))
    return tiles


def score_table(metrics: Mapping[str, Any]) -> str:
    """The table of methods; the best number of a column is bold, errors carry a bar."""
    columns, rows = shown_columns(metrics), scores(metrics)
    if not rows:
        return '<p class="absent">No methods were evaluated.</p>'
    head = "".join(f'<th scope="col">{escape(c.heading)}</th>' for c in columns)
    best = {c.key: best_in(c, metrics) for c in columns}
    largest = max(rmse_scores(metrics).values(), default=0.0)
    lines = []
    for name, row in rows.items():
        known = method(name)
        cells = f"<td><b>{escape(known.label)}</b><small>{escape(known.description)}</small></td>"
        for column in columns:
            classes = ["best"] if name in best[column.key] else []
            text, value = escape(column.show(row.get(column.key))), as_number(row.get(column.key))
            if column.key == "nrmse" and largest > 0 and not math.isnan(value):
                classes.append("meter")
                text = f'<span style="--share: {100 * min(1.0, value / largest):.0f}%">{text}</span>'
            cells += f'<td class="{" ".join(classes)}">{text}</td>' if classes else f"<td>{text}</td>"
        row_class = ' class="ours"' if name in OURS else ""
        lines.append(f"<tr{row_class}>{cells}</tr>")
    return (
        '<p class="lead">All methods learned from the same data. Low is good for error, NRMSE and MAE, near '
        "zero for bias, high for the correlations; the best of a column is bold.</p>"
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def standing_table(metrics: Mapping[str, Any]) -> str:
    """Our estimates against each baseline: wins, ties and losses with their size."""
    standings = judge(metrics).standings
    if not standings:
        return ""
    baselines = list(dict.fromkeys(s.baseline for s in standings))
    head = "".join(f'<th scope="col">{escape(method(name).label)}</th>' for name in baselines)
    words = {"win": "▲ wins", "tie": "≈ ties", "loss": "▼ loses"}
    lines = []
    for ours in dict.fromkeys(s.ours for s in standings):
        cells = "".join(
            f'<td class="{s.outcome}">{words[s.outcome]} {signed(s.change)}</td>' for s in standings if s.ours == ours
        )
        lines.append(f"<tr><td><b>{escape(method(ours).label)}</b></td>{cells}</tr>")
    return (
        '<div class="scroll"><table class="standing"><thead><tr><th scope="col">against</th>'
        f"{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def in_both_themes(draw: Callable[[Theme], Figure | None]) -> tuple[bytes, bytes] | None:
    """A figure as PNGs for light and for dark displays; None where there is nothing to draw."""
    light, dark = draw(LIGHT), draw(DARK)
    return None if light is None or dark is None else (fitted_png(light), fitted_png(dark))


def figure(pictures: tuple[bytes, bytes] | None, lead: str, alt: str, caption: str, absent: str) -> str:
    """PNGs for light and for dark displays between their lead and their caption, or the words in their place."""
    if pictures is None:
        return f'<p class="absent">{escape(absent)}</p>'
    light, dark = map(_data_uri, pictures)
    top = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    lines = "<br>".join(escape(line) for line in caption.splitlines())
    bottom = f"<figcaption>{lines}</figcaption>" if lines else ""
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    picture = f'<picture>{source}<img src="{light}" alt="{escape(alt)}"></picture>'
    return f'{top}<figure><div class="scroll" tabindex="0">{picture}</div>{bottom}</figure>'


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def facts(metrics: Mapping[str, Any]) -> str:
    """Everything else that ``metrics`` holds, grouped as it is there."""
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in metrics.items():
        if key in SHOWN_ELSEWHERE:
            continue
        if isinstance(value, Mapping):
            groups[key] = _flat(value)
        else:
            groups["run"][key] = value
    parts = []
    for title, rows in groups.items():
        lines = "".join(f"<tr><td>{escape(k)}</td><td>{escape(_fact(v))}</td></tr>" for k, v in rows.items())
        if lines:
            parts.append(f"<section><h3>{escape(title)}</h3><table><tbody>{lines}</tbody></table></section>")
    return f'<div class="facts">{"".join(parts)}</div>'


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, their keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner})
    return flat


def _fact(value: Any) -> str:
    """A setting as text: short numbers, lists with commas, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(item) for item in value) or DASH
    return str(value)
