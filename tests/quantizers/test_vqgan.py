"""The VQGAN's own training, codes, pictures and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import generator
from torch import Tensor
from vqgan_layout import (
    PUBLISHED,
    SIZE,
    TINY,
    frames,
    rows_read,
    write_weights,
)
from worlds import one_sentence, write_world

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import build_quantizer, load_quantizer, save_quantizer, tokenize, train_quantizer
from voc_rl.quantizers.vqgan import VQGAN, VQGANConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, size=SIZE)
    return Episodes.open(folder).load_frames()


def fresh(seed: int = 0, stack: int = 3, config: VQGANConfig = TINY) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN((3 * stack, SIZE, SIZE), config)


def observations(dataset: Episodes) -> Tensor:
    return torch.from_numpy(dataset.observations(np.arange(len(dataset))))


@pytest.fixture(scope="module")
def trained(dataset: Episodes) -> tuple[VQGAN, list[float]]:
    losses: list[float] = []
    before = fresh()
    before.initialise(observations(dataset), generator())
    with torch.no_grad():
        losses.append(float(before.loss(observations(dataset)[::5], generator())[0]))
    quantizer = train_quantizer(fresh(), dataset, LoopConfig(steps=60, batch_size=16, learning_rate=3e-3))
    assert isinstance(quantizer, VQGAN)
    with torch.no_grad():
        losses.append(float(quantizer.loss(observations(dataset)[::5], generator())[0]))
    return quantizer, losses


def test_training_learns_the_picture(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    quantizer, (before, after) = trained
    assert not quantizer.training
    assert after < 0.3 * before
    obs = observations(dataset)[::4]
    codes = quantizer.encode(obs)
    assert len(codes.unique()) > 3
    truth = obs.float()
    error = (quantizer.decode(codes).float() - truth).square().mean()
    assert error < 0.2 * (truth.mean(0) - truth).square().mean()


def test_codes_are_in_raster_order(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    """Another vector in a corner changes that corner of the picture most."""
    quantizer, _ = trained
    with torch.no_grad():
        vectors = quantizer.embed(quantizer.encode(observations(dataset)[:8]))[:, -36:]
        for cell, corner in ((0, (0, 0)), (5, (0, 1)), (30, (1, 0)), (35, (1, 1))):
            changed = vectors.clone()
            changed[:, cell] += 1.0
            moved = (quantizer._paint(changed) - quantizer._paint(vectors)).abs().mean((0, 1))
            quarters = moved.unflatten(1, (2, 12)).unflatten(0, (2, 12)).mean((1, 3))
            assert divmod(int(quarters.argmax()), 2) == corner


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
def test_shapes_dtypes_and_ranges(dataset: Episodes, stack: int, published: bool) -> None:
    quantizer = fresh(stack=stack, config=VQGANConfig(**{**vars(TINY), "published": published}))
    obs = observations(dataset)[:20, -3 * stack :]
    quantizer.initialise(obs, generator())
    assert quantizer.n_tokens == 36 * stack
    latents = quantizer.latents(obs)
    assert latents.shape == (20, quantizer.n_tokens, 8)
    assert latents.dtype == torch.float32
    codes = quantizer.encode(obs)
    assert codes.shape == (20, quantizer.n_tokens)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() < codes.max() < 32
    vectors = quantizer.embed(codes)
    assert vectors.shape == latents.shape
    assert vectors.dtype == torch.float32
    assert torch.equal(quantizer.code_vectors()[codes], vectors)
    assert quantizer.embed(codes.view(4, 5, -1)).shape == (4, 5, quantizer.n_tokens, 8)
    assert torch.equal(quantizer.code_vectors()[quantizer.quantize(vectors)], vectors)
    pictures = quantizer.decode(codes)
    assert pictures.shape == obs.shape
    assert pictures.dtype == torch.uint8
    features = quantizer.features(obs)
    assert features.shape == (20, quantizer.feature_dim) == (20, 0)
    assert features.dtype == torch.float32
    assert quantizer.encode(obs[:0]).shape == (0, quantizer.n_tokens)
    assert quantizer.decode(codes[:0]).shape == (0, 3 * stack, SIZE, SIZE)


@pytest.mark.parametrize("published", [False, True])
def test_what_the_network_sees_can_be_undone(published: bool) -> None:
    config = VQGANConfig(**{**vars(TINY), "published": published})
    obs = torch.randint(256, (4, 3, SIZE, SIZE), generator=generator(), dtype=torch.uint8)
    quantizer = fresh(stack=1, config=config)
    assert torch.equal(quantizer._frames(quantizer._pictures(obs)), obs)
    larger = VQGAN((3, 48, 48), config)
    doubled = obs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(larger._frames(larger._pictures(doubled)), doubled)
    usual = VQGAN((3, 84, 84), VQGANConfig.small(published=published))
    obs = frames(2)
    back = usual._frames(usual._pictures(obs))
    read = rows_read()  # 80 of 84 rows and columns
    assert torch.equal(back[:, :, read][..., read], obs[:, :, read][..., read])


def test_loss_by_hand(dataset: Episodes) -> None:
    quantizer = fresh()
    obs = observations(dataset)[:8]
    quantizer.initialise(obs, generator())
    with torch.no_grad():
        latents = quantizer.latents(obs)[:, -36:]  # of the newest frame
        vectors = quantizer.embed(quantizer.encode(obs))[:, -36:]
        error = quantizer._paint(vectors) - (obs[:, -3:].float() / 127.5 - 1)
    newest = obs[:, -3:].float() / 127.5 - 1
    variance = (newest - newest.mean(0)).square().mean()
    torch.testing.assert_close(quantizer.pixel_variance, variance)
    pixels = error.abs().mean() / variance.sqrt() + error.square().mean() / variance
    distance = (latents - vectors).square().mean()
    loss, numbers = quantizer.loss(obs, generator())
    torch.testing.assert_close(loss.detach(), pixels + 1.25 * distance, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(numbers["codebook"], distance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(numbers["commitment"], distance, atol=1e-5, rtol=1e-4)
    assert 1 <= numbers["perplexity"] <= 32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())


def served(quantizer: VQGAN, obs: Tensor) -> Tensor:
    """Give every latent of the newest frame of one observation a code of its own; returns the latents (36, 8)."""
    with torch.no_grad():
        latents = quantizer.latents(obs)[0, -36:]
        quantizer.codebook.weight[:36] = latents
        quantizer.codebook.weight[36:] = 1e3
    return latents


def test_pixels_reach_the_encoder_straight_through_the_rounding(dataset: Episodes) -> None:
    quantizer, obs = fresh(config=VQGANConfig(**{**vars(TINY), "codebook_size": 64})), observations(dataset)[5:6]
    served(quantizer, obs)
    loss, numbers = quantizer.loss(obs, generator())
    assert numbers["commitment"] < 1e-9  # no pull from there
    loss.backward()
    assert quantizer.to_code.weight.grad is not None
    assert quantizer.to_code.weight.grad.abs().max() > 1e-3


def test_codes_start_from_latents_and_published_ones_stay(dataset: Episodes, tmp_path: Path) -> None:
    quantizer, obs = fresh(), observations(dataset)
    quantizer.initialise(obs, generator())
    with torch.no_grad():
        latents = quantizer.latents(obs)[:, -36:].flatten(0, 1)
    assert torch.cdist(quantizer.code_vectors(), latents).min(1).values.max() < 1e-2
    path, state = write_weights(tmp_path, PUBLISHED["five levels"])
    published = VQGAN.from_published(path)
    assert not published.initialised  # the spread of the pixels is not in the file
    published.initialise(frames(4), generator())
    assert published.initialised
    assert torch.equal(published.code_vectors(), state["quantize.embedding.weight"])
    published.train()
    published.use.zero_()
    published.loss(frames(2), generator())
    assert torch.equal(published.code_vectors(), state["quantize.embedding.weight"])


def test_unused_codes_move_to_where_they_help(dataset: Episodes) -> None:
    quantizer, obs = fresh(config=VQGANConfig(**{**vars(TINY), "codebook_size": 64})), observations(dataset)[5:6]
    latents = served(quantizer, obs)
    distance = torch.cdist(latents, latents) + 1e3 * torch.eye(36)
    alone = int(distance.min(1).values.argmax())
    with torch.no_grad():
        quantizer.codebook.weight[alone] = 1e3  # one latent is served badly now
        quantizer.use[50] = 0.0  # and one code serves none
        kept = quantizer.code_vectors().clone()
    quantizer.eval()
    quantizer.loss(obs, generator())
    assert torch.equal(quantizer.code_vectors(), kept)
    quantizer.train()
    quantizer.loss(obs, generator())
    assert (quantizer.code_vectors() != kept).any(1).nonzero().flatten().tolist() == [50]
    torch.testing.assert_close(quantizer.code_vectors()[50], latents[alone], atol=1e-4, rtol=1e-4)
    assert quantizer.use[50] == 1 / 64


def test_saved_and_loaded_gives_the_same_codes(
    trained: tuple[VQGAN, list[float]], dataset: Episodes, tmp_path: Path
) -> None:
    quantizer, _ = trained
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.config == quantizer.config
    obs = observations(dataset)[:20]
    codes = quantizer.encode(obs)
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    published = VQGAN.from_published(path, stack=2)
    save_quantizer(published, tmp_path / "published")
    again = load_quantizer(tmp_path / "published")
    assert torch.equal(again.encode(frames(2, channels=6)), published.encode(frames(2, channels=6)))


def test_tokenize_takes_codes_and_no_features(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    codes, features = tokenize(trained[0], dataset.subset([0]), batch_size=16)
    assert codes.shape == (40, 108)
    assert features.shape == (40, 0)


# ---- arguments that are refused


def test_bad_arguments() -> None:
    quantizer = fresh()
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        quantizer.encode(torch.zeros(2, 9, SIZE, SIZE))
    for shape in ((2, 6, SIZE, SIZE), (9, SIZE, SIZE), (2, 9, SIZE, 6)):
        with pytest.raises(VOCError, match=r"\(batch, 9, 24, 24\) is needed"):
            quantizer.encode(torch.zeros(shape, dtype=torch.uint8))
    for codes, said in [
        (torch.zeros(2, 4, dtype=torch.int64), "108 tokens per row"),
        (torch.full((2, 108), 32), r"32\.\.32; 0\.\.31 is the codebook"),
        (torch.full((2, 108), -1), r"-1\.\.-1"),
    ]:
        with pytest.raises(VOCError, match=said):
            quantizer.embed(codes)
        with pytest.raises(VOCError, match=said):
            quantizer.decode(codes)
    for channels in (0, 4):
        with pytest.raises(VOCError, match="not stacked frames of 3 channels"):
            VQGAN((channels, SIZE, SIZE), TINY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"code_dim": -1}, "code_dim is -1"),
        ({"codebook_weight": 0.0}, "codebook_weight is 0"),
        ({"multipliers": ()}, "one whole number above zero per level"),
        ({"multipliers": (1, 0)}, "one whole number above zero per level"),
        ({"attention_levels": (5,)}, "levels from 0 to 4 are accepted"),
        ({"side": 84}, "side 84 of a vqgan is not a multiple of 16"),
        ({"channels": 40}, "40 channels; at most 32, or a multiple of it"),
    ],
)
def test_bad_sizes(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VOCError, match=said) as caught:
        VQGANConfig(**changes)
    assert one_sentence(str(caught.value))


def test_by_name() -> None:
    config = {**vars(TINY), "multipliers": [1, 2, 2], "attention_levels": [2]}
    built = build_quantizer("vqgan", (3, SIZE, SIZE), config)
    assert built.config == TINY
    small = VQGAN((9, 84, 84), VQGANConfig.small())
    assert small.n_tokens == 75
    assert sum(p.numel() for p in small.parameters()) < 1e6
    with pytest.raises(VOCError, match="unknown key"):
        build_quantizer("vqgan", (3, SIZE, SIZE), {"colour": 3})
