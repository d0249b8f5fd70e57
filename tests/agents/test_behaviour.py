"""Noise and mixtures: densities against scipy's, and how often members switch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from scipy import stats

from voc_rl.agents import Deterministic, EpsilonGreedy, NoisyPolicy, StepMixture, StickyMixture, load_policy
from voc_rl.errors import VOCError
from voc_rl.policy import BehaviourPolicy, Policy

STATES = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
ACTOR = load_policy("walker-walk/step_60000")


@pytest.mark.parametrize(("sigma", "epsilon"), [(0.3, 0.0), (0.3, 0.25), (0.05, 1.0)])
def test_noise_has_the_density_of_the_mixture(sigma, epsilon):
    policy = NoisyPolicy(ACTOR, sigma, epsilon)
    assert isinstance(policy, Policy)
    assert isinstance(policy, BehaviourPolicy)
    rng = np.random.default_rng(2)
    means = ACTOR.predict(STATES, deterministic=True)[0].astype(float)
    outside = 0
    for state, mean in zip(STATES, means, strict=True):
        action, log_prob, policy_id = policy.sample(state, rng)
        gaussian = stats.multivariate_normal(mean, sigma**2 * np.eye(6)).pdf(action)
        uniform = stats.uniform(-1, 2).pdf(action).prod()
        expected = np.log((1 - epsilon) * gaussian + epsilon * uniform)
        assert log_prob == pytest.approx(expected, rel=1e-5)
        assert policy.log_prob(state, action) == log_prob
        assert policy_id == 0
        outside += int((np.abs(action) > 1).any())
    assert (outside > 0) == (epsilon < 1)  # unclipped, as it must be for its density


@pytest.mark.parametrize(
    ("shape", "looks_at"), [((24,), "state"), ((9, 84, 84), "pixels"), ((2, 3), None), (None, None)]
)
def test_an_agent_looks_at_what_its_space_is(shape, looks_at):
    """As Stable-Baselines3's do, which have a space and no word for it."""
    agent = SimpleNamespace(predict=ACTOR.predict, observation_space=SimpleNamespace(shape=shape))
    if looks_at is None:
        with pytest.raises(VOCError, match="has no attribute `observation`; give it one, 'state' or 'pixels'"):
            NoisyPolicy(agent, 0.1)
    else:
        assert NoisyPolicy(agent, 0.1).observation == looks_at


def test_share_and_spread_of_the_draws_are_as_stated():
    rng, policy = np.random.default_rng(0), NoisyPolicy(ACTOR, sigma=0.01, epsilon=0.25)
    mean = ACTOR.predict(STATES[0], deterministic=True)[0]
    away = np.array([policy.sample(STATES[0], rng)[0] - mean for _ in range(4000)])
    near = np.abs(away).max(1) < 0.08  # 8 standard deviations; a uniform action has one chance in 10^8
    assert 1 - near.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert away[near].std() == pytest.approx(0.01, rel=0.03)


