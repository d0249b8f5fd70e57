"""Scores against numbers worked out by hand and scipy, and intervals against their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from voc_rl.errors import VOCError
from voc_rl.values.statistics import normal_interval, scores, student_interval


def test_scores_by_hand() -> None:
    found = scores(np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 2.0, 6.0, 4.0]), gamma=0.9, r_max=2.0)
    # differences -1, 0, -2, -1: squares sum to 6; the truth has mean 3.5 and squared deviations 2.25+2.25+6.25+.25 = 11
    assert found["error"] == pytest.approx(6 / 11)
    assert found["nrmse"] == pytest.approx(1.5**0.5 * 0.1 / 2)
    assert found["mae"] == pytest.approx(1.0)
    assert found["bias"] == pytest.approx(-1.0)
    # covariance: (-1.5)(-1.5) + (-.5)(-1.5) + 1.5 * 2.5 + .5 * .5 = 7; predicted deviations squared sum to 5
    assert found["pearson"] == pytest.approx(7 / (5 * 11) ** 0.5)
    # ranks 1 2 4 3 and 1.5 1.5 4 3: covariance 4.5, squares 5 and 4.5
    assert found["spearman"] == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert list(found) == ["error", "nrmse", "mae", "bias", "spearman", "pearson"]


def test_noise_comes_off_error_and_variance_alone() -> None:
    predicted, truth = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 2.0, 6.0, 4.0])
    found, plain = scores(predicted, truth, 0.9, 2.0, noise=0.5), scores(predicted, truth, 0.9, 2.0)
    assert found["error"] == pytest.approx((6 / 4 - 0.5) / (11 / 4 - 0.5))
    assert found["nrmse"] == pytest.approx(1.0 * 0.1 / 2)
    assert {key: found[key] for key in ("mae", "bias", "spearman", "pearson")} == {
        key: plain[key] for key in ("mae", "bias", "spearman", "pearson")
    }
    assert scores(np.full(4, 3.5), truth, 0.9, 2.0, noise=0.5)["error"] == pytest.approx(1.0)  # the best constant
    better = scores(truth, truth, 0.9, 2.0, noise=0.5)  # as near as its own noise: luck
    assert better["error"] < 0
    assert better["nrmse"] == 0


def test_scores_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    predicted = np.exp(truth) + rng.normal(size=200)
    found = scores(predicted, truth, 0.95, 1.0)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, truth)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, truth)[0])
    assert abs(found["spearman"] - found["pearson"]) > 1e-3  # two different numbers


def test_scores_of_simple_predictions() -> None:
    truth = np.array([1.0, 2.0, 6.0])
    perfect = scores(truth, truth, 0.9, 1.0)
    assert perfect == pytest.approx({"error": 0, "nrmse": 0, "mae": 0, "bias": 0, "spearman": 1, "pearson": 1})
    constant = scores(np.full(3, 3.0), truth, 0.9, 1.0)
    assert constant["error"] == pytest.approx(1.0)  # the best constant
    assert constant["spearman"] == constant["pearson"] == 0.0
    nearly = scores(3.0 + np.array([0, 1e-12, 0]), truth, 0.9, 1.0)
    assert nearly["pearson"] == 0.0  # rounding is no correlation
    assert scores(-truth, truth, 0.9, 1.0)["spearman"] == pytest.approx(-1.0)
    assert scores(truth + 5, truth, 0.9, 1.0)["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("predicted", "truth", "said"),
    [
        (np.zeros(3), np.zeros(4), "two equal lists"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "two equal lists"),
        (np.zeros(1), np.zeros(1), "at least 2"),
        (np.array([0.0, np.nan]), np.array([0.0, 1.0]), "NaN or infinity"),
        (np.array([0.0, 1.0]), np.array([0.0, np.inf]), "NaN or infinity"),
    ],
)
def test_bad_scores(predicted: np.ndarray, truth: np.ndarray, said: str) -> None:
    with pytest.raises(VOCError, match=said):
        scores(predicted, truth, 0.9, 1.0)


def test_normal_interval() -> None:
    low, high = normal_interval(np.array([0.0, 2.0]), np.array([1.0, 0.5]), 0.9)
    np.testing.assert_allclose(high, [1.6448536, 2.8224268], rtol=1e-6)
    np.testing.assert_allclose(low, [-1.6448536, 1.1775732], rtol=1e-6)


def test_student_interval_covers() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, size=(20_000, 5))
    stderr = draws.std(1, ddof=1) / 5**0.5
    low, high = student_interval(draws.mean(1), stderr, 5, 0.9)
    assert ((low <= 3.0) & (high >= 3.0)).mean() == pytest.approx(0.9, abs=0.01)
    narrow = normal_interval(draws.mean(1), stderr, 0.9)
    assert ((narrow[0] <= 3.0) & (narrow[1] >= 3.0)).mean() < 0.86  # five numbers are too few for the normal
    np.testing.assert_allclose((high - low) / stderr, 2 * 2.1318468, rtol=1e-6)
