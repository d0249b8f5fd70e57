"""Scores of policy values against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from voc_rl.benchmarks.ope_scores import pair_scores, paired_difference, policy_scores, regret
from voc_rl.errors import VOCError


def scored(estimate: list[float], truth: list[float], half: float = 0.1) -> dict[str, float]:
    def named(numbers: list[float]) -> dict[str, float]:
        return {f"p{i}": x for i, x in enumerate(numbers)}

    low, high = [x - half for x in estimate], [x + half for x in estimate]
    return policy_scores(named(estimate), named(truth), named(low), named(high), np.random.default_rng(0))


def test_errors_and_coverage_by_hand() -> None:
    found = scored([0.2, 0.5, 0.35, 0.9], [0.1, 0.4, 0.6, 0.8])
    assert found["mae"] == pytest.approx((0.1 + 0.1 + 0.25 + 0.1) / 4)
    assert found["bias"] == pytest.approx((0.1 + 0.1 - 0.25 + 0.1) / 4)
    assert found["spearman"] == pytest.approx(0.8)  # one swap of neighbours among four: 1 - 6 * 2 / 60
    assert found["spearman_top_half"] == pytest.approx(1.0)  # of .6 and .8
    # one interval in four misses, by .15: width .2 + 20 * .15 / 4
    assert scored([0.2, 0.5, 0.35, 0.9], [0.15, 0.45, 0.6, 0.85])["coverage90"] == pytest.approx(0.75)
    assert found["interval_score"] == pytest.approx(0.2 + 20 * 0.15 / 4, abs=1e-6)


def test_regret_by_hand() -> None:
    true = np.arange(10) / 9.0  # a subset of ten is all of them
    rng = np.random.default_rng(0)
    assert regret(true, true, 1, rng) == 0.0
    assert regret(-true, true, 1, rng) == pytest.approx(1.0)
    assert regret(-true, true, 5, rng) == pytest.approx(5 / 9)
    # where all estimates are equal chance chooses: the mean of the best is 1, of a random one 1/2
    assert regret(np.zeros(10), true, 1, rng) == pytest.approx(0.5, abs=0.04)


def test_a_constant_has_no_rank_and_other_policies_are_refused() -> None:
    assert scored([0.5] * 4, [0.1, 0.4, 0.6, 0.8])["spearman"] == 0.0
    with pytest.raises(VOCError, match="same policies"):
        policy_scores({"a": 1.0}, {"a": 1.0, "b": 2.0}, {}, {}, np.random.default_rng(0))


def test_paired_differences_know_that_errors_go_together() -> None:
    """Errors that differ by the same at every policy are told apart however much policies differ among themselves."""
    rng = np.random.default_rng(0)
    errors = rng.uniform(0, 1, 24)
    found = paired_difference(errors[None] + 0.01, errors[None], rng)
    assert [found[name] for name in ("mean", "low", "high")] == pytest.approx([0.01] * 3)
    wide = paired_difference(rng.permutation(errors)[None] + 0.01, errors[None], rng)
    assert wide["low"] < 0 < wide["high"]
    # of differences of 0 and 1 in equal parts the bootstrapped mean is binomial: .5 -+ 1.645 sqrt(.25 / 100)
    half = paired_difference(np.repeat([[0.0, 1.0]], 50, 1), np.zeros((1, 100)), rng)
    assert [half["low"], half["high"]] == pytest.approx([0.418, 0.582], abs=0.015)


def test_pairs_by_hand() -> None:
    """Of six pairs four are told apart, one of these the wrong way round and one of equals; 3.3 > hypot(1, 1.5)."""
    truth = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 4.0}
    low, high = {"a": 0.0, "b": 0.5, "c": 2.5, "d": 2.5}, {"a": 2.0, "b": 3.5, "c": 5.5, "d": 5.5}
    pairs = [
        ("a", "b", 0.1, 0.5), ("a", "c", -4.0, -2.6), ("b", "c", -1.0, 0.5),
        ("b", "d", -3.0, 1.0), ("c", "d", -2.0, -1.0), ("c", "a", 2.0, 3.0),
    ]  # fmt: skip
    found = pair_scores(pairs, truth, low, high)
    assert found == pytest.approx({"pairs": 6, "held": 3 / 6, "told": 4 / 6, "wrong": 2 / 6, "unpaired": 2 / 6})
    assert pair_scores(pairs[2:4], truth, low, high)["told"] == 0.0
