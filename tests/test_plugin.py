"""Features for plug-ins: what they are made of, and that gradients reach what can be trained."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import CELLS, one_sentence, picture

from voc_rl import VOC
from voc_rl.errors import VOCError
from voc_rl.plugin import FEATURES, feature_size, feature_vectors, open_voc


@pytest.fixture(scope="module")
def voc(square_voc: Path) -> VOC:
    return VOC.load(square_voc)


@pytest.fixture(scope="module")
def obs() -> np.ndarray:
    """Every column after every column: uint8 (16, 9, 36, 36)."""
    now, before = np.divmod(np.arange(CELLS**2), CELLS)
    return np.concatenate([picture(before, 36), picture(before, 36), picture(now, 36)], 1)


def test_context_is_what_the_value_head_reads(voc: VOC, obs: np.ndarray) -> None:
    with torch.no_grad():
        found = feature_vectors(voc, obs, "context")
        codes, features = voc.context(obs)
        width = voc.occupancy.config.width
        torch.testing.assert_close(found[:, :width], voc.occupancy.prefix(codes, features).last, atol=0.02, rtol=0.02)
    assert features is not None
    standard = (features.numpy() - voc.occupancy.feature_mean.numpy()) / voc.occupancy.feature_std.numpy()
    np.testing.assert_allclose(found[:, width:], np.clip(standard, -10, 10), rtol=1e-5, atol=1e-5)
    assert voc.value_head is not None
    torch.testing.assert_close(voc.value_head.feature_mean, voc.occupancy.feature_mean)


def test_strange_frames_have_bounded_features(voc: VOC) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 9, 36, 36), dtype=np.uint8)
    with torch.no_grad():
        found = feature_vectors(voc, noise, "context")[:, voc.occupancy.config.width :]
    assert found.abs().max() == 10


def test_tokens_are_the_vectors_of_the_codes(voc: VOC, obs: np.ndarray) -> None:
    with torch.no_grad():
        found = feature_vectors(voc, obs, "tokens")
    expected = voc.quantizer.code_vectors()[torch.from_numpy(voc.tokens(obs))].flatten(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(feature_vectors(voc, obs, "tokens"), expected)  # rounding is straight-through
    torch.testing.assert_close(feature_vectors(voc, obs[::-1], "tokens"), expected.flip(0))


def test_successor_features_are_the_mean_future(voc: VOC, obs: np.ndarray) -> None:
    found = feature_vectors(voc, obs, "successor").numpy()
    futures = voc.sample_futures(obs, 16, common=True)
    np.testing.assert_allclose(found, voc.quantizer.embed(futures).flatten(2).mean(1), atol=1e-5)
    np.testing.assert_allclose(found[3:4], feature_vectors(voc, obs[3:4], "successor"), atol=1e-5)


@pytest.mark.parametrize("kind", FEATURES)
def test_sizes(kind: str, voc: VOC, obs: np.ndarray) -> None:
    with torch.no_grad():
        found = feature_vectors(voc, obs, kind)  # type: ignore[arg-type]
    assert found.shape == (16, feature_size(voc, kind))  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert len(found.unique(dim=0)) > 4


@pytest.mark.parametrize(("kind", "part"), [("context", "occupancy.blocks"), ("tokens", "quantizer.encoder")])
def test_gradients_reach_what_can_be_trained(kind: str, part: str, voc: VOC, obs: np.ndarray) -> None:
    own = copy.deepcopy(voc)
    feature_vectors(own, obs, kind).square().sum().backward()  # type: ignore[arg-type]
    reached = {f"occupancy.{n}" for n, p in own.occupancy.named_parameters() if p.grad is not None} | {
        f"quantizer.{n}" for n, p in own.quantizer.named_parameters() if p.grad is not None
    }
    assert reached
    assert any(name.startswith(part) for name in reached)
    assert {name.split(".")[0] for name in reached} == {part.split(".")[0]}


def test_a_voc_stands_for_itself(voc: VOC) -> None:
    assert open_voc(voc) is voc


def test_refusals(voc: VOC, obs: np.ndarray, tmp_path: Path) -> None:
    for call, words in (
        (lambda: feature_vectors(voc, obs, "pixels"), "Unknown kind of features 'pixels'"),  # type: ignore[arg-type]
        (lambda: feature_size(voc, "pixels"), "accepted: context, successor, tokens"),  # type: ignore[arg-type]
        (lambda: feature_vectors(voc, obs[:, :6], "context"), "(batch, 9, 36, 36) is needed"),
        (lambda: open_voc(tmp_path), "holds no VOC"),
        (lambda: open_voc(None), "voc is NoneType"),  # type: ignore[arg-type]
    ):
        with pytest.raises(VOCError) as caught:
            call()
        assert words in str(caught.value)
        assert one_sentence(str(caught.value))