class Numbers:
    """Chooses between three actions, 4, 5 and 6, by the first entry of the state."""

    observation, action_space = "state", Discrete(3, start=4)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return 4 + np.int64(np.asarray(observation)[..., 0] > 0) * 2, None


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_noise_of_discrete_actions(epsilon):
    policy, rng = EpsilonGreedy(Deterministic(Numbers()), epsilon, seed=1), np.random.default_rng(0)
    assert isinstance(policy, Policy)
    assert isinstance(policy, BehaviourPolicy)
    states = np.array([[-1.0], [1.0]], np.float32)
    np.testing.assert_array_equal(policy.mode(states), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(policy.predict(states, deterministic=True)[0], [4, 6])
    draws = policy.draws(states, 4000, rng)
    assert draws.dtype == np.float32
    assert set(np.unique(draws)) <= {0.0, 1.0}
    expected = epsilon / 3 + (1 - epsilon) * np.array([[1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(draws.mean(0), expected, atol=4 * np.sqrt(0.25 / 4000))
    assert set(policy.predict(np.repeat(states, 50, 0))[0]) == ({4, 6} if epsilon == 0 else {4, 5, 6})
    action, log_prob, acting = policy.sample(states[1], rng)
    assert action.shape == (3,)
    assert (log_prob, acting) == (pytest.approx(np.log(expected[1, action.argmax()])), 0)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(policy.log_prob(states, np.eye(3)[[0, 0]]), np.log(expected[:, 0]))


def test_noise_is_of_the_kind_of_the_actions():
    with pytest.raises(VOCError, match="EpsilonGreedy is the noise for those"):
        NoisyPolicy(Numbers(), 0.1)
    with pytest.raises(VOCError, match="has the actions None; a Discrete `action_space` is needed"):
        EpsilonGreedy(ACTOR, 0.1)
    with pytest.raises(VOCError, match="epsilon"):
        EpsilonGreedy(Numbers(), 1.5)


def test_noisy_predictions_are_clipped_and_follow_the_seed():
    first, again = (NoisyPolicy(ACTOR, 1.0, 0.1, seed=3).predict(STATES)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (16, 6)
    assert first.dtype == np.float32
    assert np.abs(first).max() == 1
    expected = ACTOR.predict(STATES, deterministic=True)[0]
    np.testing.assert_array_equal(NoisyPolicy(ACTOR, 1.0).predict(STATES, deterministic=True)[0], expected)


def test_mixture_switches_as_often_as_stated_and_names_who_acts():
    members = [load_policy(f"walker-walk/step_{step}") for step in (0, 60000, 350000)]
    mixture, rng = StickyMixture(members, switch=0.1), np.random.default_rng(0)
    assert isinstance(mixture, BehaviourPolicy)
    starts, switches = [], 0
    for _ in range(100):
        mixture.start_episode(rng)
        acting = []
        for state in STATES:
            action, log_prob, policy_id = mixture.sample(state, rng)
            assert log_prob == members[policy_id].log_prob(state, action)
            acting.append(policy_id)
        starts.append(acting[0])
        switches += int((np.diff(acting) != 0).sum())
    chances = 100 * (len(STATES) - 1)  # never before the first step of an episode
    assert switches / chances == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / chances))
    assert np.bincount(starts, minlength=3).min() > 15


def test_descriptions_tell_policies_apart():
    noisy = NoisyPolicy(ACTOR, sigma=0.2, epsilon=0.1)
    assert repr(noisy) == "NoisyPolicy(GaussianActor(walker-walk/step_60000), sigma=0.2, epsilon=0.1)"
    assert repr(StickyMixture([noisy], 0.5)) == f"StickyMixture([{noisy!r}], switch=0.5)"


def test_bad_arguments_are_refused():
    pixels = NoisyPolicy(ACTOR, 0.1)
    pixels.observation = "pixels"
    for make, message in (
        (lambda: NoisyPolicy(ACTOR, sigma=0.0), "sigma is 0.0"),
        (lambda: NoisyPolicy(ACTOR, 0.1, epsilon=1.5), "epsilon is 1.5"),
        (lambda: NoisyPolicy(object(), 0.1), "is no policy"),
        (lambda: StickyMixture([]), "observe nothing"),
        (lambda: StickyMixture([ACTOR, pixels]), r"\['pixels', 'state'\]"),
        (lambda: StickyMixture([ACTOR, object()]), "cannot be a member"),
        (lambda: StickyMixture([ACTOR], switch=2.0), "switch is 2.0"),
    ):
        with pytest.raises(VOCError, match=message):
            make()


class Always:
    """The same action everywhere."""

    observation = "state"

    def __init__(self, action):
        self.action = action

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((*observation.shape[:-1], 2), self.action, np.float32), state


def test_a_step_mixture_has_the_mean_of_its_members_densities_and_their_draws():
    low, high = (NoisyPolicy(Always(a), 0.05) for a in (-0.5, 0.5))
    mixture = StepMixture([low, high])
    states, action = np.zeros((4000, 3), np.float32), np.full((4000, 2), 0.5, np.float32)
    expected = np.log(0.5 * np.exp(low.log_prob(states, action)) + 0.5 * np.exp(high.log_prob(states, action)))
    np.testing.assert_allclose(mixture.log_prob(states, action), expected)
    drawn = mixture.draw(states, np.random.default_rng(0))
    assert drawn.shape == (4000, 2)
    assert abs((drawn[:, 0] > 0).mean() - 0.5) < 0.03
    np.testing.assert_array_equal(drawn[:, 0] > 0, drawn[:, 1] > 0)  # one member acts, in all entries
    np.testing.assert_allclose(np.abs(drawn).mean(), 0.5, atol=0.005)
    np.testing.assert_allclose(mixture.predict(states[0], deterministic=True)[0], 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "policy",
    [
        NoisyPolicy(Always(0.5), 0.2, 0.25),
        StepMixture([NoisyPolicy(Always(-0.5), 0.1), NoisyPolicy(Always(0.5), 0.3)]),
    ],
)
def test_densities_integrate_to_one_and_draws_have_their_moments(policy):
    axis = np.arange(-3, 3, 0.02) + 0.01  # cells do not straddle the edges of the uniform part
    actions = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    states = np.zeros((len(actions), 3), np.float32)
    mass = np.exp(policy.log_prob(states, actions)) * 0.02**2
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    mean = mass @ actions
    covariance = (actions - mean).T @ ((actions - mean) * mass[:, None])
    draws = policy.draws(states[:10_000], 4, np.random.default_rng(0))
    assert draws.shape == (4, 10_000, 2)
    between = np.corrcoef(draws[..., 0]) - np.eye(4)
    assert np.abs(between).max() < 4 / np.sqrt(10_000)  # draws of one row are independent
    drawn = draws.reshape(-1, 2)
    error = 5 / np.sqrt(40_000)  # five standard errors, of spreads below 1
    np.testing.assert_allclose(drawn.mean(0), mean, atol=error * np.sqrt(covariance[0, 0]))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=2 * error * covariance[0, 0])
