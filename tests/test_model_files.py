"""A saved model: loaded it is the same; damaged, foreign and mixed files are refused in a sentence."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import generator
from worlds import SPEC, refusal, small_config, write_world

from voc_rl import VOC, Episodes, model_files
from voc_rl.model_files import check_spec_of
from voc_rl.quantizers import load_quantizer, save_quantizer
from voc_rl.training import fresh_quantizer, train
from voc_rl.values import RewardHead

GAMMA = 0.5
CONFIG = small_config(GAMMA, quantizer=30, steps=30)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return Episodes.open(folder).load_frames()


@pytest.fixture(scope="module")
def voc(dataset: Episodes) -> VOC:
    return train(dataset, CONFIG)


@pytest.fixture
def saved(voc: VOC, tmp_path: Path) -> Path:
    voc.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def obs(dataset: Episodes) -> np.ndarray:
    return dataset.observations(np.arange(5, 29))


def test_saved_and_loaded_is_the_same(voc: VOC, saved: Path, obs: np.ndarray) -> None:
    other = VOC.load(saved)
    assert (other.gamma, other.spec) == (voc.gamma, voc.spec) == (GAMMA, SPEC)
    for estimator in ("head", "sample"):
        a, b = (
            v.value(obs, estimator=estimator, generator=generator(3))  # type: ignore[arg-type]
            for v in (voc, other)
        )
        for name in ("mean", "stderr", "low", "high"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(
        voc.value(obs, 0.8, "sample", generator=generator(3)).mean,
        other.value(obs, 0.8, "sample", generator=generator(3)).mean,
    )
    np.testing.assert_array_equal(voc.tokens(obs), other.tokens(obs))
    np.testing.assert_array_equal(
        voc.successor_features(obs, 20, generator=generator(3)),
        other.successor_features(obs, 20, generator=generator(3)),
    )
    modules = (other.quantizer, other.occupancy, other.reward_head, other.value_head)
    assert not any(module.training for module in modules if module is not None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class Odd:
    of: object


def test_numpy_numbers_of_a_config_are_saved_as_the_numbers_that_they_are(
    saved: Path, dataset: Episodes, obs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an older VOC, which a save that fails leaves as it is."""
    low, high = np.float32(0.3), np.float32(0.8)
    config = replace(
        CONFIG, network=replace(CONFIG.network, width=np.int64(32)),  # type: ignore[arg-type]
        quantizer_config={**CONFIG.quantizer_config, "hidden": np.int64(32)},
        occupancy=replace(CONFIG.occupancy, gammas=(low, high)),  # type: ignore[arg-type]
    )  # fmt: skip
    voc, before = train(dataset, config), files(saved)
    for part, name in ((voc.value_head, "hidden"), (voc.quantizer, "config")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, Odd(object()) if name == "config" else object())
            assert "JSON knows no object; plain numbers, words, lists" in refusal(voc.save, saved)
        assert files(saved) == before
    voc.save(saved)
    other = VOC.load(saved)
    assert other.gammas == (float(low), float(high))
    assert other.occupancy.config.width == 32
    for gamma in (0.3, 0.5, 0.8):
        np.testing.assert_array_equal(voc.value(obs, gamma).mean, other.value(obs, gamma).mean)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_makes_no_difference_to_what_is_loaded(
    saved: Path, obs: np.ndarray, default: torch.dtype
) -> None:
    expected = VOC.load(saved).value(obs, estimator="head").mean
    torch.set_default_dtype(default)
    try:
        other = VOC.load(saved)
        assert torch.get_default_dtype() == default
        np.testing.assert_array_equal(other.value(obs, estimator="head").mean, expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in other.occupancy.parameters()} == {torch.float32}


def test_loading_leaves_the_random_numbers_of_the_caller(saved: Path) -> None:
    before = torch.get_rng_state()
    VOC.load(saved)
    load_quantizer(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_estimates_can_be_compared_and_kept_in_sets(voc: VOC, obs: np.ndarray) -> None:
    first, second = (voc.value(obs[:2], estimator="head") for _ in range(2))
    assert first in [second, first]
    assert len({first, second, first}) == 2


def test_compiled_parts_are_saved_as_plain_ones(voc: VOC, saved: Path, tmp_path: Path) -> None:
    parts = (voc.quantizer, voc.occupancy, voc.reward_head, voc.value_head)
    compiled: list[Any] = [torch.compile(part, backend="eager") for part in parts]
    VOC(*compiled, voc.gamma, voc.spec).save(tmp_path / "compiled")
    assert "_orig_mod." in next(iter(compiled[1].state_dict()))
    for name in ("voc.json", "voc.safetensors", "quantizer.json", "quantizer.safetensors"):
        assert (tmp_path / "compiled" / name).read_bytes() == (saved / name).read_bytes()


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
        ("reward_features", "8"), ("reward_features", -1), ("reward_features", 0), ("reward_features", 3),
    ],
)  # fmt: skip
def test_damaged_descriptions(saved: Path, key: str, value: object) -> None:
    change(saved / "voc.json", **{key: value})
    refusal(VOC.load, saved)


