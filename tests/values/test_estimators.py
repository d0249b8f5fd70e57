"""Values from samples, from the ensemble of heads, and successor features: against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voc_rl.values.density import from_weights
from voc_rl.values.estimators import from_ensemble, from_samples, rewards_of_futures
from voc_rl.values.successor import successor_features


def test_from_samples_by_hand() -> None:
    estimate = from_samples(np.array([[1.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 4.0]]), gamma=0.9, level=0.9)
    np.testing.assert_allclose(estimate.mean, [20.0, 10.0])
    # (1 - gamma) std: sqrt(2 / 3) and 2, over sqrt(4) samples
    np.testing.assert_allclose(estimate.stderr, [10 * (2 / 3) ** 0.5 / 2, 10.0])
    # Student's, 3 degrees
    np.testing.assert_allclose(estimate.high - estimate.mean, 2.3533634 * estimate.stderr, rtol=1e-6)
    np.testing.assert_allclose(estimate.mean - estimate.low, 2.3533634 * estimate.stderr, rtol=1e-6)
    assert len(estimate) == 2
    assert estimate.level == 0.9
    assert "sampl" in estimate.covers


def test_from_samples_in_replicates_by_hand() -> None:
    """Twelve samples are eight parts of one and two of two, the seventh and the last."""
    rewards = np.array([[1.0, 3.0, 0.0, 2.0, 2.0, 0.0, 1.0, 1.0, 3.0, 0.0, 2.0, 3.0]])
    estimate = from_samples(rewards, gamma=0.5, level=0.9)
    assert estimate.mean[0] == pytest.approx(3.0)
    # means of parts, times 2: 2, 6, 0, 4, 4, 0, 2, 6, 0, 5; squares of what they are off, weighed by size
    squares = 1 + 9 + 9 + 1 + 1 + 9 + 2 * 1 + 9 + 9 + 2 * 4
    assert estimate.stderr[0] == pytest.approx((squares / 12 / 9) ** 0.5)
    assert estimate.high[0] - estimate.mean[0] == pytest.approx(1.8331129 * estimate.stderr[0])  # 9 degrees


@pytest.mark.parametrize("samples", [2, 3, 5, 12, 100])
def test_intervals_of_few_samples_cover(samples: int) -> None:
    rewards = np.random.default_rng(0).normal(size=(20_000, samples))
    found = from_samples(rewards, gamma=0.0)
    assert float(((found.low <= 0) & (found.high >= 0)).mean()) == pytest.approx(0.9, abs=0.01)


def test_intervals_of_few_episodes_cover() -> None:
    """Three episodes, whose rows err together."""
    rng, weights, groups, covered = np.random.default_rng(0), np.full((1, 90), 1 / 90), np.arange(90) // 30, 0
    for _ in range(1000):
        found = from_weights(weights, rng.normal(size=3)[groups], 0.0, groups=groups)
        covered += int(found.low[0] <= 0 <= found.high[0])
    assert 870 < covered < 930


@pytest.mark.parametrize(("many", "elsewhere"), [(1, 0.05), (1, 0.3), (2, 0.0), (2, 0.05), (5, 0.05)])
def test_intervals_cover_where_few_of_many_episodes_carry_the_weight(many: int, elsewhere: float) -> None:
    """Of 80 episodes of 60 rows, whose rewards are constant within each; an interval too wide is no harm here."""
    rng, groups, covered, squares = np.random.default_rng(0), np.arange(4800) // 60, 0, []
    part = np.full(80, elsewhere / (80 - many))
    part[:many] = (1 - elsewhere) / many
    weights = np.repeat(part / 60, 60)[None]
    for _ in range(1000):
        found = from_weights(weights, rng.normal(size=80)[groups], 0.0, groups=groups)
        covered += int(found.low[0] <= 0 <= found.high[0])
        squares.append(found.stderr[0] ** 2)
    assert covered > 840  # 870 of two with little elsewhere
    # the standard error of a weighted mean of independent numbers, whose own variance is 1
    assert np.mean(squares) == pytest.approx(np.square(part).sum(), rel=0.1)


def test_from_samples_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    estimate = from_samples(rng.exponential(1.0, size=(4000, 100)), gamma=0.5, level=0.9)
    covered = (estimate.low <= 2.0) & (estimate.high >= 2.0)
    assert covered.mean() == pytest.approx(0.9, abs=0.03)


def test_from_ensemble_by_hand() -> None:
    estimate = from_ensemble(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), gamma=0.5, level=0.9)
    assert estimate.mean[0] == pytest.approx(6.0)
    # the spread itself, not divided by the number of heads, and that of their mean
    assert estimate.stderr[0] == pytest.approx(2 * (2.5 + 2.5 / 5) ** 0.5)
    assert estimate.high[0] - estimate.mean[0] == pytest.approx(2.1318468 * estimate.stderr[0])


def test_from_ensemble_covers_what_its_members_scatter_around() -> None:
    """Bootstrap members scatter about the estimate as the estimate does about the truth."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(20_000, 1))
    estimate = from_ensemble(found + rng.normal(size=(20_000, 5)), gamma=0.0, level=0.9)
    assert ((estimate.low <= 0) & (estimate.high >= 0)).mean() == pytest.approx(0.9, abs=0.01)


