"""The reward head: exact two-hot targets, a known function learned, and bad rewards refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import episodes_of
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.values.rewards import RewardConfig, RewardHead, check_rewards, fit_reward_head, times_inside


def head_of(low: float, high: float, bins: int) -> RewardHead:
    head = RewardHead(1, 1, RewardConfig(hidden=4, bins=bins))
    head.centres.copy_(torch.linspace(low, high, bins))
    return head


def test_two_hot_by_hand() -> None:
    head = head_of(-1.0, 3.0, 5)  # centres -1, 0, 1, 2, 3
    found = head.two_hot(torch.tensor([-1.0, 3.0, 0.25, 2.0, 1.5]))
    expected = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0.75, 0.25, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0.5, 0.5, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    outside = head.two_hot(torch.tensor([-7.0, 9.0]))
    torch.testing.assert_close(outside, torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]))


def test_the_mean_of_two_hot_is_the_reward() -> None:
    head = head_of(-0.3, 2.1, 51)
    rewards = torch.linspace(-0.3, 2.1, 400)
    weights = head.two_hot(rewards)
    torch.testing.assert_close(weights @ head.centres, rewards, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(400))
    assert weights.min() >= 0
    assert ((weights > 0).sum(1) <= 2).all()


def data(count: int = 2000) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(count, 2, 3, generator=generator) * 2 - 1
    rewards = vectors[:, 0, 0] * vectors[:, 1, 2] + 2 * vectors[:, 0, 1].abs() - 0.5
    return vectors, rewards.numpy()


class Lookup(torch.nn.Module):
    """What ``fit_reward_head`` asks of a quantizer of two tokens; remembers how many rows it was asked for."""

    n_tokens = 2

    def __init__(self, vectors: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codebook = torch.nn.Embedding(7, 3) if vectors is None else torch.nn.Embedding.from_pretrained(vectors)
        self.asked: list[int] = []

    @property
    def code_dim(self) -> int:
        return self.codebook.embedding_dim

    def embed(self, codes: Tensor) -> Tensor:
        self.asked.append(len(codes))
        return self.codebook(codes)


def fitted(vectors: Tensor, rewards: np.ndarray, config: RewardConfig, seed: int = 0) -> RewardHead:
    """The head for rewards (N,) of arrivals at rows whose codes have vectors (N, 2, code_dim)."""
    codes = torch.arange(2 * len(vectors)).view(-1, 2)
    quantizer, dataset = Lookup(vectors.flatten(0, 1)), episodes_of([np.zeros(len(vectors) + 1)], [False])
    codes, rewards = torch.cat([codes[:1], codes]), np.concatenate([rewards[:1], rewards])  # first rows do not count
    return fit_reward_head(quantizer, codes, dataset, rewards, config, seed)  # type: ignore[arg-type]


def test_it_learns_a_known_function() -> None:
    vectors, rewards = data()
    config = RewardConfig(hidden=64, loop=LoopConfig(steps=400, batch_size=256, learning_rate=3e-3))
    head = fitted(vectors[:1500], rewards[:1500], config)
    assert not head.training
    assert head.centres[0] == pytest.approx(rewards[:1500].min())
    assert head.centres[-1] == pytest.approx(rewards[:1500].max())
    with torch.no_grad():
        found = head(vectors.view(20, 100, 2, 3))  # any axes in front
        torch.testing.assert_close(found.flatten(), head(vectors))
    error = np.mean((found.flatten().numpy()[1500:] - rewards[1500:]) ** 2) / rewards[1500:].var()
    print(f"held-out error {error:.4f} of the variance")
    assert error < 0.08
    tiny = fitted(vectors[:1500], 1e-6 * rewards[:1500], config)  # in another unit
    with torch.no_grad():
        torch.testing.assert_close(tiny(vectors) / 1e-6, head(vectors), atol=1e-3, rtol=0)
    assert found.min() >= head.centres[0] - 1e-5
    assert found.max() <= head.centres[-1] + 1e-5


def test_noisy_rewards_give_their_mean() -> None:
    """Cross entropy to two-hot targets: the mean of the rewards of a code, not their mode."""
    vectors = torch.tensor([[[-1.0], [0.0]], [[1.0], [0.0]]]).repeat(2000, 1, 1)
    rng = np.random.default_rng(0)
    rewards = np.where(np.arange(4000) % 2 == 0, rng.random(4000) < 0.2, 2.0 * (rng.random(4000) < 0.7)).astype(float)
    means = [rewards[0::2].mean(), rewards[1::2].mean()]
    config = RewardConfig(hidden=16, loop=LoopConfig(steps=300, batch_size=512, learning_rate=5e-3))
    found = fitted(vectors, rewards, config)(vectors[:2]).detach()
    np.testing.assert_allclose(found.numpy(), means, atol=0.04)


@pytest.mark.parametrize("reward", [0.0, 1.0, -3.0, 1e5])
def test_a_constant_reward(reward: float) -> None:
    vectors, _ = data(50)
    config = RewardConfig(hidden=8, loop=LoopConfig(steps=60, batch_size=32, learning_rate=1e-2))
    found = fitted(vectors, np.full(50, reward), config)(vectors).detach()
    assert found.isfinite().all()
    np.testing.assert_allclose(found.numpy(), reward, atol=2e-3 * max(1.0, abs(reward)))


def test_training_repeats_with_its_seed_alone() -> None:
    vectors, rewards = data(100)
    config = RewardConfig(hidden=8, loop=LoopConfig(steps=5, batch_size=16))
    state = torch.get_rng_state()
    one = fitted(vectors, rewards, config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    two, other = (fitted(vectors, rewards, config, seed=s) for s in (1, 2))
    assert torch.equal(one.body[0].weight, two.body[0].weight)  # type: ignore[arg-type]
    assert not torch.equal(one.body[0].weight, other.body[0].weight)  # type: ignore[arg-type]


def test_vectors_of_codes_are_made_by_the_batch() -> None:
    """And the head is the one that is fitted to the vectors of all rows."""
    quantizer, codes = Lookup(), torch.randint(7, (300, 2), dtype=torch.int16)
    rewards = np.random.default_rng(0).normal(size=300).astype(np.float32)
    dataset = episodes_of([np.zeros(100)] * 3, [False] * 3)
    config = RewardConfig(hidden=8, loop=LoopConfig(steps=20, batch_size=16))
    found = fit_reward_head(quantizer, codes, dataset, rewards, config, seed=3)  # type: ignore[arg-type]
    assert max(quantizer.asked) == 16
    rows = np.flatnonzero(dataset.step_type > 0)
    expected = fitted(quantizer.embed(codes[rows].long()).detach(), rewards[rows], config, seed=3)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert quantizer.codebook.weight.grad is None


def test_what_codes_lose_the_state_they_are_seen_from_tells() -> None:
    """Rewards of a code and of an episode: the features, not the codes, show which episode it is."""
    quantizer, rng = Lookup(), np.random.default_rng(0)
    codes, dataset = torch.from_numpy(rng.integers(7, size=(2000, 2))), episodes_of([np.zeros(50)] * 40, [False] * 40)
    of_episode, of_code = rng.normal(size=40)[dataset.episode], rng.normal(size=7)[codes[:, 0].numpy()]
    rewards, features = of_episode + of_code, torch.from_numpy(5 + 3 * np.stack([of_episode, rng.random(2000)], 1))
    config = RewardConfig(hidden=64, loop=LoopConfig(steps=400, batch_size=128, learning_rate=3e-3), feature_noise=0.05)
    alone = fit_reward_head(quantizer, codes, dataset, rewards, config, seed=3)  # type: ignore[arg-type]
    head = fit_reward_head(
        quantizer, codes, dataset, rewards, config, seed=3, features=features, gamma=0.8  # type: ignore[arg-type]
    )  # fmt: skip
    assert (alone.feature_dim, head.feature_dim, head.training) == (0, 2, False)
    for name, tensor in alone.body.state_dict().items():  # what reads codes alone is the same head, bit for bit
        assert torch.equal(tensor, head.body.state_dict()[name]), name
    later = np.flatnonzero(dataset.steps_left < 47)  # seen from two rows before
    with torch.no_grad():
        vectors = quantizer.embed(codes[later])
        blind, told = head(vectors).numpy(), head(vectors, features[later - 2]).numpy()
        assert torch.equal(alone(vectors, features[later - 2]), head(vectors))  # one that reads none does without
    errors = [((found - rewards[later]) ** 2).mean() / rewards[later].var() for found in (blind, told)]
    assert errors[0] == pytest.approx(of_episode.var() / rewards.var(), abs=0.1)  # all that codes cannot tell
    assert errors[1] < 0.03


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_futures_seen_from_a_state_have_the_law_of_the_occupancy(noise: float) -> None:
    """One code, two kinds of states: where half of the futures end after a step that pays 1, and where nothing pays."""
    quantizer, gamma, last = Lookup(), 0.9, 5
    episodes = [np.array([0.0, 1.0])] * 30 + [np.zeros(last + 1)] * 30
    dataset = episodes_of(episodes, [True] * 30 + [False] * 30)
    at_start = torch.from_numpy(dataset.step_type == 0)[:, None].float()
    config = RewardConfig(
        hidden=16, loop=LoopConfig(steps=400, batch_size=256, learning_rate=3e-3), feature_noise=noise
    )
    head = fit_reward_head(
        quantizer, torch.zeros(len(dataset), 2).long(), dataset, dataset.reward, config, features=at_start, gamma=gamma  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        start, later = head(quantizer.embed(torch.zeros(2, 2).long()), torch.tensor([[1.0], [0.0]])).tolist()
    going = np.arange(1, last + 1)  # steps left at the rows of the long episodes
    mass = (1 - gamma) + 1 - gamma**last  # of what is not END, from the two kinds of starts
    paid = (1 - gamma) / mass
    assert paid == pytest.approx(0.196, abs=0.001)  # and not a half, as of the starts
    if noise == 0:
        assert start == pytest.approx(paid, abs=0.03)
        assert later == pytest.approx(0.0, abs=0.01)
    else:  # which state it is is hardly seen any more
        everywhere = (1 - gamma) / ((1 - gamma) + (1 - gamma**going).sum())
        assert start == pytest.approx(later, abs=0.02)
        assert start == pytest.approx(everywhere, abs=0.02)


def test_times_inside_an_episode() -> None:
    rng = np.random.default_rng(0)
    found = times_inside(0.8, np.full(100_000, 3), rng)
    exact = np.array([1, 0.8, 0.64]) / 2.44
    np.testing.assert_allclose(np.bincount(found, minlength=4)[1:] / 100_000, exact, atol=0.005)
    assert times_inside(0.9, np.full(100_000, 10_000), rng).mean() == pytest.approx(10, abs=0.1)
    left = rng.integers(1, 50, size=1000)
    assert (times_inside(0.99, left, rng) <= left).all()
    assert (times_inside(0.0, left, rng) == 1).all()


def test_episodes_of_one_row_have_no_rewards() -> None:
    dataset = episodes_of([np.zeros(1)] * 2, [False] * 2)
    with pytest.raises(
        VOCError, match=r"^There are no rewards to fit; at least one row that a step arrived at is needed"
    ):
        fit_reward_head(Lookup(), torch.zeros(2, 2).long(), dataset, np.zeros(2), RewardConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_rewards(bad: float) -> None:
    rewards = data(100)[1]
    with pytest.raises(VOCError, match=r"shape \(99,\); one per row, \(100,\)"):
        check_rewards(rewards[1:], 100)
    with pytest.raises(VOCError, match=r"^Rewards are not numbers; one number per row, \(100,\), is needed\.$"):
        check_rewards(np.full(100, "high"), 100)
    rewards[7] = -3e20
    with pytest.raises(VOCError, match=r"as large as 3e\+20, and training takes 1e\+15 .*; divide .* by 3e\+20\.$"):
        check_rewards(rewards, 100)
    rewards[7] = bad
    with pytest.raises(VOCError, match="Rewards hold NaN or infinity"):
        check_rewards(rewards, 100)


@pytest.mark.parametrize(
    ("features", "gamma", "words"),
    [
        (torch.zeros(4, 2), None, "Features and the discount of futures belong together"),
        (None, 0.5, "Features and the discount of futures belong together"),
        (torch.zeros(5, 2), 0.5, "5 rows of features do not fit 4 rows of data"),
        (torch.full((4, 2), torch.nan), 0.5, "finite ones of each of the 4 rows"),
    ],
)
def test_bad_features(features: Tensor | None, gamma: float | None, words: str) -> None:
    dataset, quantizer = episodes_of([np.zeros(4)], [False]), Lookup()
    with pytest.raises(VOCError, match=words):
        fit_reward_head(
            quantizer, torch.zeros(4, 2).long(), dataset, np.zeros(4), RewardConfig(), features=features, gamma=gamma  # type: ignore[arg-type]
        )  # fmt: skip
