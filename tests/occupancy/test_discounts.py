"""One network for a range of discounts, against what it has to say at each of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from chains import episodes_of, occupancy, ring, total_variation, values
from rings import REWARD, S, check, distribution, empirical, loop, ring_data, trained
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    Condition,
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    PolicyTraining,
    ValueHead,
    base_gamma,
    discount_condition,
    draw_targets,
    n_step_returns,
    train_policies,
)
from voc_rl.occupancy.contexts import Prefix
from voc_rl.occupancy.discounts import AT_END, climb, draw_gammas
from voc_rl.occupancy.stitching import StitchedChain, draw_along
from voc_rl.occupancy.training import OccupancyTrainee

RANGE = (0.5, 0.9)
ASKED = (0.5, 0.7, 0.9)


def test_one_network_knows_every_discount() -> None:
    """By the bounds of a network of one discount, which its answers for another discount do not meet."""
    dataset, states = ring_data(2000)
    config = OccupancyTraining(gamma=0.7, gammas=RANGE, ema=0.993, futures=16, loop=loop(600, 8e-3, 512))
    model, _ = trained(dataset, states.reshape(-1, 1), config, width=32)
    found = {gamma: distribution(model, gamma) for gamma in ASKED}
    for gamma in ASKED:
        check(found[gamma], ring(), gamma)
    for gamma, other in ((0.5, 0.7), (0.7, 0.9), (0.9, 0.5)):
        with pytest.raises(AssertionError):
            check(found[gamma], ring(), other)


@pytest.mark.slow
def test_one_step_targets_climb() -> None:
    """Transitions alone: what large discounts know comes up the ladder, without which .9 is off by twice the bound."""
    dataset, states = ring_data(400)
    config = OccupancyTraining(
        gamma=0.7, gammas=RANGE, n=1, ema=0.98, futures=16, refill=4, loop=loop(800, 6e-3, 512)
    )  # fmt: skip
    model, _ = trained(dataset, states.reshape(-1, 1), config, width=32)
    for gamma in ASKED:
        check(distribution(model, gamma), empirical(states), gamma)


def test_the_head_knows_every_discount() -> None:
    """From returns of ten steps, so that at gamma .9 a third of every goal is the head's own."""
    dataset, states = ring_data(2000)
    config = OccupancyTraining(
        gamma=0.7, gammas=RANGE, n=10, ema=0.99, futures=1, refill=4, loop=loop(600, 5e-3, 512)
    )  # fmt: skip
    model, head = trained(dataset, states.reshape(-1, 1), config, head=True, width=32)
    assert head is not None
    exact = {gamma: values(ring(), REWARD, gamma) for gamma in ASKED}
    for gamma in ASKED:
        with torch.no_grad():
            last = model.prefix(torch.arange(S)[:, None], condition=discount_condition(model, gamma, S)).last
            found = head(last).mean(1).double().numpy() / (1 - gamma)
        error = {other: np.abs(found - V).max() / np.ptp(V) for other, V in exact.items()}
        print(f"head at gamma {gamma}: {error[gamma]:.4f} of max V - min V")
        assert error.pop(gamma) < 0.03
        assert min(error.values()) > 0.15


class AnyDiscount(torch.nn.Module):
    """An exact target network: the occupancy of the ring, or END, at the discount that each context is told."""

    drops, memory = True, None  # sampled by the slow path

    def __init__(self) -> None:
        super().__init__()
        self.codes = torch.nn.Embedding(1, 4)  # where the network is, and its type of number
        self.config = OccupancyConfig(S, 1, width=4, gammas=RANGE)
        P = 0.95 * torch.from_numpy(ring())
        self.P = torch.nn.functional.pad(torch.cat([P, torch.full((S, 1), 0.05)], 1), (0, 0, 0, 1))
        self.P[S, S] = 1.0
        self.told: list[Tensor] = []

    def exact(self, gamma: float) -> np.ndarray:
        return occupancy(self.P.numpy(), gamma)

    def prefix(self, context: Tensor, features: Tensor | None = None, condition: Condition | None = None) -> Prefix:
        assert condition is not None
        assert condition.gamma is not None
        gamma = condition.gamma.double()[:, None, None]
        self.told.append(condition.gamma)
        law = (1 - gamma) * self.P @ torch.linalg.inv(torch.eye(S + 1, dtype=torch.double) - gamma * self.P)
        none = torch.zeros(len(context), 4, 0, 1)
        return Prefix([none], [none], law[torch.arange(len(context)), context[:, 0]].log())

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_the_ladder_is_exact() -> None:
    """Samples at a discount, from samples at a smaller one; at most half of them go on at the discount itself."""
    count = 40_000
    for gamma, below in ((0.9, 0.8), (0.7, 0.5), (0.5, 0.5)):
        table = AnyDiscount()
        condition = Condition(gamma=torch.full((count,), gamma))
        found = climb(
            cast(OccupancyTransformer, table), torch.full((count, 1), 3), None, torch.Generator().manual_seed(0),
            condition, count, slice(0, count),
        )  # fmt: skip
        law = np.bincount(found[:, 0].numpy(), minlength=S + 1) / count
        assert total_variation(law, table.exact(gamma)[3]) < 0.012
        assert float(table.told[0][0]) == pytest.approx(below)
        if gamma > below:
            assert total_variation(law, table.exact(below)[3]) > 0.1
            share = (gamma - below) / (1 - below) * (1 - table.exact(below)[3, S])
            assert len(table.told[1]) / count == pytest.approx(share, abs=0.01)
            assert float(table.told[1][0]) == pytest.approx(gamma)
        else:
            assert len(table.told) == 1