def test_lacking_keys(saved: Path) -> None:
    description = json.loads((saved / "voc.json").read_text())
    for key in ("gamma", "spec", "occupancy", "reward", "reward_features", "value"):
        (saved / "voc.json").write_text(json.dumps({k: v for k, v in description.items() if k != key}))
        assert key in refusal(VOC.load, saved)


def test_discounts_of_a_description_are_those_of_its_weights(saved: Path) -> None:
    """A file without their mark loads as it is."""
    description = json.loads((saved / "voc.json").read_text())
    for changed in ({"gamma": 0.95}, {"occupancy": {**description["occupancy"], "gammas": [0.3, 0.8]}}):
        change(saved / "voc.json", **{**description, **changed})
        assert "voc.json has another gamma or other gammas than this VOC was trained for" in refusal(VOC.load, saved)
    (saved / "voc.json").write_text(json.dumps({k: v for k, v in description.items() if k != "discounts"}))
    assert VOC.load(saved).gamma == GAMMA


def test_a_quantizer_of_another_size(voc: VOC, saved: Path, dataset: Episodes) -> None:
    config = replace(CONFIG, quantizer_config={**CONFIG.quantizer_config, "n_tokens": 3})
    other = fresh_quantizer(dataset, config)
    said = refusal(VOC, other, voc.occupancy, voc.reward_head, voc.value_head, GAMMA, SPEC)
    assert f"speaks {voc.quantizer.n_tokens} tokens of" in said
    save_quantizer(other, saved)
    assert "belong to different models" in refusal(VOC.load, saved)


def test_a_quantizer_of_the_same_size_but_other_weights(voc: VOC, saved: Path, dataset: Episodes) -> None:
    """Its codes would mean something else, and every value would be wrong without a word."""
    other = fresh_quantizer(dataset, replace(CONFIG, seed=1))
    VOC(other, voc.occupancy, voc.reward_head, voc.value_head, GAMMA, SPEC).save(saved.parent / "other")
    shutil.copy(saved.parent / "other" / "quantizer.safetensors", saved / "quantizer.safetensors")
    assert "belong to different models" in refusal(VOC.load, saved)


def test_missing_and_unexpected_parts(voc: VOC, saved: Path) -> None:
    change(saved / "voc.json", value=None)
    assert "unexpected parts: value" in refusal(VOC.load, saved)
    VOC(voc.quantizer, voc.occupancy, voc.reward_head, None, GAMMA, SPEC).save(saved)
    change(saved / "voc.json", value={"hidden": 32, "members": 3})
    assert "missing" in refusal(VOC.load, saved)


def test_weights_of_another_save_are_refused(
    voc: VOC, saved: Path, dataset: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights under the old description and its discount: what a cut leaves, and what a reader meets meanwhile."""
    other = VOC(voc.quantizer, voc.occupancy, fresh_reward(voc), voc.value_head, 0.9, SPEC)

    def cut(path: Path, value: object) -> None:
        if path.name == "voc.json":
            raise KeyboardInterrupt
        write(path, value)

    write = model_files.write_json
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_files, "write_json", cut)
        other.save(saved)
    message = refusal(VOC.load, saved)
    assert "voc.safetensors holds other weights than voc.json was written for" in message
    other.save(saved)
    assert VOC.load(saved).gamma == 0.9


def fresh_reward(voc: VOC) -> RewardHead:
    return RewardHead(
        voc.quantizer.n_tokens, voc.quantizer.code_dim, voc.reward_head.config, voc.reward_head.feature_dim
    )


def test_frames_of_another_task_are_warned_of_by_what_lies_in_the_folder(saved: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="trained with task 'square', this data has 'ring'"):
        check_spec_of(saved, replace(SPEC, task="ring"))
    with warnings.catch_warnings(action="error"):
        check_spec_of(saved, SPEC)
        check_spec_of(tmp_path, SPEC)  # nothing is there


def test_a_quantizer_alone_tells_of_which_task_it_is(saved: Path, tmp_path: Path) -> None:
    quantizer = load_quantizer(saved)
    save_quantizer(quantizer, tmp_path)
    with warnings.catch_warnings(action="error"):
        check_spec_of(tmp_path, SPEC)  # of one that was made by hand, nobody said
    save_quantizer(quantizer, tmp_path, SPEC)
    assert load_quantizer(tmp_path).observation_shape == quantizer.observation_shape
    with pytest.warns(UserWarning, match="The quantizer was trained with task 'square', this data has 'ring'"):
        check_spec_of(tmp_path, replace(SPEC, task="ring"))
