"""Shipped actors: their densities against independent formulas, and what they earn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import integrate, stats
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from voc_rl.agents import GaussianActor, load_policy, shipped_policies
from voc_rl.envs import DMControlEnv
from voc_rl.errors import VOCError
from voc_rl.policy import BehaviourPolicy, Policy

STATES = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)


def constant_actor(mean: list[float], std: list[float]) -> GaussianActor:
    """An actor whose Gaussian does not depend on its one-dimensional state."""
    size = len(mean)
    shapes = {"layers.0": (2, 1), "layers.1": (2, 2), "mu": (size, 2), "log_std": (size, 2)}
    tensors = {f"{part}.weight": np.zeros(shape) for part, shape in shapes.items()}
    tensors |= {f"{part}.bias": np.zeros(shape[0]) for part, shape in shapes.items()}
    return GaussianActor({**tensors, "mu.bias": np.array(mean), "log_std.bias": np.log(std)})


@pytest.fixture(scope="module")
def actor() -> GaussianActor:
    return load_policy("walker-walk/step_60000")


def test_log_prob_is_torchs_tanh_gaussian(actor):
    """The network and the density, once more in torch."""
    file = shipped_policies()[actor.name]
    tensors = {name: torch.from_numpy(tensor).double() for name, tensor in load_file(file).items()}
    hidden = torch.from_numpy(STATES).double()
    for layer in ("layers.0", "layers.1"):
        hidden = torch.relu(hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"])
    mean = hidden @ tensors["mu.weight"].T + tensors["mu.bias"]
    log_std = (hidden @ tensors["log_std.weight"].T + tensors["log_std.bias"]).clamp(-20, 2)
    np.testing.assert_allclose(actor.predict(STATES, deterministic=True)[0], torch.tanh(mean), atol=1e-5)
    actions = actor.predict(STATES)[0]
    squashed = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform())
    expected = squashed.log_prob(torch.from_numpy(actions).double())
    np.testing.assert_allclose(actor.log_prob(STATES, actions), expected, rtol=1e-4, atol=1e-4)


def test_density_is_scipys():
    actor = constant_actor([0.7], [0.5])
    points = np.linspace(-0.99, 0.99, 50)
    expected = stats.norm.logpdf(np.arctanh(points), 0.7, 0.5) - np.log(1 - points**2)
    np.testing.assert_allclose(actor.log_prob(np.zeros((50, 1)), points[:, None]), expected, rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.5), (8.0, 2.0), (-9.0, 0.3)])
def test_density_and_the_probability_of_the_edges_sum_to_one(mean, std):
    actor, state = constant_actor([mean], [std]), np.zeros(1)
    last = np.arctanh(1 - 2.0**-24)  # the last float32 below 1, and where rounding up to 1 begins
    halfway = np.arctanh(1 - 2.0**-25)
    # Over u = atanh(a), where the density is smooth up to the edge.
    inside, _ = integrate.quad(
        lambda u: np.exp(actor.log_prob(state, np.tanh([u]))) * (1 - np.tanh(u) ** 2),
        -last,
        last,
        points=[np.clip(mean, -last, last)],
    )
    edges = sum(np.exp(actor.log_prob(state, np.array([edge]))) for edge in (-1.0, 1.0))
    cdf = stats.norm(mean, std).cdf
    rounded_down = cdf(halfway) - cdf(last) + cdf(-last) - cdf(-halfway)
    assert inside + rounded_down + edges == pytest.approx(1, abs=1e-6)


def test_saturated_actions_have_finite_log_probabilities():
    rng = np.random.default_rng(0)
    actor = constant_actor([30.0, -30.0], [1.0, 0.1])
    action, log_prob, policy_id = actor.sample(np.zeros(1), rng)
    assert action.tolist() == [1, -1]
    assert log_prob == pytest.approx(0, abs=1e-9)
    assert policy_id == 0
    other = constant_actor([-30.0, 30.0], [1.0, 0.1]).log_prob(np.zeros(1), action)
    assert np.isfinite(other)
    assert other < -700


def test_sample_says_what_log_prob_says(actor):
    rng = np.random.default_rng(1)
    for state in STATES:
        action, log_prob, _ = actor.sample(state, rng)
        assert action.dtype == np.float32
        assert log_prob == actor.log_prob(state, action)


def test_draws_of_one_pass_are_from_the_density():
    actor = constant_actor([0.7, -0.2], [0.5, 0.3])
    drawn = actor.draws(np.zeros((5, 1)), 1000, np.random.default_rng(4))
    assert drawn.shape == (1000, 5, 2)
    for entry, (mean, std) in enumerate(((0.7, 0.5), (-0.2, 0.3))):
        noise = (np.arctanh(drawn[..., entry].ravel().astype(float)) - mean) / std
        assert stats.kstest(noise, stats.norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1]) < 0.1  # rows and draws have their own noise
    assert abs(np.corrcoef(drawn[:-1, 0, 0], drawn[1:, 0, 0])[0, 1]) < 0.1


def test_predict_is_stable_baselines_for_one_and_many(actor):
    many, state = actor.predict(STATES, deterministic=True)
    assert many.shape == (16, 6)
    assert many.dtype == np.float32
    assert state is None
    one = np.stack([actor.predict(s, deterministic=True)[0] for s in STATES])
    np.testing.assert_allclose(one, many, rtol=1e-6)
    assert isinstance(actor, Policy)
    assert isinstance(actor, BehaviourPolicy)


def test_random_predictions_follow_the_seed_and_leave_numpys_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    states = np.ones(17)
    first, again, other = (load_policy("cheetah-run/step_0", seed).predict(states)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_actors_load_from_a_path_and_pickle(actor, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(shipped_policies()["walker-walk/step_60000"].read_bytes())
    for copy in (load_policy(path), pickle.loads(pickle.dumps(actor))):
        expected = actor.predict(STATES, deterministic=True)[0]
        np.testing.assert_array_equal(copy.predict(STATES, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("walker-walk/step_0", 0, 100),
        ("walker-walk/step_60000", 150, 700),
        ("walker-walk/step_350000", 650, 1000),
        ("cheetah-run/step_0", 0, 50),
        ("cheetah-run/step_350000", 400, 1000),
    ],
)
def test_actors_earn_what_was_measured(name, low, high):
    actor, rng = load_policy(name), np.random.default_rng(0)
    env = DMControlEnv(name.split("/")[0], action_repeat=2)
    state, _ = env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        state, reward, _, over, _ = env.step(actor.sample(state, rng)[0])
        total += reward
    env.close()
    assert low < total < high


def test_both_tasks_ship_the_same_eleven_actors():
    steps = (0, 10000, 20000, 40000, 60000, 80000, 130000, 160000, 200000, 250000, 350000)
    expected = [f"{task}/step_{step}" for task in ("cheetah-run", "walker-walk") for step in steps]
    assert list(shipped_policies()) == expected


def test_bad_files_and_observations_are_refused_in_one_sentence(actor, tmp_path):
    whole = shipped_policies()["walker-walk/step_0"]
    tensors = load_file(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:1000])
    save_file({"mu.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    save_file({**tensors, "mu.bias": np.zeros(3, np.float32)}, tmp_path / "shape.safetensors")
    save_file({**tensors, "mu.bias": np.full(6, np.nan, np.float32)}, tmp_path / "nan.safetensors")
    for name, message in (
        ("cut", "not a whole safetensors file"),
        ("other", "is not an actor: missing"),
        ("shape", "do not fit"),
        ("nan", "NaN"),
        ("none", "No policy"),
    ):
        with pytest.raises(VOCError, match=message) as caught:
            load_policy(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    with pytest.raises(VOCError, match=r"shape \(17,\); the flat state \(24,\)"):
        actor.predict(np.zeros(17))
    with pytest.raises(VOCError, match=r"shape \(5,\); \(6,\) is needed"):
        actor.log_prob(STATES[0], np.zeros(5))
    with pytest.raises(VOCError, match="outside"):
        actor.log_prob(STATES[0], np.full(6, 1.01))
