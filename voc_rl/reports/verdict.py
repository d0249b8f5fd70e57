"""What the numbers say in a sentence: who is best, and how VOC stands against each baseline.

Two methods tie when their NRMSE differ by less than ``TIE``: repeated runs of one setting scatter about
that much, and one run cannot tell smaller gaps apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from voc_rl.reports.table import OURS, as_number, method, percent, scores

TIE = 0.10
Outcome = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Standing:
    """One of our estimates against one baseline; ``change`` is its relative NRMSE, negative is better."""

    ours: str
    baseline: str
    change: float
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """The best method by NRMSE (empty if none has one), all standings, and the sentences that say it."""

    best: str
    standings: tuple[Standing, ...]
    sentences: tuple[str, ...]


def rmse_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """NRMSE of each method that has one; where no method has, the root of its error, which ranks alike."""
    rows = scores(metrics)
    numbers = {name: as_number(row.get("nrmse")) for name, row in rows.items()}
    if all(math.isnan(v) for v in numbers.values()):
        numbers = {name: math.sqrt(max(as_number(row.get("error")), 0.0)) for name, row in rows.items()}
    return {name: v for name, v in numbers.items() if not math.isnan(v)}


def compare(ours: float, baseline: float) -> tuple[float, Outcome]:
    """Relative difference in error and its name: a gap under ``TIE`` of the smaller error is a tie."""
    if baseline == ours:
        return 0.0, "tie"
    change = ours / baseline - 1 if baseline > 0 else math.inf
    if ours > baseline * (1 + TIE):
        return change, "loss"
    return change, "win" if baseline > ours * (1 + TIE) else "tie"


def judge(metrics: Mapping[str, Any]) -> Verdict:
    """The verdict on a run."""
    numbers = rmse_scores(metrics)
    if not numbers:
        return Verdict("", (), ("No method has a score, so there is nothing to compare.",))
    best = min(numbers, key=lambda name: numbers[name])
    standings = tuple(
        Standing(ours, baseline, *compare(numbers[ours], numbers[baseline]))
        for ours in OURS
        if ours in numbers
        for baseline in numbers
        if baseline not in OURS
    )
    has_nrmse = not math.isnan(as_number(scores(metrics)[best].get("nrmse")))
    score = f" (NRMSE {percent(numbers[best])})" if has_nrmse else ""
    first = f"{_capital(method(best).phrase)} {_verb(best, 'have', 'has')} the lowest error{score}"
    told = {name: _sentence(name, [s for s in standings if s.ours == name]) for name in OURS}
    told = {name: text for name, text in told.items() if text}
    sentences = [f"{_capital(method(name).phrase)} {text}." for name, text in told.items()]
    if told:
        name, text = next(iter(told.items()))
        subject = _verb(name, "they", "it") if name == best else method(name).phrase
        sentences[0] = f"{first}; {subject} {text}."
    else:
        sentences = [f"{first}."]
    missing = [name for name in OURS if name in scores(metrics) and name not in numbers]
    sentences += [f"{_capital(method(name).phrase)} could not be scored." for name in missing]
    return Verdict(best, standings, tuple(sentences + _warnings(numbers)))


def _sentence(name: str, standings: list[Standing]) -> str:
    """Wins, ties and losses of one of our estimates, each with its size; the subject is left out."""
    verbs: dict[Outcome, tuple[str, str]] = {
        "win": ("beat", "beats"),
        "tie": ("tie with", "ties with"),
        "loss": ("lose to", "loses to"),
    }
    parts = []
    for outcome, forms in verbs.items():
        others = [f"{method(s.baseline).phrase} ({signed(s.change)})" for s in standings if s.outcome == outcome]
        if others:
            parts.append(f"{_verb(name, *forms)} {_join(others)}")
    return _join(parts) if parts else ""


def _warnings(numbers: Mapping[str, float]) -> list[str]:
    """Baselines that learned nothing: a win over them says little."""
    if "constant" not in numbers:
        return []
    weak = [n for n in numbers if n not in (*OURS, "constant") and numbers[n] >= numbers["constant"]]
    if not weak:
        return []
    names = _join([method(name).phrase for name in weak])
    verb, pronoun = ("does", "it") if len(weak) == 1 else ("do", "them")
    return [f"{_capital(names)} {verb} not beat the constant here, so a win over {pronoun} says little."]


def signed(change: float) -> str:
    """A relative difference as a signed percentage, e.g. −12 %."""
    if math.isinf(change):
        return "+∞"
    value = round(100 * change)
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{abs(value):,} %"


def _verb(name: str, plural: str, singular: str) -> str:
    return plural if name == "voc" else singular


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
