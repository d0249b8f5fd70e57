"""Codes of the VQ-VAE go from coarse to fine: what the first few of them tell, alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import SIDE, squares
from torch import Tensor
from worlds import refusal

from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import VQVAE, Quantizer, VQVAEConfig, train_quantizer

SMALL = VQVAEConfig(n_tokens=3, levels=(5, 4), components=8, hidden=32, decoder_width=8, patch=3)


def fresh(seed: int = 0, **changes: Any) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE((9, SIDE, SIDE), replace(SMALL, **changes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return squares(tmp_path_factory.mktemp("squares"))


def told_by_each(quantizer: Quantizer, dataset: Episodes) -> np.ndarray:
    """Share of the variance of the features that each code alone tells (n_tokens,): by the mean of the rows that have
    it, no decoder asked; what as many random groups would tell is taken off."""
    obs = torch.from_numpy(dataset.observations(np.arange(len(dataset))))
    with torch.no_grad():
        codes, features = quantizer.encode(obs), quantizer.features(obs).double()
    total = (features - features.mean(0)).square().sum()

    def explained(groups: Tensor) -> float:
        left = sum((features[groups == g] - features[groups == g].mean(0)).square().sum() for g in groups.unique())
        return float(1 - left / total)

    shuffled = torch.randperm(len(obs), generator=torch.Generator().manual_seed(0))
    return np.array([explained(c) - explained(c[shuffled]) for c in codes.T])


def told(dataset: Episodes, seeds: int, **changes: Any) -> np.ndarray:
    """``told_by_each`` of trained quantizers, mean over seeds: of one seed it hangs on rounding."""
    config = LoopConfig(steps=400, batch_size=64, learning_rate=3e-3)
    trained = (train_quantizer(fresh(seed, **changes), dataset, config, seed) for seed in range(seeds))
    return np.mean([told_by_each(quantizer, dataset) for quantizer in trained], 0)


def test_the_first_code_tells_most(dataset: Episodes) -> None:
    ordered, loose = told(dataset, 3), told(dataset, 3, order_weight=0)
    print(f"told by each code alone: {ordered.round(2)}, in no order {loose.round(2)}")
    assert ordered[0] > ordered[1:].max() + 0.1
    assert ordered[0] > loose.max() + 0.1


def test_the_second_code_tells_more_than_the_third(dataset: Episodes) -> None:
    """Of four values each; the first of twenty leaves little of a square's place to the others."""
    ordered = told(dataset, 8, levels=(4,))
    print(f"told by each code alone: {ordered.round(2)}")
    assert (np.diff(ordered) < 0).all()
    assert ordered[2] < ordered[1] - 0.05


def test_only_first_codes_are_left(dataset: Episodes) -> None:
    vectors = torch.rand(600, 3, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    few = fresh()._first_codes(vectors, torch.Generator().manual_seed(1))
    kept = (few != 0).all(-1)
    assert torch.equal(few, vectors * kept[..., None])
    assert kept[:, 0].all()
    assert not kept[:, 2].any()  # all three are the other part of the loss
    assert float(kept[:, 1].float().mean()) == pytest.approx(0.5, abs=0.06)  # one or two, as often


@pytest.mark.parametrize(("changes", "names"), [
    ({"order_weight": 0.0}, {"features", "pixels"}),
    ({"n_tokens": 1}, {"features", "pixels"}),
    ({"order_weight": 2.5}, {"features", "pixels", "first_codes"}),
])  # fmt: skip
def test_the_loss_has_the_weight_that_is_asked(dataset: Episodes, changes: dict[str, float], names: set[str]) -> None:
    quantizer = fresh(**changes)
    obs = torch.from_numpy(dataset.observations(np.arange(32)))
    quantizer.initialise(obs, torch.Generator().manual_seed(0))
    loss, numbers = quantizer.loss(obs, torch.Generator().manual_seed(0))
    assert set(numbers) == names
    expected = numbers["features"] + numbers["pixels"] + changes.get("order_weight", 1) * numbers.get("first_codes", 0)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_weight_below_zero_is_refused() -> None:
    assert "order_weight" in refusal(VQVAEConfig, order_weight=-1.0)
