"""What the value head regresses on, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import episodes_of
from torch import Tensor

from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    Condition,
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    ValueHead,
    n_step_returns,
    train_occupancy,
)
from voc_rl.occupancy.batches import Batch, StepInputs
from voc_rl.occupancy.goals import BatchReturns, Returns, returns_of
from voc_rl.occupancy.training import OccupancyTrainee

# the first ends, the second is cut
DATASET = episodes_of([np.array([0.0, 1, 2, 3]), np.array([0.0, 5, 7])], [True, False])
CODES = torch.tensor([[0], [1], [2], [0], [1], [2], [0]])
MEAN_REWARD = 18 / 5  # the rewards of first rows do not count


def test_the_loss_weighs_episodes_and_bootstraps_by_hand() -> None:
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(3, 1, n_layer=1, n_head=1, width=8))
    head = ValueHead(8, hidden=4, members=2)
    config = OccupancyTraining(gamma=0.5, n=2, loop=LoopConfig(steps=5, batch_size=2))
    own = Returns(head, DATASET, config.gamma, n_step_returns(DATASET, config.gamma, 2), 0)
    trainee = OccupancyTrainee(model, head, DATASET, CODES, None, config, 0, own)
    assert float(head.bias_value) == pytest.approx(MEAN_REWARD)
    torch.testing.assert_close(own.values, torch.full((7, 2), MEAN_REWARD))
    own.values = torch.arange(14.0).view(7, 2)
    with torch.no_grad():
        head.weight_3.normal_()
        context = torch.randn(3, 8)
        rows = np.array([0, 1, 4])
        at = torch.from_numpy(rows)
        batch = Batch(rows, at, CODES[at][:, None], Condition())
        shown = torch.ones(len(rows), dtype=torch.bool)
        inputs = StepInputs(CODES[at], batch.futures, shown, Condition(), goals=own.of(batch))
        found = trainee._head_loss(replace(inputs, weights=own.weights_of(batch, None)), context)
        nowhere = replace(inputs, weights=own.weights_of(batch, nothing=shown))
        assert trainee._head_loss(nowhere, context) == 0
        # row 0: two steps, then the value of row 2; row 1: two steps to the termination; row 4: two steps to the cut
        goals = torch.stack([
            0.5 * (1 + 0.5 * 2) + 0.25 * own.values[2],
            torch.tensor([0.5 * (2 + 0.5 * 3)] * 2),
            0.5 * (5 + 0.5 * 7) + 0.25 * own.values[6],
        ])  # fmt: skip
        weights = own.weights[[0, 0, 1]]
        expected = (((head(context) - goals) / MEAN_REWARD) ** 2 * weights).mean()
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(own.weights[0], own.weights[1])


def slow(rows: np.ndarray, condition: Condition) -> Tensor:
    """Two members' values that tell which row, and which discount, was asked."""
    gamma = 0.0 if condition.gamma is None else condition.gamma
    value = torch.from_numpy(rows).float() + gamma
    return torch.stack([value, -value], 1)


def test_values_are_renewed_where_returns_continue() -> None:
    goals = Returns(ValueHead(8, members=2), DATASET, 0.5, n_step_returns(DATASET, 0.5, 2), 0)
    assert goals.made(np.arange(2), 0.5, Condition(), slow) is None
    goals.renew(slow)
    # nothing continues at the first two rows of either episode
    expected = [[m, m] if row in (0, 1, 4, 5) else [row, -row] for row in range(7) for m in [MEAN_REWARD]]
    torch.testing.assert_close(goals.values, torch.tensor(expected))


@pytest.mark.parametrize(
    ("rows", "ends", "n", "weight"),
    [(400, False, 40, 0.0355), (400, False, 20, 0.136), (20, False, 40, 0.4097), (20, True, 40, 0.0)],
)
def test_values_that_weigh_much_are_of_the_moment(rows: int, ends: bool, n: int, weight: float) -> None:
    """They do behind few steps, and at the cuts of short episodes, however large n is."""
    dataset, config = episodes_of([np.zeros(rows)] * 2, [ends] * 2), OccupancyTraining(gamma=0.9)
    contexts = np.flatnonzero((dataset.steps_left > 0) | dataset.terminal)
    assert float(n_step_returns(dataset, 0.9, n).weight[contexts].mean()) == pytest.approx(weight, abs=1e-3)
    goals = returns_of(ValueHead(8, members=2), dataset, contexts, config, n, 0)
    assert isinstance(goals, Returns if weight <= 0.05 else BatchReturns)


@pytest.mark.parametrize(("batch_size", "refill", "kept"), [(361, 4, True), (360, 4, False), (1444, 1, True)])
def test_values_of_many_rows_are_not_kept(batch_size: int, refill: int, kept: bool) -> None:
    """To renew values of 72,200 rows costs twice what 100 steps' batches of 361 ask for. Parts change nothing."""
    dataset = episodes_of([np.zeros(401)] * 200, [False] * 200)
    for parts in (1, batch_size):
        loop = LoopConfig(steps=5, batch_size=batch_size, accumulate=parts)
        config = OccupancyTraining(gamma=0.9, refill=refill, loop=loop)
        goals = returns_of(ValueHead(8, members=2), dataset, np.flatnonzero(dataset.steps_left > 0), config, 40, 0)
        assert isinstance(goals, Returns if kept else BatchReturns)


@pytest.mark.parametrize(("n", "rows"), [(1, 60), (5, 60), (None, 60), (None, 8)])
def test_the_head_learns_what_lies_beyond_n(n: int | None, rows: int) -> None:
    """Two kinds of episodes that pay always or never: (1 - gamma) V is 0 and 1, whatever n is and where they are
    cut."""
    kinds = np.arange(20) % 2
    dataset = episodes_of([np.r_[0.0, np.full(rows - 1, float(kind))] for kind in kinds], [False] * 20)
    codes = torch.from_numpy(np.repeat(kinds, rows))[:, None]
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(2, 1, n_layer=1, n_head=1, width=16))
    training = OccupancyTraining(gamma=0.9, n=n, loop=LoopConfig(steps=400, batch_size=32, learning_rate=4e-3))
    model, head = train_occupancy(model, ValueHead(16, hidden=16, members=2), dataset, codes, None, training)
    assert head is not None
    with torch.no_grad():
        found = head(model.last(torch.tensor([[0], [1]]), None)).mean(1)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), atol=0.1, rtol=0.0)


def test_returns_at_discounts_of_their_own() -> None:
    config = OccupancyTraining(gamma=0.5, gammas=(0.2, 0.8))
    goals = returns_of(ValueHead(8, members=2), DATASET, np.arange(7), config, 2, 0)
    assert isinstance(goals, BatchReturns)
    rows, gamma = np.array([0, 0, 1, 4]), np.array([0.2, 0.8, 0.5, 0.4])
    condition = Condition(gamma=torch.from_numpy(gamma.astype(np.float32)))
    made = goals.made(rows, gamma, condition, slow)
    expected = torch.tensor([
        [0.8 * (1 + 0.2 * 2) + 0.04 * s * 2.2 for s in (1, -1)],
        [0.2 * (1 + 0.8 * 2) + 0.64 * s * 2.8 for s in (1, -1)],
        [0.5 * (2 + 0.5 * 3)] * 2,
        [0.6 * (5 + 0.4 * 7) + 0.16 * s * 6.4 for s in (1, -1)],
    ])  # fmt: skip
    torch.testing.assert_close(made, expected)
    at = torch.from_numpy(rows)
    assert goals.of(Batch(rows, at, CODES[at][:, None], condition, made)) is made
