"""VOC: exact where it can be, and refusals in one sentence."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import values
from small import generator
from worlds import CELLS, SPEC, drift, exact_values, refusal, small_config, write_world

import voc_rl
from voc_rl import VOC, Episodes, ValueEstimate
from voc_rl.quantizers import tokenize
from voc_rl.values import discounted_returns, from_samples

GAMMA = 0.5
CONFIG = small_config(GAMMA, quantizer=200, steps=300, reward=300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Episodes, np.ndarray]:
    folder = tmp_path_factory.mktemp("world")
    columns = write_world(folder, episodes=12, rows=60)
    return Episodes.open(folder).load_frames(), columns


@pytest.fixture(scope="module")
def voc(world: tuple[Episodes, np.ndarray]) -> VOC:
    return voc_rl.train(world[0], CONFIG)


@pytest.fixture
def saved(voc: VOC, tmp_path: Path) -> Path:
    voc.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def obs(world: tuple[Episodes, np.ndarray]) -> np.ndarray:
    return world[0].observations(np.arange(5, 29))


# --- values


def chain_error(estimate: ValueEstimate, columns: np.ndarray, gamma: float) -> float:
    """Largest error of a column's mean value, as a share of max V - min V."""
    exact = exact_values(gamma)
    found = np.array([estimate.mean[columns == c].mean() for c in range(CELLS)])
    return float(np.abs(found - exact).max() / np.ptp(exact))


@pytest.mark.parametrize("estimator", ["head", "sample"])
def test_values_are_those_of_the_chain(voc: VOC, world: tuple[Episodes, np.ndarray], estimator: str) -> None:
    dataset, columns = world
    rows = np.flatnonzero(dataset.steps_left > 0)
    estimate = voc.value(dataset.observations(rows), estimator=estimator, samples=200)  # type: ignore[arg-type]
    assert chain_error(estimate, columns.ravel()[rows], GAMMA) < 0.1
    assert chain_error(estimate, (columns.ravel()[rows] + 1) % CELLS, GAMMA) > 0.5  # nor would any values do


def test_another_reward_is_fitted_to_the_same_model(voc: VOC, world: tuple[Episodes, np.ndarray]) -> None:
    dataset, columns = world
    rows, cell = np.flatnonzero(dataset.steps_left > 0), columns.ravel()
    own = np.array([0.0, 2.0, -1.0, 0.0])  # no column pays what it was logged with
    asked = voc.fit_reward(
        dataset, lambda episodes: np.where(episodes.step_type == 0, np.nan, own[cell]), config=CONFIG.reward
    )
    exact = values(drift(), own, GAMMA)
    found = asked.value(dataset.observations(rows), estimator="sample", samples=200).mean
    by_column = np.array([found[cell[rows] == c].mean() for c in range(CELLS)])
    assert np.abs(by_column - exact).max() < 0.15 * np.ptp(exact)
    assert np.abs(exact_values(GAMMA) - exact).max() > 0.5 * np.ptp(exact)  # nor would the logged reward's do
    assert (asked.occupancy, asked.quantizer) == (voc.occupancy, voc.quantizer)
    assert chain_error(voc.value(dataset.observations(rows), estimator="sample"), cell[rows], GAMMA) < 0.1
    known = asked.fit_reward(dataset, lambda e: e.reward, tokens=tokenize(voc.quantizer, dataset), config=CONFIG.reward)
    for mine, its in zip(known.reward_head.parameters(), voc.reward_head.parameters(), strict=True):
        assert torch.equal(mine, its)  # as training fitted them
    assert "has no value head; use estimator='sample'" in refusal(asked.value, dataset.observations(rows[:2]))
    assert "one per row" in refusal(voc.fit_reward, dataset, lambda episodes: own)
    assert "NaN" in refusal(voc.fit_reward, dataset, lambda episodes: np.full(len(episodes), np.nan))
    assert "reward_fn is ndarray; a function is needed" in refusal(voc.fit_reward, dataset, own)
    few = tokenize(voc.quantizer, dataset.subset([0]))
    said = refusal(voc.fit_reward, dataset, lambda e: e.reward, tokens=few)
    assert "60 rows of codes do not fit 720 rows of data" in said


