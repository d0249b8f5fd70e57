"""What futures are drawn with: each future as if alone, all of a state together spread evenly, in independent parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import occupancy, ring
from occupancy_table import OccupancyTable
from scipy import stats
from small import generator

from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, sample_futures
from voc_rl.occupancy.sampling import REPLICATES, replicates, uniforms
from voc_rl.values import from_samples

S, GAMMA = 12, 0.9
MODEL = OccupancyTable(occupancy(ring(), GAMMA)[None]).network  # one code a future, so one number draws it
REWARD = np.cos(2 * np.pi * np.arange(S) / S)


def test_replicates_share_all_samples_and_have_sizes_of_their_own() -> None:
    for samples in range(1, 2000):
        sizes = replicates(samples)
        assert sum(sizes) == samples
        assert len(sizes) == min(samples, REPLICATES)
        assert min(sizes) >= 1
        assert samples < 100 or max(sizes) > 2 * min(sizes)


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(1, [1]), (7, [1] * 7), (20, [1, 2, 2, 1, 2, 2, 3, 2, 2, 3]), (100, [6, 7, 8, 9, 10, 10, 11, 12, 13, 14])],
)
def test_each_part_of_a_replicate_holds_one_future(samples: int, sizes: list[int]) -> None:
    assert replicates(samples) == sizes
    numbers = uniforms(MODEL, 50, samples, generator()).double().numpy()
    assert numbers.shape == (1, 50, samples)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    for part in np.split(numbers[0], np.cumsum(sizes)[:-1], -1):
        n = part.shape[-1]
        np.testing.assert_array_equal(np.sort(np.floor(part * n)), np.broadcast_to(np.arange(n), (50, n)))


def test_few_futures_are_drawn_freely() -> None:
    """One for each replicate: the generator's own numbers, as training asks for them, one of each context."""
    for samples in (1, REPLICATES):
        free = torch.rand((1, 6, samples), generator=generator(4))
        assert torch.equal(uniforms(MODEL, 6, samples, generator(4)), free)


def test_each_number_is_uniform_and_those_of_two_replicates_are_independent() -> None:
    numbers = uniforms(MODEL, 20_000, 100, generator())[0].numpy()
    for place in (0, 9, 57, 99):
        assert stats.kstest(numbers[:, place], "uniform").pvalue > 1e-3
    for one, other in ((0, 6), (35, 99)):
        assert abs(np.corrcoef(numbers[:, one], numbers[:, other])[0, 1]) < 4 / 20_000**0.5
    within = np.corrcoef(numbers[:, 86], numbers[:, 99])[0, 1]  # of 14: strata of two are two different ones of them
    assert within == pytest.approx(-(1 - 1 / 14**2) / 13, abs=4 / 20_000**0.5)


def test_codes_of_a_future_are_independent() -> None:
    model = OccupancyTransformer(OccupancyConfig(5, 3, n_layer=1, n_head=2, width=8))
    numbers = uniforms(model, 20_000, 40, generator()).flatten(1).numpy()
    assert numbers.shape == (3, 800_000)
    found = np.corrcoef(numbers)[np.triu_indices(3, 1)]
    assert np.abs(found).max() < 4 / 800_000**0.5


def exact_variance(law: np.ndarray, n: int) -> float:
    """Of the mean reward of n futures of a law (S,), of which one is in each nth: the mean of what is left in them."""
    upper, each = np.append(law[:-1].cumsum(), 1.0), np.arange(n)[:, None]
    inside = np.minimum(upper, (each + 1) / n) - np.maximum(upper - law, each / n)
    within = n * np.clip(inside, 0.0, None)
    return float((within @ REWARD**2 - (within @ REWARD) ** 2).mean() / n)


@pytest.mark.parametrize("samples", [40, 100, 400])
def test_means_vary_less_and_their_standard_error_says_by_how_much(samples: int) -> None:
    """Two thousand means of each state of a ring, whose law is known."""
    law, count = occupancy(ring(), GAMMA), 2000
    states = torch.arange(S).repeat_interleave(count)[:, None]
    futures = sample_futures(MODEL, states, None, samples, generator())
    found = from_samples(REWARD[futures[..., 0].numpy()], gamma=0.0, level=0.9)
    exact = np.repeat(law @ REWARD, count)
    sizes = replicates(samples)
    variance = sum((n / samples) ** 2 * np.array([exact_variance(p, n) for p in law]) for n in sizes)
    alone = (law @ REWARD**2 - (law @ REWARD) ** 2) / samples  # of as many independent futures
    assert variance.mean() < {40: 0.5, 100: 0.15, 400: 0.03}[samples] * alone.mean()
    off = (found.mean - exact).reshape(S, count)
    assert (np.abs(off.mean(1)) < 4 * np.sqrt(variance / count)).all()
    assert np.square(off).mean() == pytest.approx(variance.mean(), rel=0.05)
    assert 1.0 < np.square(found.stderr).mean() / variance.mean() < 1.2  # small replicates vary more than their share
    covered = ((found.low <= exact) & (found.high >= exact)).mean()
    print(
        f"{samples} samples: variance {variance.mean() / alone.mean():.3f} of independent ones, covered {covered:.3f}"
    )
    assert covered == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("samples", [40, 100, 400])
def test_intervals_cover_where_a_value_hangs_on_end(samples: int) -> None:
    """Reward 1 of all futures but END, whose probability is another one for each state."""
    ends, count = np.arange(0.04, 0.97, 0.0155), 400  # multiples of .1, .125 and so on are nearly there
    states = len(ends)
    table = np.zeros((1, states, states + 1))
    table[0, :, 0], table[0, :, -1] = 1.0 - ends, ends
    asked = torch.arange(states).repeat_interleave(count)[:, None]
    futures = sample_futures(OccupancyTable(table).network, asked, None, samples, generator())
    found = from_samples((futures[..., 0] != states).double().numpy(), gamma=0.0, level=0.9)
    exact = 1.0 - np.repeat(ends, count)
    covered = ((found.low <= exact) & (found.high >= exact)).reshape(states, count).mean(1)
    print(
        f"{samples} samples: covered {covered.mean():.3f}, least {covered.min():.3f} (END {ends[covered.argmin()]:.3f})"
    )
    assert 0.88 < covered.mean() < 0.94
    assert covered.min() > 0.7
