"""What ope.json holds, on estimates that are known. A whole run: test_ope.py."""

from __future__ import annotations

from typing import Any

import pytest

from voc_rl.benchmarks.ope_table import results_of, table

TRUE = {"logged a": 0.2, "unseen b": 0.6, "unseen c": 0.9}


def record(method: str, seed: int, off: float) -> dict[str, Any]:
    """A cell whose estimates are all above the truth by the same."""
    cell = {"task": "walker-walk", "part": "test", "gamma": 0.95, "method": method, "seed": seed}
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
    assert "`fqe_state` +0.010 [+0.010, +0.010], `fqe` -0.130 [-0.130, -0.130]." in text