def test_a_share_of_the_ladder_is_that_of_the_whole() -> None:
    """Processes that share the contexts draw what one would have drawn for them."""
    context, condition = torch.arange(S)[:, None], Condition(gamma=torch.linspace(0.5, 0.9, S))

    def drawn(own: slice) -> Tensor:
        model = cast(OccupancyTransformer, AnyDiscount())
        generator = torch.Generator().manual_seed(0)
        return climb(model, context[own], None, generator, condition[own], S, own)

    whole = drawn(slice(0, S))
    assert torch.equal(torch.cat([drawn(slice(0, 5)), drawn(slice(5, S))]), whole)


def test_discounts_are_drawn_by_their_horizon() -> None:
    found = draw_gammas((0.5, 0.99), 100_000, np.random.default_rng(0))
    assert (found.min(), found.max()) == (0.5, 0.99)
    for end in (0.5, 0.99):
        assert (found == end).mean() == pytest.approx(AT_END, abs=0.005)
    horizon = np.log(1 / (1 - found[(found > 0.5) & (found < 0.99)]))
    counts = np.histogram(horizon, 10, (math.log(2), math.log(100)))[0] / len(horizon)
    np.testing.assert_allclose(counts, 0.1, atol=0.006)


def test_every_row_has_its_own_discount() -> None:
    """Targets and returns of rows at discounts of their own: those of each discount alone."""
    rng = np.random.default_rng(0)
    dataset = episodes_of([rng.normal(size=9), rng.normal(size=300)], [True, False])
    rows, gamma = np.array([2, 7, 20, 100, 305]), np.array([0.5, 0.9, 0.0, 0.8, 0.95])
    returns = n_step_returns(dataset, gamma, 4, rows)
    for i, row in enumerate(rows):
        alone = n_step_returns(dataset, float(gamma[i]), 4)
        for name in ("partial", "weight", "bootstrap"):
            assert getattr(returns, name)[i] == pytest.approx(getattr(alone, name)[row], rel=1e-6)
    targets = draw_targets(dataset, rows, gamma, 4, 40_000, rng)
    np.testing.assert_allclose((targets.row == rows[:, None] + 1).mean(1), 1 - gamma, atol=0.01)
    bootstrapped = (targets.bootstrap >= 0).mean(1)  # row 2 has six steps left, 7 one and then its end, 305 three
    np.testing.assert_allclose(bootstrapped, [0.5**4, 0.0, 0.0, 0.8**4, 0.95**3], atol=0.01)
    chain = StitchedChain(np.minimum(np.arange(309)[:, None] + 1, 308), np.zeros((309, 1)), dataset.terminal)
    nobody, arrival = np.zeros(5, int), chain.arrival[None]
    followed = draw_along(arrival, dataset.terminal, nobody, rows, nobody > 0, 40_000, gamma, rng)
    np.testing.assert_allclose((followed == rows[:, None] + 1).mean(1), 1 - gamma, atol=0.01)
    own = draw_along(arrival, dataset.terminal, nobody, rows, nobody > 0, 40_000, 0.3, rng)
    np.testing.assert_allclose((own == rows[:, None] + 1).mean(1), 0.7, atol=0.01)
    with pytest.raises(VOCError, match="gamma is 1"):
        draw_targets(dataset, rows, np.array([0.5, 0.9, 0.0, 0.8, 1.0]), 4, 1, rng)


