"""Roll-outs of the one-step model: exact discounted sums, END, and how many the token budget buys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import CELLS, exact_values, small_config, write_world

from voc_rl.benchmarks.one_step import roll_out, train_one_step
from voc_rl.data import Episodes
from voc_rl.model import VOC
from voc_rl.occupancy import sampling
from voc_rl.quantizers import tokenize
from voc_rl.training import train
from voc_rl.values import horizon

STATES = 5
END = 99
REWARD = torch.tensor([1.0, -2.0, 0.5, 3.0, 7.0])


class Ring(torch.nn.Module):
    """State s goes to s + 1; from ``last`` the episode ends. Counts what it is asked for."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(end_code=END)
        self.last = last
        self.asked: list[tuple[int, int, bool]] = []

    def sample(
        self,
        model: Any,
        context: Tensor,
        features: Tensor | None,
        samples: int,
        generator: torch.Generator,
        noise: Tensor | None,
        condition: Any,
    ) -> Tensor:
        assert model is self
        assert noise is None
        assert condition is None
        self.asked.append((len(context), samples, features is not None))
        # what follows an END is nonsense on purpose: nobody may use it
        code = torch.where(context == END, 0, (context + 1) % STATES)
        code = torch.where(context == self.last, END, code) if self.last is not None else code
        return code[:, None].expand(-1, samples, -1).clone()


def rewards(futures: Tensor) -> Tensor:
    ended = futures[..., 0] == END
    return torch.where(ended, 0.0, REWARD[torch.where(ended, 0, futures[..., 0])])


def rolled(monkeypatch: pytest.MonkeyPatch, gamma: float, budget: int, last: int | None = None) -> tuple[Any, Ring]:
    ring = Ring(last)
    monkeypatch.setattr(sampling, "sample_futures", ring.sample)
    voc: Any = SimpleNamespace(gamma=gamma, rewards=rewards, device=torch.device("cpu"))
    codes = torch.arange(STATES, dtype=torch.int16)[:, None]
    estimate = roll_out(ring, voc, codes, torch.zeros(STATES, 3), budget, torch.Generator())  # type: ignore[arg-type]
    return estimate, ring


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_the_sum_up_to_the_horizon_is_completed(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    estimate, ring = rolled(monkeypatch, gamma, budget=100)
    H = horizon(gamma)
    paid = [[float(REWARD[(s + 1 + k) % STATES]) for k in range(H)] for s in range(STATES)]
    exact = np.average(paid, 1, gamma ** np.arange(H)) / (1 - gamma)  # as if it went on like this for ever
    np.testing.assert_allclose(estimate.mean, exact, rtol=1e-6)
    np.testing.assert_allclose(estimate.stderr, 0, atol=1e-6)
    assert len(ring.asked) == H


def test_nothing_follows_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, _ = rolled(monkeypatch, 0.5, budget=100, last=3)
    H = horizon(0.5)
    for s in range(STATES):
        path = []
        state = s
        while state != 3 and len(path) < H:
            state = (state + 1) % STATES
            path.append(state)
        assert estimate.mean[s] == pytest.approx(sum(0.5**k * float(REWARD[p]) for k, p in enumerate(path)))
    assert estimate.mean[3] == 0.0


@pytest.mark.parametrize(("budget", "count"), [(100, 14), (14, 2), (1, 2), (21, 3), (70, 10)])
def test_the_token_budget(monkeypatch: pytest.MonkeyPatch, budget: int, count: int) -> None:
    """Observations per state: at gamma .5 a roll-out is 7 of them."""
    _, ring = rolled(monkeypatch, 0.5, budget)
    assert ring.asked[0] == (STATES, count, True)  # only the first step sees features
    assert ring.asked[1:] == [(STATES * count, 1, False)] * 6
    assert sum(contexts * samples for contexts, samples, _ in ring.asked) == STATES * count * 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Episodes, np.ndarray, VOC]:
    folder = tmp_path_factory.mktemp("world")
    columns = write_world(folder, episodes=10, rows=50)
    dataset = Episodes.open(folder).load_frames()
    return dataset, columns.ravel(), train(dataset, small_config(0.5, quantizer=100, steps=150, reward=300))


def test_the_trained_model_steps_once(world: tuple[Episodes, np.ndarray, VOC]) -> None:
    """Sampled next observations hold the next column; the VOC's own futures are spread further."""
    dataset, columns, voc = world
    config = small_config(0.5, steps=150)
    codes, features = tokenize(voc.quantizer, dataset)
    model = train_one_step(voc, dataset, (codes, features), config)
    rows = np.flatnonzero(dataset.steps_left > 0)[::7]
    generator = torch.Generator().manual_seed(0)
    drawn = sampling.sample_futures(model, codes[rows].long(), features[rows], 40, generator)
    paid = voc.rewards(drawn).mean(1).numpy()
    expected = np.array([0.1 * (c == CELLS - 1) + 0.9 * (c == CELLS - 2) for c in columns[rows]])
    assert np.abs(paid - expected).mean() < 0.12
    assert (
        np.abs(voc.rewards(voc.futures_of_codes(codes[rows], features[rows], 40)).mean(1).numpy() - expected).mean()
        > 0.12
    )
    values = roll_out(model, voc, codes[rows], features[rows], 100, generator)
    exact = exact_values(0.5)
    found = np.array([values.mean[columns[rows] == c].mean() for c in range(CELLS)])
    assert np.abs(found - exact).max() / np.ptp(exact) < 0.3


def test_one_seed_gives_one_model(world: tuple[Episodes, np.ndarray, VOC]) -> None:
    dataset, _, voc = world
    tokens = tokenize(voc.quantizer, dataset)
    one, two = (train_one_step(voc, dataset, tokens, small_config(0.5, steps=10)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
