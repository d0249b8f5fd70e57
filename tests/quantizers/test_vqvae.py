"""The VQ-VAE: shapes, codes that survive their vectors, components against numpy, learning, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SIDE, generator, moving_square, squares
from torch import Tensor
from worlds import refusal

from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import (
    VQVAE,
    VQVAEConfig,
    load_quantizer,
    save_quantizer,
    tokenize,
    train_quantizer,
)
from voc_rl.quantizers.base import scale, unscale
from voc_rl.quantizers.vqvae import PrincipalComponents

SMALL = VQVAEConfig(n_tokens=3, levels=(5, 4), components=8, hidden=32, decoder_width=8, patch=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return squares(tmp_path_factory.mktemp("squares"))


def fresh(seed: int = 0, stack: int = 3, config: VQVAEConfig = SMALL) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE((3 * stack, SIDE, SIDE), config)


@pytest.fixture(scope="module")
def trained(dataset: Episodes) -> tuple[VQVAE, list[float]]:
    losses: list[float] = []  # of the components, which every batch sees whole
    config = LoopConfig(steps=400, batch_size=64, learning_rate=3e-3)
    quantizer = train_quantizer(
        fresh(), dataset, config, log=lambda stage, step, numbers: losses.append(numbers["features"])
    )
    assert isinstance(quantizer, VQVAE)
    return quantizer, losses


def observations(dataset: Episodes) -> Tensor:
    return torch.from_numpy(dataset.observations(np.arange(len(dataset))))


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("conv_width", [0, 4])
def test_shapes_dtypes_and_ranges(stack: int, conv_width: int) -> None:
    config = VQVAEConfig(
        n_tokens=3, levels=(5, 4), components=8, hidden=32, decoder_width=8, patch=3, conv_width=conv_width
    )
    quantizer = fresh(stack=stack, config=config)
    pictures = np.stack([moving_square(stack, 1 + i % 3, i) for i in range(40)])
    obs = torch.from_numpy(pictures.reshape(40, 3 * stack, SIDE, SIDE))
    quantizer.initialise(obs, generator())
    torch.testing.assert_close(quantizer.mean_picture, scale(obs).mean(0), atol=1e-5, rtol=1e-4)
    assert quantizer.codebook_size == 20
    codes = quantizer.encode(obs)
    assert codes.shape == (40, 3)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < 20
    assert len(codes.unique(dim=0)) > 1  # frames do not all meet in one code
    vectors = quantizer.embed(codes)
    assert vectors.shape == (40, 3, 2)
    assert vectors.dtype == torch.float32
    assert quantizer.embed(codes.view(4, 10, 3)).shape == (4, 10, 3, 2)
    assert torch.equal(quantizer.embed(codes.view(4, 10, 3)).view(40, 3, 2), vectors)
    picture = quantizer.decode(codes)
    assert picture.shape == obs.shape
    assert picture.dtype == torch.uint8
    features = quantizer.features(obs)
    assert features.shape == (40, quantizer.feature_dim) == (40, 8 * stack)
    assert features.dtype == torch.float32
    loss, numbers = quantizer.loss(obs, generator())
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(float(sum(numbers.values())), rel=1e-5)
    assert quantizer.encode(obs[:0]).shape == (0, 3)


def test_every_code_survives_its_vector() -> None:
    quantizer = fresh()
    codes = torch.arange(20)[:, None].expand(20, 3).clone()
    codes[:, 1] = (codes[:, 1] + 7) % 20
    vectors = quantizer.embed(codes)
    assert torch.equal(quantizer.codebook.indices_to_codes(codes), vectors)
    # vectors are grid points in -1..1; the quantizer squashes its inputs, so they are undone first
    assert vectors.abs().max() <= 1
    flat = quantizer.code_vectors()
    assert flat.shape == (20, 2)
    assert len(flat.unique(dim=0)) == 20  # 20 different vectors
    assert torch.equal(flat[codes], vectors)
    assert torch.equal(quantizer.codebook.codes_to_indices(vectors).long(), codes)


def test_quantize_rounds_to_the_vector_that_embed_gives(trained: tuple[VQVAE, list[float]], dataset: Episodes) -> None:
    """The vectors seen in training are those that ``embed`` gives for the codes of ``quantize``."""
    quantizer, _ = trained
    with torch.no_grad():
        latents = quantizer.latents(observations(dataset))
        vectors, codes = quantizer.codebook(latents)
        assert torch.equal(quantizer.quantize(latents), codes.long())
        torch.testing.assert_close(quantizer.embed(codes.long()), vectors)


def test_components_equal_numpy(dataset: Episodes) -> None:
    frames = torch.from_numpy(dataset.frames(np.arange(len(dataset))))
    components = PrincipalComponents((3, SIDE, SIDE), 4)
    components.fit(frames, generator())
    pixels = dataset.frames(np.arange(len(dataset)))[..., ::2, ::2].reshape(len(dataset), -1) / 127.5 - 1
    mean = pixels.mean(0)
    values, vectors = np.linalg.svd(pixels - mean, full_matrices=False)[1:]
    assert (values[:4] > 1.05 * values[1:5]).all()  # the spectrum is not flat
    np.testing.assert_allclose(components.mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(components.spread.numpy(), values[:4] / len(dataset) ** 0.5, rtol=1e-3)
    basis = components.basis.numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-4)
    # the same plane: components of equal size may be turned within it
    projected = (pixels - mean) @ basis @ basis.T
    exact = (pixels - mean) @ vectors[:4].T @ vectors[:4]
    error = ((pixels - mean - projected) ** 2).sum()
    assert error == pytest.approx(((pixels - mean - exact) ** 2).sum(), rel=1e-3)
    np.testing.assert_allclose(components(frames).numpy(), (pixels - mean) @ basis, atol=1e-3)


def test_components_need_frames() -> None:
    frames = torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8)
    said = refusal(PrincipalComponents((3, SIDE, SIDE), 5).fit, frames, generator())
    assert "3 frames are too few for 5 principal components; give more data, a quantizer without them (--q" in said


def test_there_are_no_more_components_than_pixels(dataset: Episodes) -> None:
    """All of them lose nothing: 6 x 6 pixels of 3 colours are seen of a frame of 12."""
    quantizer = fresh(config=replace(SMALL, components=500))
    assert quantizer.feature_dim == 3 * 108
    train_quantizer(quantizer, dataset, LoopConfig(steps=2, batch_size=8))
    frames = observations(dataset)[:, -3:]
    seen = quantizer.components.pixels(frames)
    basis = quantizer.components.basis
    torch.testing.assert_close(
        quantizer.components(frames) @ basis.T + quantizer.components.mean, seen, atol=1e-4, rtol=0
    )


def test_few_observations_are_floats_at_once(dataset: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    obs, whole, parts, rows = observations(dataset), fresh(), fresh(), []
    whole.initialise(obs, generator())
    monkeypatch.setattr("voc_rl.quantizers.vqvae.CHUNK", 7)
    monkeypatch.setattr("voc_rl.quantizers.vqvae.scale", lambda x: rows.append(x[0].numel() * len(x)) or scale(x))
    parts.initialise(obs, generator())
    assert max(rows) == max(7 * obs[0].numel(), len(obs) * 108)  # and the pixels that the components see
    pixels = obs.numpy() / 127.5 - 1
    for one in (whole, parts):
        np.testing.assert_allclose(one.mean_picture.numpy(), pixels.mean(0), atol=1e-6)
        assert float(one.pixel_variance) == pytest.approx(pixels.var(0).mean(), rel=1e-5)
        assert torch.equal(one.components.basis, whole.components.basis)


def test_features_are_the_newest_frame_then_motion(dataset: Episodes) -> None:
    quantizer = fresh()
    obs = observations(dataset)
    quantizer.initialise(obs, generator())
    first, moving = obs[dataset.starts], obs[dataset.starts + 5]
    still = quantizer.features(first)
    assert still[:, 8:].abs().max() < 1e-4  # a stack of one frame repeated does not move
    found = quantizer.features(moving)
    by_frame = [quantizer.components(moving[:, 3 * k : 3 * k + 3]) / quantizer.components.spread[0] for k in range(3)]
    expected = torch.cat([by_frame[2], by_frame[2] - by_frame[1], by_frame[1] - by_frame[0]], 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found[:, 8:].abs().max() > 0.1


def test_training_learns_the_picture(trained: tuple[VQVAE, list[float]], dataset: Episodes) -> None:
    quantizer, losses = trained
    assert not quantizer.training
    assert losses[-1] < 0.5 * losses[0]
    obs = observations(dataset)
    with torch.no_grad():
        pictures = quantizer.decode(quantizer.encode(obs)).float()
    truth = obs.float()
    error, mean_error = (pictures - truth).square().mean(), (truth.mean(0) - truth).square().mean()
    print(f"reconstruction error {error / mean_error:.3f} of the mean picture's")
    assert error < 0.6 * mean_error


def test_a_decoder_that_paints_nothing_shows_the_mean_picture(dataset: Episodes) -> None:
    """Patches and pixels meet: it decodes to the mean picture, and its pixel loss is all of the variance."""
    quantizer = fresh()
    batch = observations(dataset)[:4]
    quantizer.mean_picture.copy_(scale(batch).mean(0))
    with torch.no_grad():
        for parameter in quantizer.to_pixels.parameters():
            parameter.zero_()
    mean = batch.float().mean(0)
    pictures = quantizer.decode(quantizer.encode(batch)).float()
    assert (pictures - mean).abs().max() <= 0.5 + 1e-3
    quantizer.pixel_variance.copy_((scale(batch) - quantizer.mean_picture).square().mean())
    draws = generator()
    with torch.no_grad():
        losses = [float(quantizer._pixel_loss(batch, torch.zeros(4, 32), draws)) for _ in range(300)]
    assert np.mean(losses) == pytest.approx(1.0, abs=0.1)  # on average all of the variance is left


def test_scale_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unscale(scale(every)), every)
    assert scale(every).min() == -1
    assert scale(every).max() == 1
    assert torch.equal(unscale(torch.tensor([-2.0, 2.0])), torch.tensor([0, 255], dtype=torch.uint8))


def test_saved_and_loaded_gives_the_same_codes(
    trained: tuple[VQVAE, list[float]], dataset: Episodes, tmp_path: Path
) -> None:
    quantizer, _ = trained
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quantizer.json", "quantizer.safetensors"]
    assert not loaded.training
    assert loaded.config == quantizer.config
    obs = observations(dataset)
    codes = quantizer.encode(obs)
    assert len(codes.unique(dim=0)) > 10
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    assert torch.equal(loaded.features(obs), quantizer.features(obs))


def test_tokenize_keeps_the_order_of_rows(
    trained: tuple[VQVAE, list[float]], dataset: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOC_RL_PRECISION", "float32")  # in bfloat16 rows of another batch may round to another code
    quantizer, _ = trained
    codes, features = tokenize(quantizer, dataset, batch_size=7)
    assert codes.shape == (160, 3)
    assert codes.dtype == torch.int16
    assert features.shape == (160, 24)
    assert features.dtype == torch.float16
    for row in (0, 6, 7, 19, 20, 159):
        obs = torch.from_numpy(dataset.observations(np.array([row])))
        assert torch.equal(quantizer.encode(obs)[0].short(), codes[row])
        torch.testing.assert_close(quantizer.features(obs)[0], features[row].float(), atol=0.05, rtol=0.05)
    whole, _ = tokenize(quantizer, dataset, batch_size=1000)
    assert (whole == codes).float().mean() > 0.99  # sums may round otherwise in another batch
    part = dataset.subset([3])
    assert len(part) == 20
    own = tokenize(quantizer, part, batch_size=7)[0]
    assert (own == codes[part.source_rows]).float().mean() > 0.98
