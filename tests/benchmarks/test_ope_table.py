"""What ope.json holds, on estimates that are known. A whole run: test_ope.py."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from voc_rl.benchmarks.ope import OPE
from voc_rl.benchmarks.ope_table import results_of, table
from voc_rl.checkpoints import read_json

TRUE = {"logged a": 0.2, "unseen b": 0.6, "unseen c": 0.9}


def record(method: str, seed: int, off: float, gamma: float = 0.95) -> dict[str, Any]:
    """A cell whose estimates are all above the truth by the same."""
    cell = {"task": "walker-walk", "part": "test", "gamma": gamma, "method": method, "seed": seed}
    estimates = {name: (j + off, j + off - 0.1, j + off + 0.1) for name, j in TRUE.items()}
    return {"cell": cell, "result": {"estimates": {method: estimates}}, "cpu_seconds": 2.0, "hardware": "paper"}


def test_a_method_is_compared_with_the_head_of_its_own_seeds() -> None:
    records = [record("voc_head", 0, 0.02), record("voc_head", 1, 0.2), record("voc_head", 2, -0.2)]
    records += [record("fqe_state", 0, 0.03), record("fqe", 1, 0.1), record("fqe", 2, 0.04), record("mc", 5, 0.3)]
    entry = results_of(records, {("walker-walk", 0.95): TRUE}, "cpu")["tasks"]["walker-walk"]
    assert entry["methods"]["voc_head"]["mae"] == pytest.approx(0.14)
    differences = {method: pytest.approx(value["mean"]) for method, value in entry["differences"].items()}
    assert differences == {"fqe_state": 0.03 - 0.02, "fqe": 0.07 - 0.2}  # with mc no seed is shared
    assert entry["estimates"]["voc_head"] == pytest.approx([j + 0.02 / 3 for j in TRUE.values()], abs=1e-5)
    text = table({"tasks": {"walker-walk": entry}})
    assert "`fqe_state` **+0.010** [+0.010, +0.010], `fqe` **-0.130** [-0.130, -0.130]." in text


def test_a_difference_that_seeds_do_not_agree_on_tells_nothing_apart() -> None:
    offs = {"voc_head": (0.1, 0.1, 0.1), "fqe": (0.05, 0.07, 0.08), "dr": (0.15, 0.13, 0.01)}
    records = [record(method, seed, off) for method, own in offs.items() for seed, off in enumerate(own)]
    entry = results_of(records, {("walker-walk", 0.95): TRUE}, "cpu")["tasks"]["walker-walk"]
    fqe, dr = entry["differences"]["fqe"], entry["differences"]["dr"]
    assert fqe["by_seed"] == pytest.approx([-0.05, -0.03, -0.02])
    assert dr["by_seed"] == pytest.approx([0.05, 0.03, -0.09])
    assert (fqe["told_apart"], dr["told_apart"]) == (True, False)  # the intervals of both leave out 0
    text = table({"tasks": {"walker-walk": entry}})
    assert "`fqe` **-0.033** [-0.033, -0.033], `dr` -0.003 [-0.003, -0.003]." in text
    assert "- regret@k: true J that is lost" in text


def test_finished_cells_of_several_commands_make_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed at one discount, three at another: no single command asks for these."""
    known = {0.95: TRUE, 0.9: {name: j / 2 for name, j in TRUE.items()}}
    monkeypatch.setattr(OPE, "data", lambda self, task: SimpleNamespace(true_j=known.__getitem__))
    records = [record("fqe", seed, 0.1) for seed in range(3)] + [record("fqe", 0, 0.0, 0.9)]
    first = OPE(finished=True, gammas=(0.95,)).summary(records)["tasks"]["walker-walk"]
    (other,) = first["others"]
    assert [(e["gamma"], e["methods"]["fqe"]["seeds"]) for e in (first, other)] == [(0.95, 3), (0.9, 1)]
    assert first["methods"]["fqe"]["mae"] == pytest.approx(0.1)
    assert other["true"] == known[0.9]


def test_the_docs_show_the_committed_run() -> None:
    """README's table, and how far methods are behind the head in docs/policy_evaluation.md."""
    root = Path(__file__).parents[2]
    tasks = read_json(root / "benchmarks/results/ope.json")["tasks"]
    pair = [tasks["walker-walk"], tasks["cheetah-run"]]
    rows = re.findall(r"^\| `(\w+)`: .*?\| (?:`\w+`|–) \|(.*)\|$", (root / "README.md").read_text(), re.M)
    assert [name for name, _ in rows][:2] == ["voc_head", "voc_corrected"]
    assert len(rows) == 11
    for name, cells in rows:
        scores = [entry["methods"][name] for entry in pair]
        mae, order, half, covered = "mae", "spearman", "spearman_top_half", "coverage90"
        told = [f"{s[k]:.{d}f}" for s in scores for k, d in ((mae, 3), (order, 2), (half, 2), (covered, 2))]
        shown = [cell.strip(" *") for cell in cells.split("|")]
        assert [t if s != "–" else s for s, t in zip(shown, told, strict=True)] == shown, name
    page = (root / "docs/policy_evaluation.md").read_text()
    for name, _ in rows[1:]:
        behind = [entry["differences"][name] for entry in pair]
        cells = [
            f"{'**' * d['told_apart']}{d['mean']:.3f}{'**' * d['told_apart']} ({d['low']:.3f} to {d['high']:.3f})"
            for d in behind
        ]
        assert f"| `{name}` | {' | '.join(cells)} |".replace("0.", ".") in page, name
