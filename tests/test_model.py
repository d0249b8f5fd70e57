"""VOC: exact where it can be, the same after save and load, and refusals in one sentence."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import CELLS, SPEC, exact_values, one_sentence, picture, small_config, write_world

import voc_rl
from voc_rl import VOC, Episodes, ValueEstimate
from voc_rl.errors import VOCError
from voc_rl.quantizers import tokenize
from voc_rl.training import fresh_networks, fresh_quantizer, train

GAMMA = 0.5
CONFIG = small_config(GAMMA, quantizer=200, steps=300)


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


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refusal(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(VOCError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    assert one_sentence(str(caught.value)), str(caught.value)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


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
    z = 1.959964 / 0.674490
    np.testing.assert_allclose(wide.high - wide.mean, z * (narrow.high - narrow.mean), rtol=1e-5, atol=1e-12)


def test_a_torch_tensor_is_as_good_as_an_array(voc: VOC, obs: np.ndarray) -> None:
    np.testing.assert_array_equal(voc.value(obs).mean, voc.value(torch.from_numpy(obs)).mean)


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
    stored = voc.value_of_codes(codes[rows], features[rows], estimator="sample", generator=generator())
    sampled = voc.value(live, estimator="sample", generator=generator())
    np.testing.assert_allclose(sampled.mean, stored.mean, rtol=1e-6)
    # one by one as in a batch
    alone = np.concatenate([voc.value(live[i : i + 1]).mean for i in range(5)])
    np.testing.assert_allclose(alone, voc.value(live[:5]).mean, rtol=0.02)


def test_futures_and_tokens(voc: VOC, obs: np.ndarray) -> None:
    futures = voc.sample_futures(obs, 7, generator=generator())
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


def linear_reward(voc: VOC, weights: torch.Tensor) -> None:
    """Make the reward of ``voc`` linear in its codes' vectors."""
    voc.reward_head.forward = lambda vectors: vectors.flatten(-2).float() @ weights  # type: ignore[method-assign]


def test_successor_features_of_a_linear_reward(voc: VOC, saved: Path, obs: np.ndarray) -> None:
    own = VOC.load(saved)
    weights = torch.linspace(-1, 2, own.quantizer.n_tokens * own.quantizer.code_dim)
    linear_reward(own, weights)
    psi = own.successor_features(obs, samples=64, generator=generator())
    assert psi.shape == (len(obs), len(weights))
    value = own.value(obs, estimator="sample", samples=64, generator=generator())
    np.testing.assert_allclose(psi @ weights.numpy(), value.mean, rtol=1e-4, atol=1e-5)
    assert np.ptp(value.mean) > 0.05


def test_an_end_counts_nothing(voc: VOC, saved: Path, obs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    own = VOC.load(saved)
    weights = torch.linspace(-1, 2, own.quantizer.n_tokens * own.quantizer.code_dim)
    linear_reward(own, weights)
    futures = own.sample_futures(obs, 60, generator=generator())
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
    assert "n is 0" in refusal(voc.sample_futures, obs, 0)
    assert "level is 1" in refusal(voc.value, obs, level=1)


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


# --- save and load


def test_saved_and_loaded_is_the_same(voc: VOC, saved: Path, obs: np.ndarray) -> None:
    other = VOC.load(saved)
    assert (other.gamma, other.spec) == (voc.gamma, voc.spec) == (GAMMA, SPEC)
    for estimator in ("head", "sample"):
        a, b = (
            v.value(obs, estimator=estimator, generator=generator())  # type: ignore[arg-type]
            for v in (voc, other)
        )
        for name in ("mean", "stderr", "low", "high"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(
        voc.value(obs, 0.8, "sample", generator=generator()).mean,
        other.value(obs, 0.8, "sample", generator=generator()).mean,
    )
    np.testing.assert_array_equal(voc.tokens(obs), other.tokens(obs))
    np.testing.assert_array_equal(
        voc.successor_features(obs, 20, generator()), other.successor_features(obs, 20, generator())
    )
    modules = (other.quantizer, other.occupancy, other.reward_head, other.value_head)
    assert not any(module.training for module in modules if module is not None)


@pytest.mark.parametrize("name", ["voc.json", "voc.safetensors", "quantizer.json", "quantizer.safetensors"])
def test_damaged_files(saved: Path, name: str) -> None:
    path = saved / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert name in refusal(VOC.load, saved)
    path.write_bytes(b"")
    assert name in refusal(VOC.load, saved)
    path.unlink()
    assert "does not exist" in refusal(VOC.load, saved)


def test_code_in_a_file_is_not_run(saved: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(saved / "trap").touch, ())

    for name in ("voc.safetensors", "quantizer.safetensors"):
        (saved / name).write_bytes(pickle.dumps(Trap()))
    refusal(VOC.load, saved)
    assert not (saved / "trap").exists()


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", ["voc.json", "quantizer.json"])
def test_another_version(saved: Path, name: str) -> None:
    change(saved / name, format_version=99)
    message = refusal(VOC.load, saved)
    assert "99" in message
    assert name in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.0), ("gamma", "0.9"), ("value", 5), ("value", {"hidden": 32}),
        ("spec", {"planet": "mars"}),
        ("occupancy", {"codebook_size": 12}), ("reward", 3), ("occupancy", {"colour": 1}),
    ],
)  # fmt: skip
def test_damaged_descriptions(saved: Path, key: str, value: object) -> None:
    change(saved / "voc.json", **{key: value})
    refusal(VOC.load, saved)