def sizes(gammas: tuple[float, float] | None = RANGE) -> OccupancyConfig:
    return OccupancyConfig(S, 1, gammas=gammas, n_layer=1, n_head=2, width=16, null_context=True)


def test_inputs_of_a_step_hold_the_discounts() -> None:
    """As tensors of the same shapes at every step, which a captured step copies into place."""
    dataset, states = ring_data(400)
    training = OccupancyTraining(gamma=0.7, gammas=RANGE, refill=2, loop=LoopConfig(steps=8, batch_size=32))
    trainee = OccupancyTrainee(
        OccupancyTransformer(sizes()), ValueHead(16, hidden=8), dataset, torch.from_numpy(states.reshape(-1, 1)), None,
        training, 0,
    )  # fmt: skip
    steps = [trainee.prepare(step, torch.Generator().manual_seed(step)) for step in range(4)]
    assert len({tuple(part.shape for part in inputs.tensors()) for inputs in steps}) == 1
    for inputs in steps:
        assert inputs.condition.gamma is not None
        assert any(part is inputs.condition.gamma for part in inputs.tensors())
        assert inputs.condition.gamma.shape == (32,)
        assert len(inputs.condition.gamma.unique()) > 10
        copied = inputs[slice(3, 9)].copy().condition.gamma
        assert copied is not None
        assert torch.equal(copied, inputs.condition.gamma[3:9])


def test_nothing_has_no_discount() -> None:
    """The law of all rows is the same whatever the discount."""
    torch.manual_seed(0)
    model = OccupancyTransformer(sizes()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        context, nowhere = torch.zeros(2, 1, dtype=torch.long), torch.ones(2, dtype=torch.bool)
        gamma = Condition(gamma=torch.tensor(RANGE))
        blank = model.prefix(context, condition=gamma, nothing=nowhere).last
        torch.testing.assert_close(blank, model.prefix_of_nothing().last.expand(2, -1))
        shown = model.prefix(context, condition=gamma).last
        assert (shown[0] - shown[1]).abs().max() > 0.01


def test_what_does_not_fit_is_refused() -> None:
    model, plain = OccupancyTransformer(sizes()).eval(), OccupancyTransformer(sizes(None)).eval()
    assert not any("discounts" in name for name in plain.state_dict())  # files of before load unchanged
    context = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(VOCError, match=r"reads a discount, 0\.5 to 0\.9"):
        model.prefix(context)
    with pytest.raises(VOCError, match=r"Discounts 0\.7 to 0\.95 were asked for"):
        model.prefix(context, condition=Condition(gamma=torch.tensor([0.7, 0.95])))
    with pytest.raises(VOCError, match="knows one alone"):
        plain.prefix(context, condition=Condition(gamma=torch.tensor([0.5, 0.5])))
    for wrong in ((0.9, 0.5), (0.5, 0.5), (0.5, 1.0), (-0.1, 0.5), (0.5,), (0.5, math.nan), "ab"):
        with pytest.raises(VOCError, match="gammas"):
            OccupancyConfig(S, 1, gammas=wrong)  # type: ignore[arg-type]
        with pytest.raises(VOCError, match="gammas"):
            OccupancyTraining(gammas=wrong)  # type: ignore[arg-type]
    with pytest.raises(VOCError, match=r"gamma 0\.95 is outside gammas"):
        OccupancyTraining(gamma=0.95, gammas=RANGE)
    for gamma, hops, said in ((0.4, True, "0.5 to 0.9 and larger ones"), (0.95, False, "0.5 to 0.9 only")):
        with pytest.raises(VOCError, match=f"answers for gamma {said}, not for {gamma}"):
            base_gamma(RANGE, gamma, hops)
    dataset, states = ring_data(400)
    codes, config = torch.from_numpy(states.reshape(-1, 1)), OccupancyTraining(gamma=0.7, gammas=RANGE)
    with pytest.raises(VOCError, match="they have to be the same"):
        OccupancyTrainee(plain, None, dataset, codes, None, config, 0)
    with pytest.raises(VOCError, match="built for top_k=None, but its training says top_k=2; they have to be the same"):
        OccupancyTrainee(plain, None, dataset, codes, None, OccupancyTraining(gamma=0.7, top_k=2), 0)
    chain = StitchedChain(np.ones((len(dataset), 1), int), np.zeros((len(dataset), 1)), dataset.terminal)
    with pytest.raises(VOCError, match="train without one"):
        train_policies(
            model, ValueHead(16), dataset, codes, None, [chain],
            replace(PolicyTraining(), occupancy=config), values=np.zeros((1, len(dataset))),
        )  # fmt: skip
