"""Values by hops and by density ratios against exact ones: the network is a table of exact occupancies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import occupancy, ring, slow_ring, values
from decisions import LAST as TERMINAL
from decisions import UNIFORM, A, decisions
from decisions import S as STATES
from occupancy_table import OccupancyTable
from scipy import stats
from small import generator
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.occupancy import Condition, OccupancyConfig, OccupancyTransformer, log_probabilities
from voc_rl.occupancy.sampling import end_probability
from voc_rl.values import ValueEstimate, from_weights, future_weights, mve

S = 12
SAMPLES = 4130  # by the tenth of which no probability of the chain is a whole number, else strata give exact means
# how many standard errors of ten replicates are as rare as 4 and 4.5 of a known spread
FAR, FARTHER = stats.t.isf(stats.norm.sf([4.0, 4.5]), 9)
REWARD = np.cos(2 * np.pi * np.arange(S) / S) + (np.arange(S) == 7)


def reward_of(table: np.ndarray) -> torch.Tensor:
    """Rewards of one-token futures from a table (S,), 0 for END."""
    padded = torch.from_numpy(np.append(table, 0.0))
    return lambda futures, features=None: padded[futures[..., 0]]  # type: ignore[return-value]


def ending() -> np.ndarray:
    """The ring, but from state 3 the walk ends with probability .3; (S + 1, S + 1)."""
    Q = np.zeros((S + 1, S + 1))
    Q[:S, :S] = ring()
    Q[3] *= 0.7
    Q[3, S] = 0.3
    Q[S, S] = 1.0
    return Q


@pytest.mark.parametrize(("gamma", "new_gamma"), [(0.5, 0.9), (0.8, 0.95), (0.0, 0.7), (0.9, 0.9)])
@pytest.mark.parametrize("common", [False, True])
def test_hops_with_an_exact_tail_are_exact(gamma: float, new_gamma: float, common: bool) -> None:
    Q = ending()
    model = OccupancyTable(occupancy(Q, gamma)[None, :S])
    V = values(Q, np.append(REWARD, 0.0), new_gamma)[:S]
    exact = torch.from_numpy(V)
    for count in (1, 3):
        found = mve(
            model.network, torch.arange(S)[:, None], None, reward_of(REWARD), gamma, new_gamma, generator(),
            count=count, samples=SAMPLES, tail_value=lambda codes, _: exact[codes[:, 0]], common=common,
        )  # fmt: skip
        assert (np.abs(found.mean - V) < FAR * found.stderr).all()
        assert found.stderr.max() < 0.03 * np.ptp(V)
        assert "model" in found.covers
        assert ("value function behind" in found.covers) == (gamma < new_gamma)


def test_a_wrong_tail_counts_by_its_weight() -> None:
    """A tail of 1 too much moves the value by ((g' - g) / (1 - g))^H, but for the paths that have ended."""
    P, gamma, new_gamma = ring(), 0.5, 0.9
    model = OccupancyTable(occupancy(P, gamma)[None])
    V = torch.from_numpy(values(P, REWARD, new_gamma))

    def mean(shift: float, count: int) -> np.ndarray:
        return mve(
            model.network, torch.arange(S)[:, None], None, reward_of(REWARD), gamma, new_gamma, generator(),
            count=count, samples=50, tail_value=lambda codes, _: V[codes[:, 0]] + shift,
        ).mean  # fmt: skip

    for count in (1, 2, 5):
        np.testing.assert_allclose(mean(1.0, count) - mean(0.0, count), 0.8**count)


def test_without_a_tail_later_hops_are_like_the_last() -> None:
    """V = sum_{n<=H} w_n E r(z^n) / (1 - g') + tail E r(z^H) / (1 - g'), by powers of the occupancy."""
    P, gamma, new_gamma, count = ring(), 0.5, 0.9, 3
    M = occupancy(P, gamma)
    model = OccupancyTable(M[None])
    found = mve(
        model.network, torch.arange(S)[:, None], None, reward_of(REWARD), gamma, new_gamma, generator(),
        count=count, samples=20_000,
    )  # fmt: skip
    hops = [np.linalg.matrix_power(M, n) @ REWARD for n in range(1, count + 1)]
    weights = [0.1 * 0.4 ** (n - 1) / 0.5**n for n in range(1, count + 1)]
    expected = (sum(w * hop for w, hop in zip(weights, hops, strict=True)) + (1 - sum(weights)) * hops[-1]) / 0.1
    assert np.abs((found.mean - expected) / found.stderr).max() < 4.0
    assert "3 hops each" in found.covers
    assert "the last one stands for all later hops, 51.2% of the weight" in found.covers


@pytest.mark.parametrize("tail", [False, True])
def test_hops_go_on_until_the_later_ones_weigh_nothing(tail: bool) -> None:
    """A slow drift from .9 to .99: what comes after five hops is 59 % of the value, and is nothing like them."""
    P, gamma, new_gamma = slow_ring(), 0.9, 0.99
    M, V = occupancy(P, gamma), values(P, REWARD, new_gamma)
    mean = torch.from_numpy(M @ REWARD / (1 - new_gamma))  # what a head of .9 knows: the mean reward one hop on

    def found(count: int | None) -> ValueEstimate:
        return mve(
            OccupancyTable(M[None]).network, torch.arange(S)[:, None], None, reward_of(REWARD), gamma, new_gamma,
            generator(), count=count, samples=2000, tail_value=(lambda codes, _: mean[codes[:, 0]]) if tail else None,
        )  # fmt: skip

    enough = found(None)
    assert np.abs((enough.mean - V) / enough.stderr).max() < 4.0
    assert enough.stderr.max() < 0.03 * np.ptp(V)
    assert "44 hops each" in enough.covers  # .9^44 is the first power below .01
    few = found(4)
    assert np.abs((few.mean - V) / few.stderr).max() > 20.0


def test_the_same_paths_have_less_noise_than_stops() -> None:
    """Counting every hop of a path has a smaller standard error than the reward at one random hop."""
    P, gamma, new_gamma = ring(), 0.5, 0.9
    V = torch.from_numpy(values(P, REWARD, new_gamma))
    found = mve(
        OccupancyTable(occupancy(P, gamma)[None]).network, torch.arange(S)[:, None], None, reward_of(REWARD),
        gamma, new_gamma, generator(), samples=2000, tail_value=lambda codes, _: V[codes[:, 0]],
    )  # fmt: skip
    exact = occupancy(P, new_gamma)
    one_stop = np.sqrt(exact @ REWARD**2 - (exact @ REWARD) ** 2) / (1 - new_gamma) / 2000**0.5
    print(f"standard error of hops over that of stops: {(found.stderr / one_stop).mean():.2f}")
    assert (found.stderr < 0.6 * one_stop).all()


def test_policies_act_on_later_hops() -> None:
    """The first action is the one that is given; then, hop after hop, each context's own policy acts."""
    process, gamma, new_gamma = decisions(), 0.5, 0.9
    tables = np.stack([process.state_occupancy(policy, gamma) for policy in process.policies])
    acted = np.stack([process.occupancy(policy, gamma) for policy in process.policies])
    model = OccupancyTable(tables, acted)
    exact = torch.from_numpy(np.stack([process.values(policy, new_gamma) for policy in process.policies]))
    state, policy = (torch.from_numpy(x.ravel()) for x in np.meshgrid(np.arange(STATES), np.arange(3)))

    def tail(codes: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        return exact[condition.policy, codes[:, 0]]

    for action in (None, 1):
        given = None if action is None else torch.eye(A)[torch.full((len(state),), action)]
        found = mve(
            model.network, state[:, None], None, reward_of(process.reward), gamma, new_gamma, generator(),
            count=3, samples=4000, condition=Condition(action=given, policy=policy), tail_value=tail,
        )  # fmt: skip
        V = exact.numpy()
        if action is not None:
            V = np.stack(
                [process.occupancy(p, new_gamma)[:, action, :STATES] @ process.reward / 0.1 for p in process.policies]
            )
        going = state.numpy() != TERMINAL
        z = (found.mean - V.ravel())[going] / found.stderr[going]
        assert np.abs(z).max() < FARTHER
        assert (found.mean[~going] == 0).all()
        assert np.abs(V[0] - V[2]).max() > 20 * found.stderr.max()


def test_bad_hops() -> None:
    model, context = OccupancyTable(occupancy(ring(), 0.5)[None]).network, torch.zeros(1, 1, dtype=torch.long)
    arguments = (model, context, None, reward_of(REWARD), 0.5)
    with pytest.raises(VOCError, match=r"trained for gamma 0.5; .* not for 0.4"):
        mve(*arguments, 0.4, generator())
    with pytest.raises(VOCError, match="samples is 1"):
        mve(*arguments, 0.9, generator(), samples=1)
    with pytest.raises(VOCError, match="count is 0"):
        mve(*arguments, 0.9, generator(), count=0)
    with pytest.raises(VOCError, match=r"gamma 0.999 .* would take 500 hops on average, and some over 1000"):
        mve(*arguments, 0.999, generator())


# --- density ratios


def rows_of(law: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(law), size=count, p=law)


def test_density_values_are_exact() -> None:
    """Rows of a law of their own, weights from exact tables: values within their error, END at its mass."""
    Q, gamma = ending(), 0.9
    mu = occupancy(Q, gamma)[:S]
    law = np.random.default_rng(0).dirichlet(np.full(S, 3.0))
    V = values(Q, np.append(REWARD, 0.0), gamma)[:S]
    model = OccupancyTable(mu[None], null=law)
    rows = rows_of(law, 20_000, 1)
    prefix = model.network.prefix(torch.arange(S)[:, None])
    weights = future_weights(model.network, prefix, torch.from_numpy(rows)[:, None])
    np.testing.assert_allclose(weights.sum(1), 1 - mu[:, S], rtol=1e-5)
    expected = (mu[:, :S] / law)[:, rows]
    expected *= (1 - mu[:, S:]) / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    found = from_weights(weights, REWARD[rows], gamma)
    assert np.abs((found.mean - V) / found.stderr).max() < 4.0
    assert np.abs(found.mean - V).max() < 0.05 * np.ptp(V)
    plain = REWARD[rows].mean() / (1 - gamma)  # no weights: the mean of the data
    assert np.abs(plain - V).max() > 0.3 * np.ptp(V)
    assert "rows of the data" in found.covers


def test_no_contexts_have_no_density_values() -> None:
    model = OccupancyTable(occupancy(ring(), 0.9)[None], null=np.full(S, 1 / S)).network
    prefix, rows = model.prefix(torch.zeros(0, 1, dtype=torch.long)), torch.arange(60)[:, None] % S
    assert future_weights(model, prefix, rows).shape == (0, 60)
    assert from_weights(future_weights(model, prefix, rows), np.zeros(60), 0.9).mean.shape == (0,)


def test_weights_by_hand() -> None:
    weights = np.zeros((1, 100))
    weights[0, :80] = 0.75 / 80
    rewards = np.arange(100) % 4
    found = from_weights(weights, rewards, 0.5)
    assert found.mean[0] == pytest.approx(0.75 * 1.5 / 0.5)
    # every weight 1/80 of .75: the deviations' mean square is 1.25
    assert found.stderr[0] == pytest.approx(0.75 / 0.5 * (1.25 / 80) ** 0.5)
    assert found.high[0] - found.mean[0] == pytest.approx(1.6448536 * found.stderr[0])
    together = from_weights(weights, rewards, 0.5, groups=np.arange(100) % 4)  # all of an episode's rows are equal
    # off by episode: 20 rows of 1/80 each times (-1.5, -.5, .5, 1.5); four episodes: times 4 / 3
    assert together.stderr[0] == pytest.approx(0.75 / 0.5 * (4 / 3 * (20 / 80) ** 2 * 5.0) ** 0.5)
    assert together.high[0] - together.mean[0] == pytest.approx(2.3533634 * together.stderr[0])  # Student's, 3 degrees
    balanced = from_weights(weights, rewards, 0.5, groups=np.arange(100) // 4)  # and here they cancel
    assert balanced.stderr[0] == pytest.approx(0.0, abs=1e-12)
    for groups in (
        np.zeros(100, int),
        np.arange(100) // 80,
    ):  # one episode, or one with weight, tells nothing of others
        alone = from_weights(weights, rewards, 0.5, groups=groups)
        assert alone.mean == found.mean
        assert np.isnan([alone.stderr[0], alone.low[0], alone.high[0]]).all()


def test_episodes_without_weight_do_not_count() -> None:
    """Per state: all weight on two of ten episodes, alike or as 3 to 1, on all alike, and nothing but END."""
    parts = np.zeros((4, 10))
    parts[0, :2], parts[1, :2], parts[2] = 0.5, (0.75, 0.25), 0.1
    groups, rewards = np.arange(600) // 60, np.repeat(np.arange(10.0), 60)
    found = from_weights(np.repeat(parts / 60, 60, 1), rewards, 0.0, groups=groups)
    np.testing.assert_allclose(found.mean, [0.5, 0.25, 4.5, 0.0])
    # the variance of 0 and 1, or of 0 to 9, times the sum of squares of the parts
    np.testing.assert_allclose(found.stderr**2, [0.5 * 0.5, 0.5 * 0.625, 82.5 / 9 * 0.1, 0.0])
    t = [6.3137515, 21.3618632, 1.8331129, 0.0]  # Student's of 1, .6 and 9 degrees
    np.testing.assert_allclose(found.high - found.mean, t * found.stderr, rtol=1e-6)


def test_a_small_effective_sample_gives_no_number() -> None:
    weights = np.zeros((3, 100))
    weights[0, :51], weights[1, :49] = 1 / 51, 1 / 49  # effective sample sizes 51 and 49; the third has only END
    found = from_weights(weights, np.ones(100), 0.9)
    np.testing.assert_allclose(found.mean, [10.0, np.nan, 0.0])
    assert np.isnan([found.stderr[1], found.low[1], found.high[1]]).all()
    assert "1 of 3 states have no value: effective sample size below 50" in found.covers
    with pytest.raises(VOCError, match=r"effective sample size is 49\.0 of 100 rows, below 50"):
        from_weights(weights[1:2], np.ones(100), 0.9)
    pooled = from_weights(weights[:2].mean(0, keepdims=True), np.ones(100), 0.9)  # the mean value has a number
    np.testing.assert_allclose(pooled.mean, [10.0])


@pytest.mark.parametrize(
    ("weights", "rewards", "said"),
    [
        (np.ones((1, 60)), np.ones(59), "do not fit"),
        (np.ones(60), np.ones(60), "do not fit"),
        (np.ones((1, 60)), np.full(60, np.nan), "NaN or infinity"),
        (np.ones((1, 0)), np.ones(0), "^There are no rows to weigh; give codes and rewards"),
    ],
)
def test_bad_weights(weights: np.ndarray, rewards: np.ndarray, said: str) -> None:
    with pytest.raises(VOCError, match=said):
        from_weights(weights, rewards, 0.9)


def test_groups_of_other_rows() -> None:
    with pytest.raises(VOCError, match=r"^Groups have shape \(5,\); one for each of 60 rows is needed\.$"):
        from_weights(np.ones((1, 60)), np.ones(60), 0.9, groups=np.zeros(5, int))


def test_a_level_that_is_no_confidence() -> None:
    with pytest.raises(VOCError, match="level is 90; a confidence between 0 and 1"):
        from_weights(np.ones((1, 60)), np.ones(60), 0.9, level=90)


@torch.no_grad()
@pytest.mark.parametrize("ends", [True, False])
def test_log_probabilities_sum_to_one(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all 125 futures of three codes, with END or without, in pieces or at once."""
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(5, 3, n_layer=2, n_head=2, width=16, null_context=True, ends=ends))
    for parameter in model.eval().parameters():
        parameter.add_(0.25 * torch.randn(parameter.shape))
    futures = torch.cartesian_prod(*[torch.arange(5)] * 3)[None]
    prefix = model.prefix(torch.randint(5, (4, 3)))
    found = log_probabilities(model, prefix, futures)
    total, end = found.exp().sum(1), end_probability(model, prefix)
    torch.testing.assert_close(total + end, torch.ones(4))
    assert (end > 0.01).all() == ends
    monkeypatch.setattr("voc_rl.occupancy.sampling.LOGITS_AT_ONCE", 4 * 3 * 6 * 7)
    torch.testing.assert_close(log_probabilities(model, prefix, futures), found)
    nothing = model.prefix_of_nothing()
    assert len(nothing) == 1
    assert (nothing.last - prefix.last).abs().max(1).values.min() > 1e-2
    mixed = model.prefix(torch.zeros(2, 3, dtype=torch.long), nothing=torch.tensor([True, False]))
    torch.testing.assert_close(mixed.last[:1], nothing.last)
    torch.testing.assert_close(mixed.last[1:], model.prefix(torch.zeros(1, 3, dtype=torch.long)).last)


def test_no_null_context() -> None:
    model = OccupancyTransformer(OccupancyConfig(5, 1, n_layer=1, n_head=2, width=16))
    assert not any("nothing" in name for name in model.state_dict())  # files of before load unchanged
    with pytest.raises(VOCError, match="without a null context"):
        future_weights(model, model.prefix(torch.zeros(1, 1, dtype=torch.long)), torch.zeros(60, 1))


def test_the_behaviour_is_another_policy() -> None:
    """What the other tests of policies rest on: the behaviour's values are none of theirs."""
    process = decisions()
    V = np.stack([process.values(policy, 0.9) for policy in process.policies])
    assert (np.abs(V - process.values(UNIFORM, 0.9)).max(1) > 0.1 * np.ptp(V)).all()