def test_lacking_keys(saved: Path) -> None:
    description = json.loads((saved / "voc.json").read_text())
    for key in ("gamma", "spec", "occupancy", "reward", "value"):
        (saved / "voc.json").write_text(json.dumps({k: v for k, v in description.items() if k != key}))
        assert key in refusal(VOC.load, saved)


def test_a_quantizer_of_another_size(voc: VOC, saved: Path, world: tuple[Episodes, np.ndarray]) -> None:
    config = replace(CONFIG, quantizer_config={**CONFIG.quantizer_config, "n_tokens": 3})
    other = VOC(fresh_quantizer(world[0], config), voc.occupancy, voc.reward_head, voc.value_head, GAMMA, SPEC)
    other.save(saved.parent / "other")
    for name in ("quantizer.json", "quantizer.safetensors"):
        shutil.copy(saved.parent / "other" / name, saved / name)
    assert "belong to different models" in refusal(VOC.load, saved)


def test_a_quantizer_of_the_same_size_but_other_weights(
    voc: VOC, saved: Path, world: tuple[Episodes, np.ndarray]
) -> None:
    """Its codes would mean something else, and every value would be wrong without a word."""
    other = fresh_quantizer(world[0], replace(CONFIG, seed=1))
    VOC(other, voc.occupancy, voc.reward_head, voc.value_head, GAMMA, SPEC).save(saved.parent / "other")
    shutil.copy(saved.parent / "other" / "quantizer.safetensors", saved / "quantizer.safetensors")
    assert "belong to different models" in refusal(VOC.load, saved)


def test_missing_and_unexpected_parts(voc: VOC, saved: Path) -> None:
    change(saved / "voc.json", value=None)
    assert "unexpected parts: value" in refusal(VOC.load, saved)
    VOC(voc.quantizer, voc.occupancy, voc.reward_head, None, GAMMA, SPEC).save(saved)
    change(saved / "voc.json", value={"hidden": 32, "members": 3})
    assert "missing" in refusal(VOC.load, saved)


# --- data made in another way


def test_other_data_warns(voc: VOC) -> None:
    for name, value in (
        ("task", "circle"), ("render", "faithful"), ("mujoco", "3.1"), ("action_repeat", 2),
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
        voc.check_spec(replace(SPEC, backend="osmesa"))  # the training data did not say its own


# --- training


def equal_states(one: VOC, two: VOC) -> bool:
    pairs = [
        (one.quantizer, two.quantizer),
        (one.occupancy, two.occupancy),
        (one.reward_head, two.reward_head),
    ]
    assert one.value_head is not None
    assert two.value_head is not None
    pairs.append((one.value_head, two.value_head))  # type: ignore[arg-type]
    return all(
        torch.equal(a, b)
        for x, y in pairs
        for a, b in zip(x.state_dict().values(), y.state_dict().values(), strict=True)
    )


def test_one_seed_gives_one_model(world: tuple[Episodes, np.ndarray]) -> None:
    config = small_config(quantizer=20, steps=30)
    dataset = world[0].subset([0, 1, 2, 3])
    torch.manual_seed(1)
    one = train(dataset, config)
    torch.manual_seed(2)  # the global state has no say
    two = train(dataset, config)
    assert equal_states(one, two)
    assert not equal_states(one, train(dataset, replace(config, seed=1)))


def test_training_takes_a_quantizer_and_tokens(world: tuple[Episodes, np.ndarray]) -> None:
    config = small_config(quantizer=20, steps=30)
    dataset = world[0].subset([0, 1, 2, 3])
    whole = train(dataset, config)
    tokens = tokenize(whole.quantizer, dataset)
    assert equal_states(whole, train(dataset, config, quantizer=whole.quantizer, tokens=tokens))
    assert "quantizer" in refusal(train, dataset, config, tokens=tokens)
    assert "tokenise this dataset" in refusal(train, world[0], config, quantizer=whole.quantizer, tokens=tokens)


def test_training_logs_every_stage(world: tuple[Episodes, np.ndarray]) -> None:
    lines: list[tuple[str, int, dict[str, float]]] = []
    config = small_config(quantizer=60, steps=50)
    train(
        world[0].subset([0, 1, 2]),
        config,
        log=lambda stage, step, numbers: lines.append((stage, step, dict(numbers))),
    )
    assert {stage for stage, _, _ in lines} == {"quantizer", "occupancy", "reward"}
    assert [step for stage, step, _ in lines if stage == "quantizer"] == [50, 60]
    assert all(np.isfinite(list(numbers.values())).all() for _, _, numbers in lines)


def test_pictures_and_networks_of_one_seed_repeat(world: tuple[Episodes, np.ndarray]) -> None:
    quantizer = fresh_quantizer(world[0], CONFIG)
    a, b = fresh_networks(quantizer, CONFIG), fresh_networks(quantizer, CONFIG)
    for one, two in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))
    frames = picture(np.array([0, 3]), 24)
    assert frames[0, 0, 9, 2] == frames[1, 0, 9, 20] == 240
