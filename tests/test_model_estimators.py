"""A trained VOC's values by hops and by density ratios: a square on a ring, whose values are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import CELLS, exact_values, small_config, write_world

import voc_rl
from voc_rl import VOC, Episodes
from voc_rl.data import arrived_rows
from voc_rl.errors import VOCError

GAMMA = 0.5
World = tuple[Episodes, np.ndarray, VOC]


@pytest.fixture(scope="module", params=[False, True], ids=["codes", "features"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data, the column at each row, and a model with a null context, which reads features or codes alone."""
    folder = tmp_path_factory.mktemp("world")
    columns = write_world(folder, episodes=12, rows=60).ravel()
    dataset = Episodes.open(folder).load_frames()
    config = small_config(GAMMA, quantizer=200, steps=400, reward=300)
    config = replace(config, network=replace(config.network, null_context=True, features=request.param))
    return dataset, columns, voc_rl.train(dataset, config)


def error(mean: np.ndarray, columns: np.ndarray, gamma: float) -> float:
    """Largest error of a column's mean value, as a share of max V - min V."""
    exact = exact_values(gamma)
    found = np.array([mean[columns == c].mean() for c in range(CELLS)])
    return float(np.abs(found - exact).max() / np.ptp(exact))


def test_mve_at_a_larger_discount(world: World) -> None:
    dataset, columns, voc = world
    obs = dataset.observations(np.arange(150))
    found = voc.value(obs, gamma=0.8, estimator="mve", samples=200)
    assert error(found.mean, columns[:150], 0.8) < 0.15
    assert error(found.mean, (columns[:150] + 1) % CELLS, 0.8) > 0.4
    stops = voc.value(obs, gamma=0.8, estimator="sample", samples=200)
    assert (found.stderr < 0.8 * stops.stderr).mean() > 0.9
    assert "paths" in found.covers


def test_mve_at_the_own_discount_is_sampling(world: World) -> None:
    dataset, _, voc = world
    obs = dataset.observations(np.arange(20))
    one, two = (voc.value(obs, estimator=name, samples=50) for name in ("mve", "sample"))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-6)
    np.testing.assert_allclose(one.stderr, two.stderr, rtol=1e-6)
    assert one.covers == two.covers


def test_density_values(world: World) -> None:
    dataset, columns, voc = world
    rows = arrived_rows(dataset)
    with torch.no_grad():
        codes = torch.cat([voc.context(dataset.observations(some))[0] for some in np.array_split(rows, 10)])
    rewards, episodes = dataset.reward[rows], dataset.episode[rows]
    obs = dataset.observations(np.arange(100))
    found = voc.density_value(obs, codes, rewards, groups=episodes)
    known = np.isfinite(found.mean)  # a rare stack of frames may have too few rows that count
    assert known.mean() > 0.9
    assert error(found.mean[known], columns[:100][known], GAMMA) < 0.15
    assert error(found.mean[known], (columns[:100][known] + 1) % CELLS, GAMMA) > 0.4
    other = voc.density_value(obs, codes, 2.0 * rewards + 1.0)  # another reward, nothing trained anew
    np.testing.assert_allclose(other.mean, 2 * found.mean + 1 / (1 - GAMMA), rtol=0.02)
    with pytest.raises(VOCError, match="effective sample size"):
        voc.density_value(obs, codes[:40], rewards[:40])
    with pytest.raises(VOCError, match="call density_value"):
        voc.value(obs, estimator="density")  # type: ignore[arg-type]


def test_the_null_context_is_the_law_of_the_data(world: World) -> None:
    """Codes of the four columns: as likely without context as they are frequent."""
    dataset, _, voc = world
    rows = arrived_rows(dataset)
    codes = voc.context(dataset.observations(rows))[0].long()
    kinds, count = codes.unique(dim=0, return_counts=True)
    prefix = voc.occupancy.prefix_of_nothing()
    found = voc_rl.occupancy.log_probabilities(voc.occupancy, prefix, kinds[None])[0].exp()
    assert 0.5 * (found - count / count.sum()).abs().sum() < 0.1


def test_it_is_saved(world: World, tmp_path: pytest.TempPathFactory) -> None:
    _, _, voc = world
    voc.save(str(tmp_path))
    again = VOC.load(str(tmp_path))
    assert torch.equal(again.occupancy.prefix_of_nothing().last, voc.occupancy.prefix_of_nothing().last)
