"""What standard errors of policies' values are made of, against numbers by hand and exact differences of two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from decisions import S, decisions, logged
from test_policy_chains import GAMMA, MANY, Chooses

from voc_rl.ope import PolicyChains
from voc_rl.ope.error import ErrorParts, resampled_scale
from voc_rl.ope.estimate import NARROW, PolicyEstimate, covers, format_estimates, rivals_of


def test_a_standard_error_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread of the resampled chains, their shift, the critic's move, the network's and sampling, each in its scale."""
    monkeypatch.setattr("voc_rl.ope.error.resampled_scale", {10: (scale := 1.5)}.__getitem__)
    chain = ErrorParts(5.0, np.array([1.0, 2.0, 6.0]), 10)
    assert chain.stderr**2 == pytest.approx(scale * 7.0 + (scale * (5 - 3)) ** 2)
    all_of_it = replace(chain, moved=2.0, apart=-3.0, noise=0.5)
    assert all_of_it.stderr**2 == pytest.approx(chain.stderr**2 + 4.0 + 9.0 + 0.25)
    low, high = all_of_it.interval(1.0, 0.9)
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 2.9199856 * all_of_it.stderr)  # Student's t of two degrees of freedom
    assert np.isnan(ErrorParts(5.0, np.array([5.0, 5.0]), 1).stderr)


def test_a_difference_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that are lucky for both, and a critic that puts both too high, are not in it; noise of sampling is."""
    monkeypatch.setattr("voc_rl.ope.error.resampled_scale", lambda count: 2.0)
    one = ErrorParts(5.0, np.array([1.0, 9.0, 5.0]), 10, moved=2.0, apart=-3.0, noise=0.3)
    other = ErrorParts(4.0, np.array([0.0, 8.0, 4.0]), 10, moved=2.0, apart=-3.0, noise=0.4)
    assert (one - other).stderr == pytest.approx(0.5)
    apart = replace(other, resampled=np.array([2.0, 8.0, 2.0]), moved=1.0)
    assert (one - apart).stderr ** 2 == pytest.approx(2 * np.var([-1.0, 1.0, 3.0], ddof=1) + 1.0 + 0.25)


@pytest.mark.parametrize("count", [2, 3, 4, 20])
def test_means_of_resampled_episodes_tell_the_variance_of_the_mean(count: int) -> None:
    """By simulation: the different ones of ``count`` episodes drawn with replacement, against S^2 / count."""
    rng, episodes = np.random.default_rng(0), np.arange(float(count)) ** 2
    drawn = [np.unique(rng.integers(count, size=count)) for _ in range(40_000)]
    found = resampled_scale(count) * np.var([episodes[some].mean() for some in drawn])
    assert found == pytest.approx(episodes.var(ddof=1) / count, rel=0.03)  # e - 1 would be .14 off for two
    assert resampled_scale(10_000) == pytest.approx(np.e - 1, abs=1e-3)


def estimates_of(
    policies: dict[str, np.ndarray], rows: int, seed: int
) -> tuple[list[PolicyEstimate], dict[str, float]]:
    """Estimates of policies (S, A) by their chains through logged rows of the small process, and the exact values."""
    process = decisions()
    dataset, states = logged(process, rows, seed)
    dataset.state, features = states[:, None].astype(np.float32), torch.from_numpy(np.eye(S, dtype=np.float32)[states])
    acting = {name: Chooses(odds) for name, odds in policies.items()}
    chains, reward = PolicyChains(dataset, acting, dataset.starts, MANY, seed, lambda: features), process.reward[states]
    found, true = [], {}
    for name, odds in policies.items():
        values, told = chains.values(name, reward, GAMMA)[dataset.starts], chains.diagnostics(name, reward, GAMMA)
        error, mean = chains.error(name, reward, GAMMA), float(values.mean())
        found.append(PolicyEstimate(name, mean, error, 0.9, GAMMA, "stitch", covers(), values, told, "", ()))
        true[name] = process.values(odds, GAMMA)[states[dataset.starts]].mean()
    return found, true


def test_intervals_of_differences_hold_the_exact_ones_and_are_narrower_than_of_values_alone() -> None:
    best, _, worst = decisions().policies
    policies = {"best": best, "near": 0.8 * best + 0.2 * worst, "half": 0.5 * best + 0.5 * worst}
    inside, apart, unpaired, errors, stderrs, independent = [], [], [], [], [], []
    for seed in range(12):
        (first, *others), true = estimates_of(policies, 240, seed)
        for other in others:
            found, truth = first.difference(other), true["best"] - true[other.policy]
            half = np.hypot(first.high - first.value, other.high - other.value)
            inside.append(found.low <= truth <= found.high)
            apart.append(found.told_apart)
            unpaired.append(found.value > half)
            errors.append(found.value - truth)
            stderrs.append(found.stderr)
            independent.append(np.hypot(first.stderr, other.stderr))
    ratio, narrower = (np.sqrt(np.square(stderrs).mean() / np.square(of).mean()) for of in (errors, independent))
    print(
        f"held {np.mean(inside):.2f}, apart {np.mean(apart):.2f}, unpaired {np.mean(unpaired):.2f}, standard error "
        f"{ratio:.2f} times the error, {narrower:.2f} times that of independent ones"
    )
    assert np.mean(inside) >= 0.9
    assert 1.0 < ratio < 3.0
    assert narrower < 0.8
    assert np.mean(apart) > np.mean(unpaired) + 0.1


def test_a_policy_is_not_told_apart_from_itself_under_another_name() -> None:
    odds = decisions().policies
    (one, same, worst), _ = estimates_of({"one": odds[0], "same": odds[0], "worst": odds[2]}, 240, 0)
    found = one.difference(same)
    assert (found.value, found.stderr, found.low, found.high, found.told_apart) == (0.0, 0.0, 0.0, 0.0, False)
    assert one.difference(worst).told_apart
    assert worst.difference(one).value == -one.difference(worst).value
    each = "by the 90% interval of each difference"
    assert rivals_of([one, same, worst]) == [f"Not told apart from one {each}: same.{NARROW}"]
    (alone,) = rivals_of([replace(one, estimator="corrected"), worst])
    assert alone == f"All others are told apart from one {each}; the best of many may be so by luck."
    assert rivals_of([one]) == []
    assert "| +0.000 (+0.000 to +0.000) |" in format_estimates([one, same, worst])
    kept = one.difference(same).as_dict()
    assert (kept["than"], kept["told_apart"]) == ("same", False)