@pytest.mark.parametrize("asked", [{}, {"estimator": "sample", "samples": 5}, {"gamma": 0.8, "estimator": "mve"}])
def test_rows_of_a_dataset_are_valued_block_by_block(
    voc: VOC, world: tuple[Episodes, np.ndarray], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    dataset, rows = world[0], np.array([3, 70, 5, 200, 3, 90, 17])
    expected = voc.value(dataset.observations(rows), level=0.8, common=True, **asked)
    for at_once in (100, 3):
        monkeypatch.setattr("voc_rl.model.ROWS_AT_ONCE", at_once)
        found = voc.value_of_rows(dataset, rows, level=0.8, common=True, **asked)
        for name in ("mean", "stderr", "low", "high"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3)
        assert (found.level, found.covers) == (0.8, expected.covers)
    one, two = (voc.value_of_rows(dataset, rows, generator=generator(), **asked).mean for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_which_rows_are_valued(voc: VOC, world: tuple[Episodes, np.ndarray]) -> None:
    dataset = world[0]
    returns, known = discounted_returns(dataset, GAMMA)
    found = voc.value_of_rows(dataset).mean
    assert found.shape == (len(dataset),)
    np.testing.assert_allclose(voc.value_of_rows(dataset, known).mean, found[known], rtol=1e-3, atol=1e-3)
    assert np.corrcoef(found[known], returns[known])[0, 1] > 0.6
    assert len(voc.value_of_rows(dataset, [])) == 0
    assert "There is no row 720" in refusal(voc.value_of_rows, dataset, [720])
    single = Episodes.open(dataset.paths[0], stack=1)
    assert "open them with stack=3" in refusal(voc.value_of_rows, single)
    single.spec = replace(single.spec, task="other")
    with pytest.warns(UserWarning, match="trained with task 'square', this data has 'other'"):
        refusal(voc.value_of_rows, single)


def test_larger_gamma_by_composition(voc: VOC, world: tuple[Episodes, np.ndarray]) -> None:
    dataset, columns = world
    rows = np.arange(200)
    estimate = voc.value(dataset.observations(rows), gamma=0.8, estimator="sample", samples=400)
    assert chain_error(estimate, columns.ravel()[rows], 0.8) < 0.15
    own = voc.value(dataset.observations(rows), estimator="sample", samples=400)
    assert chain_error(own, columns.ravel()[rows], 0.8) > 0.5


def test_estimates_have_all_fields(voc: VOC, obs: np.ndarray) -> None:
    for estimator, covers in (("head", "episodes"), ("sample", "sampl")):
        estimate = voc.value(obs, estimator=estimator, samples=50, level=0.8)  # type: ignore[arg-type]
        assert isinstance(estimate, ValueEstimate)
        assert len(estimate) == len(obs)
        for array in (estimate.mean, estimate.stderr, estimate.low, estimate.high):
            assert array.shape == (len(obs),)
            assert array.dtype == np.float64
            assert np.isfinite(array).all()
        assert estimate.level == 0.8
        assert covers in estimate.covers
        assert (estimate.low <= estimate.mean).all()
        assert (estimate.mean <= estimate.high).all()
    wide, narrow = (voc.value(obs, estimator="sample", level=level) for level in (0.95, 0.5))
    np.testing.assert_array_equal(wide.mean, narrow.mean)
    t = 2.262157 / 0.702722  # Student's, of ten replicates
    np.testing.assert_allclose(wide.high - wide.mean, t * (narrow.high - narrow.mean), rtol=1e-5, atol=1e-12)


def test_a_torch_tensor_is_as_good_as_an_array(voc: VOC, obs: np.ndarray) -> None:
    np.testing.assert_array_equal(voc.value(obs).mean, voc.value(torch.from_numpy(obs)).mean)


def test_mirrored_frames_are_copied(voc: VOC, obs: np.ndarray) -> None:
    np.testing.assert_array_equal(voc.value(obs[::-1]).mean, voc.value(obs[::-1].copy()).mean)


@pytest.mark.parametrize("estimator", ["head", "sample", "mve"])
@pytest.mark.parametrize("gamma", [np.float32(GAMMA + 4e-8), GAMMA + 1e-15, GAMMA - 1e-15])
def test_a_discount_off_by_rounding_is_the_own_one(voc: VOC, obs: np.ndarray, estimator: Any, gamma: float) -> None:
    asked, own = (voc.value(obs, g, estimator, samples=5, generator=generator(3)) for g in (gamma, None))
    np.testing.assert_array_equal(asked.mean, own.mean)
    assert torch.equal(voc.sample_futures(obs, 3, gamma), voc.sample_futures(obs, 3))


def test_sampling_repeats_with_a_generator(voc: VOC, obs: np.ndarray) -> None:
    one, two = (voc.value(obs, estimator="sample", generator=generator(1)).mean for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (voc.value(obs, estimator="sample", generator=generator(2)).mean != one).any()
    before = torch.get_rng_state()
    voc.value(obs, estimator="sample")
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's randomness is used up


def test_stored_tokens_have_the_values_of_live_observations(voc: VOC, world: tuple[Episodes, np.ndarray]) -> None:
    dataset = world[0]
    codes, features = tokenize(voc.quantizer, dataset)
    rows = np.arange(40, 140)
    live = dataset.observations(rows)
    np.testing.assert_array_equal(voc.tokens(live), codes[rows].long().numpy())
    stored = voc.value_of_codes(codes[rows], features[rows])
    np.testing.assert_allclose(voc.value(live).mean, stored.mean, rtol=1e-6)
    stored = voc.value_of_codes(codes[rows], features[rows], estimator="sample", generator=generator(3))
    sampled = voc.value(live, estimator="sample", generator=generator(3))
    np.testing.assert_allclose(sampled.mean, stored.mean, rtol=1e-6)
    # one by one as in a batch
    alone = np.concatenate([voc.value(live[i : i + 1]).mean for i in range(5)])
    np.testing.assert_allclose(alone, voc.value(live[:5]).mean, rtol=0.02)


def test_futures_and_tokens(voc: VOC, obs: np.ndarray) -> None:
    futures = voc.sample_futures(obs, 7, generator=generator(3))
    assert futures.shape == (len(obs), 7, voc.quantizer.n_tokens)
    assert futures.dtype == torch.int64
    assert int(futures.max()) <= voc.occupancy.config.end_code
    decoded = voc.quantizer.decode(futures.flatten(0, 1).clamp(max=voc.quantizer.codebook_size - 1))
    assert decoded.shape == (len(obs) * 7, *voc.observation_shape)
    assert decoded.dtype == torch.uint8
    tokens = voc.tokens(obs)
    assert tokens.shape == (len(obs), 2)
    assert tokens.dtype == np.int64
    assert len({tuple(row) for row in tokens}) >= CELLS  # columns are told apart


def test_rewards_are_read_with_the_features_of_the_state_one_hop_behind(voc: VOC, saved: Path, obs: np.ndarray) -> None:
    assert voc.reward_head.feature_dim == voc.quantizer.feature_dim > 0
    own, (codes, features) = VOC.load(saved), voc.context(obs)

    def values(gamma: float, known: torch.Tensor | None) -> np.ndarray:
        futures = own.futures_of_codes(codes, features, 20, gamma, generator(3))
        return from_samples(own.rewards(futures, known).numpy(), gamma).mean

    asked = {"samples": 20, "estimator": "sample"}
    near = voc.value(obs, generator=generator(3), **asked).mean  # type: ignore[arg-type]
    np.testing.assert_array_equal(near, values(GAMMA, features))
    assert np.abs(near - values(GAMMA, None)).max() > 1e-3
    far = voc.value(obs, gamma=0.8, generator=generator(3), **asked).mean  # type: ignore[arg-type]
    np.testing.assert_array_equal(far, values(0.8, None))
    for odd in (features[:3], features[:, 1:]):
        futures = own.futures_of_codes(codes, features, 2)
        assert f"Features have shape {tuple(odd.shape)}" in refusal(own.rewards, futures, odd)
    # rewards of hops: the first one's alone has features
    seen: list[torch.Tensor | None] = []
    read = own.reward_head.forward
    own.reward_head.forward = lambda vectors, f=None: (seen.append(f), read(vectors, f))[1]  # type: ignore
    own.value(obs, gamma=0.8, estimator="mve", samples=20)
    assert [f is not None for f in seen] == [True] + [False] * (len(seen) - 1)
    assert len(seen) > 2


def linear_reward(voc: VOC, weights: torch.Tensor) -> None:
    """Make the reward of ``voc`` linear in its codes' vectors."""
    voc.reward_head.forward = lambda vectors, features=None: vectors.flatten(-2).float() @ weights  # type: ignore


def test_successor_features_of_a_linear_reward(voc: VOC, saved: Path, obs: np.ndarray) -> None:
    own = VOC.load(saved)
    weights = torch.linspace(-1, 2, own.quantizer.n_tokens * own.quantizer.code_dim)
    linear_reward(own, weights)
    psi = own.successor_features(obs, samples=64, generator=generator(3))
    assert psi.shape == (len(obs), len(weights))
    value = own.value(obs, estimator="sample", samples=64, generator=generator(3))
    np.testing.assert_allclose(psi @ weights.numpy(), value.mean, rtol=1e-4, atol=1e-5)
    assert np.ptp(value.mean) > 0.05
    psi = own.successor_features(obs, 64, 0.8, generator(3))
    value = own.value(obs, 0.8, "sample", samples=64, generator=generator(3))
    np.testing.assert_allclose(psi @ weights.numpy(), value.mean, rtol=1e-4, atol=1e-5)
    assert "not for 0.3" in refusal(own.successor_features, obs, gamma=0.3)


def test_an_end_counts_nothing(voc: VOC, saved: Path, obs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    own = VOC.load(saved)
    weights = torch.linspace(-1, 2, own.quantizer.n_tokens * own.quantizer.code_dim)
    linear_reward(own, weights)
    futures = own.sample_futures(obs, 60, generator=generator(3))
    ended = futures.clone()
    ended[:, ::2] = own.occupancy.config.end_code
    monkeypatch.setattr(own, "futures_of_codes", lambda *args, **kwargs: ended)
    assert not own.rewards(ended)[:, ::2].any()
    assert own.rewards(ended)[:, 1::2].any()
    psi = own.successor_features(obs)
    value = own.value(obs, estimator="sample").mean
    np.testing.assert_allclose(psi @ weights.numpy(), value, rtol=1e-4, atol=1e-5)
    half = own.rewards(futures)[:, 1::2].double().mean(1).numpy() / (1 - GAMMA) / 2
    np.testing.assert_allclose(value, half, rtol=1e-6)


# --- refusals


def test_refused_questions(voc: VOC, obs: np.ndarray) -> None:
    assert "'magic'; accepted: head, mve, sample" in refusal(voc.value, obs, estimator="magic")
    assert "gamma is 1.0" in refusal(voc.value, obs, gamma=1.0, estimator="sample")
    assert "-0.1" in refusal(voc.value, obs, gamma=-0.1, estimator="sample")
    assert "0.4" in refusal(voc.value, obs, gamma=0.4, estimator="sample")
    assert "0.9" in refusal(voc.value, obs, gamma=0.9)  # the head knows its own discount alone
    assert "samples is 1" in refusal(voc.value, obs, estimator="sample", samples=1)
    for n in (0, 2.0):
        assert f"n is {n}; a whole number above zero" in refusal(voc.sample_futures, obs, n)
    assert "samples is 10.0; at least 2" in refusal(voc.value, obs, estimator="sample", samples=10.0)
    assert "level is 1" in refusal(voc.value, obs, level=1)
    codes = voc.context(obs)[0]
    assert "2 tokens per row are needed" in refusal(voc.density_value, obs, codes[:, :1], np.zeros(len(obs)))
    assert "level is 90" in refusal(voc.density_value, obs, codes, np.zeros(len(obs)), level=90)


def test_the_head_is_not_asked_about_codes_alone(voc: VOC, obs: np.ndarray) -> None:
    """It learned from features; the network itself learned to sample without them."""
    codes, features = voc.context(obs)
    assert features is not None
    assert "reads features and was given codes alone" in refusal(voc.value_of_codes, codes, None)
    alone, both = (voc.value_of_codes(codes, seen, estimator="sample", samples=300) for seen in (None, features))
    assert np.corrcoef(alone.mean, both.mean)[0, 1] > 0.8


@pytest.mark.parametrize("gamma", [GAMMA, 0.8])
def test_no_observations_have_no_values(voc: VOC, obs: np.ndarray, gamma: float) -> None:
    for estimator in ("head", "sample", "mve"):
        if estimator != "head" or gamma == GAMMA:
            found = voc.value(obs[:0], gamma, estimator, samples=5)  # type: ignore[arg-type]
            for array in (found.mean, found.stderr, found.low, found.high):
                assert array.shape == (0,)
    tokens = voc.quantizer.n_tokens
    for common in (False, True):
        assert voc.sample_futures(obs[:0], 5, gamma, common=common).shape == (0, 5, tokens)
    assert voc.successor_features(obs[:0]).shape == (0, tokens * voc.quantizer.code_dim)


def test_refused_observations(voc: VOC, obs: np.ndarray) -> None:
    assert "float32" in refusal(voc.value, obs.astype(np.float32))
    assert "(batch, 9, 24, 24)" in refusal(voc.value, obs[0])
    assert "(24, 3, 24, 24)" in refusal(voc.value, obs[:, -3:])
    assert "shape" in refusal(voc.tokens, obs[..., :20])
    assert "list" in refusal(voc.successor_features, [1, 2])


def test_codes_beyond_the_codebook(voc: VOC, obs: np.ndarray) -> None:
    codes, features = voc.context(obs)
    for wrong, said in [
        (codes + voc.quantizer.codebook_size, f"0..{voc.quantizer.codebook_size - 1} is the codebook"),
        (codes - voc.quantizer.codebook_size, "is the codebook"),
        (codes[:, :1], "tokens per row are needed"),
    ]:
        for estimator in ("head", "sample"):
            assert said in refusal(voc.value_of_codes, wrong, features, estimator=estimator)


def test_no_value_head(saved: Path, obs: np.ndarray) -> None:
    own = VOC.load(saved)
    without = VOC(own.quantizer, own.occupancy, own.reward_head, None, own.gamma, own.spec)
    assert "estimator='sample'" in refusal(without.value, obs)
    without.save(saved)
    assert VOC.load(saved).value_head is None
    np.testing.assert_array_equal(
        VOC.load(saved).value(obs, estimator="sample").mean, own.value(obs, estimator="sample").mean
    )


def test_a_discount_cannot_be_set(saved: Path) -> None:
    """Values would be divided by the 1 - gamma of a discount that nothing was trained for."""
    own = VOC.load(saved)
    with pytest.raises(AttributeError, match="gamma"):
        own.gamma = 0.95  # type: ignore[misc]
    assert own.gamma == GAMMA


# --- data made in another way


def test_other_data_warns(voc: VOC) -> None:
    for name, value in (
        ("task", "circle"), ("render", "faithful"), ("mujoco", "3.1"), ("action_repeat", 2), ("camera", 2),
    ):  # fmt: skip
        spec = replace(SPEC, **{name: value})
        with pytest.warns(UserWarning, match=name) as caught:
            voc.check_spec(spec)
        assert len(caught) == 1
        assert repr(value) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        voc.check_spec(SPEC)
        voc.check_spec(replace(SPEC, task=""))  # a foreign file that does not say
        voc.check_spec(replace(SPEC, camera=-1))
        voc.check_spec(replace(SPEC, backend="osmesa"))  # the training data did not say its own