END = 4


def embed(codes: torch.Tensor) -> torch.Tensor:
    """(..., n) -> (..., n, 2); codes at END or beyond would be out of the table."""
    return torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [3.0, -1.0]])[codes]


FUTURES = torch.tensor([[[1, 2], [END, END], [3, 3]], [[END, END], [END, END], [0, 0]]])


def test_features_go_with_the_futures_of_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where states are read a few at a time."""
    futures, features = torch.arange(14).reshape(7, 2, 1) % END, torch.arange(7.0)[:, None]
    monkeypatch.setattr("voc_rl.values.estimators.CODES_AT_ONCE", 6)  # three states
    found = rewards_of_futures(
        futures, lambda codes: codes.float(), lambda codes, seen: codes[..., 0] + 10 * seen[..., 0], END, features
    )
    torch.testing.assert_close(found, (torch.arange(14).reshape(7, 2) % END) + 10 * torch.arange(7.0)[:, None])


def test_end_has_reward_zero() -> None:
    found = rewards_of_futures(FUTURES, embed, lambda vectors: vectors.sum((-1, -2)) + 10, END)
    torch.testing.assert_close(found, torch.tensor([[14.0, 0.0, 14.0], [0.0, 0.0, 12.0]]))


def test_successor_features_by_hand() -> None:
    found = successor_features(FUTURES, embed, END, gamma=0.5)
    expected = 2 * torch.tensor([[1.0 + 3, 1 - 1, 2 + 3, 0 - 1], [0, 1, 0, 1]]) / 3
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])  # a reward that is linear in the features has the value psi @ w
    rewards = rewards_of_futures(FUTURES, embed, lambda vectors: vectors.flatten(-2) @ weights, END)
    torch.testing.assert_close(found @ weights, rewards.mean(1) / 0.5)


@pytest.mark.parametrize("at_once", [1, 6, 7, 100])
def test_many_states_are_read_part_by_part(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are cut so that few codes have their vectors in memory at once; numbers stay."""
    vectors = torch.randn(END, 2, generator=torch.Generator().manual_seed(0))
    futures = torch.tensor([[[0, 1], [2, 3], [END, END]], [[3, 3], [1, 0], [2, 2]], [[END, END]] * 3, [[1, 1]] * 3])
    seen = []

    def embed(codes: torch.Tensor) -> torch.Tensor:
        seen.append(codes.numel())
        return vectors[codes]

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        rewards = rewards_of_futures(futures, embed, lambda v: v.sum((-1, -2)), END)
        return rewards, successor_features(futures, embed, END, 0.5)

    whole = both()
    monkeypatch.setattr("voc_rl.values.estimators.CODES_AT_ONCE", at_once)
    seen.clear()
    for part, expected in zip(both(), whole, strict=True):
        torch.testing.assert_close(part, expected)
    assert max(seen) == (24 if at_once == 100 else 6)
    assert (whole[0][2] == 0).all()
