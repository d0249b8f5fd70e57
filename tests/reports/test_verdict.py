"""The table of methods, and what the report says of wins, ties and losses."""

from __future__ import annotations

from typing import Any

import pytest

from voc_rl.reports.table import COLUMNS, DASH, best_in, format_table, ordered
from voc_rl.reports.verdict import compare, judge

NRMSE = {"constant": 0.152, "td": 0.0801, "voc": 0.0652, "mc": 0.0601, "one_step": 0.1203, "voc_head": 0.0588}
RUN: dict[str, Any] = {
    "methods": {
        name: {
            "error": 0.1 + v,
            "nrmse": v,
            "mae": 8 * v,
            "bias": -0.25,
            "spearman": None,
            "cpu_seconds": 61.4,
        }
        for name, v in NRMSE.items()
    }
}
RUN["methods"]["voc"]["spearman"] = 0.837


def some_metrics(**nrmse: float | None) -> dict[str, Any]:
    """The metrics of a run in which only the scores matter."""
    return {"methods": {name: {"nrmse": value} for name, value in nrmse.items()}}


@pytest.mark.parametrize(
    ("ours", "baseline", "change", "outcome"),
    [
        (0.05, 0.10, -0.5, "win"),
        (0.10, 0.05, 1.0, "loss"),
        (0.105, 0.10, 0.05, "tie"),
        (0.095, 0.10, -0.05, "tie"),
        (0.09, 0.10, -0.1, "win"),  # the baseline's error is 11 % above ours
        (0.112, 0.10, 0.12, "loss"),
        (0.0, 0.0, 0.0, "tie"),
        (0.1, 0.0, float("inf"), "loss"),
    ],
)
def test_outcomes(ours: float, baseline: float, change: float, outcome: str) -> None:
    found, name = compare(ours, baseline)
    assert found == pytest.approx(change)
    assert name == outcome
    back = {"win": "loss", "loss": "win", "tie": "tie"}
    assert compare(baseline, ours)[1] == back[outcome]


def test_verdict_says_wins_ties_and_losses() -> None:
    verdict = judge(some_metrics(voc=0.06, voc_head=0.03, mc=0.04, td=0.058, one_step=0.12, constant=0.1))
    assert verdict.best == "voc_head"
    assert verdict.sentences == (
        "The VOC head has the lowest error (NRMSE 3 %); sampled VOC values beat the one-step model (−50 %) "
        "and the constant (−40 %), tie with the n-step TD critic (+3 %) and lose to "
        "Monte-Carlo regression (+50 %).",
        "The VOC head beats Monte-Carlo regression (−25 %), the n-step TD critic (−48 %), the one-step model "
        "(−75 %) and the constant (−70 %).",
        "The one-step model does not beat the constant here, so a win over it says little.",
    )


def test_verdict_does_not_hide_a_total_loss() -> None:
    verdict = judge(some_metrics(voc=0.3, voc_head=0.2, mc=0.04, constant=0.1))
    assert verdict.best == "mc"
    assert {s.outcome for s in verdict.standings} == {"loss"}
    assert "Monte-Carlo regression has the lowest error (NRMSE 4 %); sampled VOC values lose to" in verdict.sentences[0]
    assert "the constant (+200 %)" in verdict.sentences[0]


def test_verdict_without_some_numbers() -> None:
    assert judge({}).sentences == ("No method has a score, so there is nothing to compare.",)
    verdict = judge(some_metrics(voc=float("nan"), voc_head=0.05, mc=None, constant=0.1))
    assert [(s.ours, s.baseline, s.outcome) for s in verdict.standings] == [("voc_head", "constant", "win")]
    assert verdict.sentences[-1] == "Sampled VOC values could not be scored."
    by_error = judge({"methods": {"voc": {"error": 0.25}, "constant": {"error": 1.0}}})
    assert by_error.sentences == ("Sampled VOC values have the lowest error; they beat the constant (−50 %).",)


def test_a_method_without_an_error_is_not_the_best() -> None:
    found = judge({"methods": {"voc": {"error": 0.25}, "mc": {"error": None}, "td": {"error": 0.36}}})
    assert found.sentences == ("Sampled VOC values have the lowest error; they beat the n-step TD critic (−17 %).",)
    assert judge({"methods": {"voc": {}, "mc": {}}}).best == ""


def test_table_is_aligned_and_ordered() -> None:
    lines = format_table(RUN).splitlines()
    table, notes = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in table[2:]] == ["voc", "voc_head", "mc", "td", "one_step", "constant"]
    assert len({len(line) for line in table}) == 1
    assert table[2].split() == ["voc", "0.17", "6.5", "%", "0.52", "−0.25", "0.84", "61"]
    assert table[-1].split()[-3:] == ["−0.25", DASH, "61"]
    assert max(map(len, lines)) <= 80
    assert notes[0] == "voc       mean reward of sampled futures, divided by 1 − γ"
    assert format_table({"methods": {}}) == "no methods were evaluated"
    assert ordered(["zeta", "constant", "voc", "alpha"]) == ["voc", "alpha", "zeta", "constant"]


def test_best_in_a_column() -> None:
    columns = {c.key: c for c in COLUMNS}
    metrics = {
        "methods": {
            "voc": {"bias": -0.1, "spearman": 0.9, "mae": 1.0},
            "mc": {"bias": 0.3, "spearman": 0.2, "mae": 1.001},
        }
    }
    assert best_in(columns["bias"], metrics) == {"voc"}
    assert best_in(columns["spearman"], metrics) == {"voc"}
    assert best_in(columns["mae"], metrics) == {"voc", "mc"}  # they print the same
    assert best_in(columns["error"], metrics) == set()
