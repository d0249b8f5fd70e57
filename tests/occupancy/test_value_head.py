"""The value head: where it starts, and how its members weigh episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import episodes_of, occupancy, ring, total_variation, values, walks
from rings import S, distribution, loop, trained

from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig, optimise
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining, OccupancyTransformer, ValueHead
from voc_rl.occupancy.training import OccupancyTrainee


def test_it_starts_at_the_mean_reward() -> None:
    torch.manual_seed(0)
    head = ValueHead(6, 3, members=4)
    context, features = torch.randn(5, 6), torch.randn(5, 3)
    head.fit_rewards(0.7, 0.7)
    with torch.no_grad():
        torch.testing.assert_close(head(context, features), torch.full((5, 4), 0.7))
        head.weight_3.normal_()
        assert head(context, features).std() > 0.1
        one = head(context, features)
        head.fit_rewards(-1.4, 1.4)  # twice the unit, another start
        torch.testing.assert_close(head(context, features), 2 * (one - 0.7) - 1.4)


def test_bfloat16_leaves_differences_of_values() -> None:
    """Values that differ by a hundredth of the mean reward, as Q of two actions do."""
    torch.manual_seed(0)
    head = ValueHead(32, members=3)
    torch.nn.init.normal_(head.weight_3, std=1e-3)
    head.fit_rewards(1.0, 1.0)
    context = torch.randn(500, 32)
    with torch.no_grad():
        exact = head(context)
        with torch.autocast("cpu", torch.bfloat16):
            found = head(context)
    assert found.dtype == torch.float32
    assert 0.001 < float(exact.std()) < 0.02
    assert float((found - exact).std()) < 0.02 * float(exact.std())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_head_of_centred_rewards_leaves_the_network_its_futures(offset: float) -> None:
    """A wave round the ring whose mean is zero: errors in units of the mean would wreck the trunk. With a thousand on
    top of all rewards, in such units the wave would be too small to be learned."""
    gamma, states = 0.9, walks(ring(), 20, 600)
    wave = np.cos(2 * np.pi * np.arange(S) / S)
    wave -= wave[states[:, 1:]].mean()
    assert abs(wave[states[:, 1:]].mean()) < 1e-6
    wave += offset
    dataset = episodes_of([np.r_[0.0, wave[w[1:]]] for w in states], [False] * len(states))
    config = OccupancyTraining(gamma=gamma, loop=loop(150, 1e-2, batch_size=128))
    model, head = trained(dataset, states.reshape(-1, 1), config, head=True)
    assert head is not None
    distance = total_variation(distribution(model)[:, :S], occupancy(ring(), gamma))
    with torch.no_grad():
        found = head(model.prefix(torch.arange(S)[:, None]).last).mean(1).double().numpy() / (1 - gamma)
    V = values(ring(), wave, gamma)
    error = np.abs(found - V).max() / np.ptp(V)
    print(f"total variation {distance.max():.3f}, value error {error:.3f} of max V - min V")
    assert distance.max() < 0.15
    assert error < 0.15


def test_members_by_plain_matrices() -> None:
    torch.manual_seed(0)
    head = ValueHead(6, 3, hidden=8, members=3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        features = 3 + 2 * torch.randn(50, 3)
        head.fit_features(features)
        head.fit_rewards(0.5, 0.5)
        context = torch.randn(50, 6)
        found = head(context, features)
        x = torch.cat([context, (features - features.mean(0)) / features.std(0)], 1)
        for m in range(3):
            y = torch.nn.functional.gelu(x @ head.weight_1[m] + head.bias_1[m])
            y = torch.nn.functional.gelu(y @ head.weight_2[m] + head.bias_2[m])
            torch.testing.assert_close(found[:, m], 0.5 + 0.5 * (y @ head.weight_3[m])[:, 0], atol=1e-4, rtol=1e-4)
        with pytest.raises(VOCError, match="reads features and was given codes alone; give the features too"):
            head(context)


def test_episode_weights_are_exponential_with_mean_one() -> None:
    head = ValueHead(4, members=5)
    weights = head.episode_weights(4000, np.random.default_rng(0))
    assert weights.shape == (4000, 5)
    assert weights.dtype == torch.float32
    assert weights.min() > 0
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(weights.var()) == pytest.approx(1.0, abs=0.1)
    assert float(torch.corrcoef(weights.T)[0, 1]) == pytest.approx(0.0, abs=0.06)  # members weigh independently


def test_members_follow_the_episodes_they_weigh() -> None:
    """Two kinds of episode with other rewards from the same code: a member's value is its own weighted mean."""
    rewards = [np.array([0.0, 1.0]), np.array([0.0, 3.0])] * 2
    dataset = episodes_of(rewards, [True] * 4)
    codes = torch.tensor([[0], [1]] * 4)
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(2, 1, n_layer=1, n_head=1, width=8))
    head = ValueHead(8, hidden=16, members=4)
    config = OccupancyTraining(gamma=0.0, ema=0.9, loop=LoopConfig(steps=200, batch_size=64, learning_rate=1e-2))
    trainee = OccupancyTrainee(model, head, dataset, codes, None, config, 0)
    optimise(trainee, config.loop, 0, "occupancy")
    assert trainee.target_head is not None
    assert trainee.goals is not None
    with torch.no_grad():
        found = trainee.target_head(trainee.target.prefix(torch.tensor([[0]])).last)[0]
    w = trainee.goals.weights
    expected = (w * torch.tensor([1.0, 3.0, 1.0, 3.0])[:, None]).sum(0) / w.sum(0)
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, atol=0.12, rtol=0)


def test_values_of_a_target_with_dropout_repeat_with_the_seed_alone() -> None:
    """They are asked without dropout, which would take PyTorch's global random numbers."""
    states = walks(ring(), 10, 20)
    dataset = episodes_of([np.r_[0.0, w[1:] / 10] for w in states], [False] * 10)
    config = OccupancyTraining(gamma=0.9, n=1, target_dropout=True, loop=LoopConfig(steps=10, batch_size=16))
    heads = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = OccupancyTransformer(OccupancyConfig(S, 1, n_layer=1, n_head=2, width=16, dropout=0.2))
        head = ValueHead(16, hidden=8, members=2)
        trainee = OccupancyTrainee(model, head, dataset, torch.from_numpy(states.reshape(-1, 1)), None, config, 3)
        torch.manual_seed(seed)
        optimise(trainee, config.loop, 3, "occupancy")
        assert trainee.target.drops  # targets themselves are drawn with it
        heads.append(head.weight_2.detach())
    assert torch.equal(*heads)


def test_slow_copies_stay_averages_however_few_the_steps() -> None:
    dataset = episodes_of([np.array([0.0, 1, 2, 3])], [False])
    codes = torch.tensor([[0], [1], [2], [0]])
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(3, 1, n_layer=1, n_head=1, width=8))
    head = ValueHead(8, hidden=4, members=2)
    trainee = OccupancyTrainee(model, head, dataset, codes, None, OccupancyTraining(loop=LoopConfig(steps=5)), 0)
    assert trainee.target_head is not None
    with torch.no_grad():
        head.bias_2.add_(1.0)
    for step in range(5):
        trainee.after_step(step)
        assert float(trainee.target_head.bias_2.min()) > 0
        assert float(trainee.target_head.bias_2.max()) <= 1
