"""The DINO tokenizer: its training, codes, pictures, features and files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from small import generator
from torch import Tensor
from worlds import refusal, write_world

from voc_rl.checkpoints import load_tensors
from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import (
    DINOConfig,
    DINOTokenizer,
    build_quantizer,
    load_quantizer,
    save_quantizer,
    tokenize,
    train_quantizer,
)
from voc_rl.quantizers.base import scale

SIZE = 24
TINY = DINOConfig(
    width=32, depth=1, heads=2, patch=6, side=SIZE, codebook_size=16, code_dim=4, features=True, decoder_width=16,
    teacher_width=32, teacher_steps=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, size=SIZE)
    return Episodes.open(folder).load_frames()


def fresh(seed: int = 0, stack: int = 3, config: DINOConfig = TINY) -> DINOTokenizer:
    torch.manual_seed(seed)
    return DINOTokenizer((3 * stack, SIZE, SIZE), config)


def observations(dataset: Episodes) -> Tensor:
    return torch.from_numpy(dataset.observations(np.arange(len(dataset))))


@pytest.fixture(scope="module")
def trained(dataset: Episodes) -> tuple[DINOTokenizer, list[float]]:
    cosines: list[float] = []
    config = LoopConfig(steps=300, batch_size=32, learning_rate=3e-3)

    def log(stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if stage == "quantizer":
            cosines.append(numbers["cosine"])

    quantizer = train_quantizer(fresh(), dataset, config, log=log)
    assert isinstance(quantizer, DINOTokenizer)
    return quantizer, cosines


@pytest.mark.parametrize("stack", [1, 3])
def test_shapes_dtypes_and_ranges(dataset: Episodes, stack: int) -> None:
    quantizer = fresh(stack=stack)
    obs = observations(dataset)[:40, -3 * stack :]
    quantizer.initialise(obs, generator())
    torch.testing.assert_close(quantizer.mean_frame, scale(obs[:, -3:]).mean(0), atol=1e-5, rtol=1e-4)
    assert quantizer.n_tokens == 16 * stack
    assert quantizer.codebook_size == 16
    latents = quantizer.latents(obs)
    assert latents.shape == (40, quantizer.n_tokens, 4)
    assert latents.dtype == torch.float32
    codes = quantizer.encode(obs)
    assert codes.shape == (40, quantizer.n_tokens)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() < codes.max() < 16
    vectors = quantizer.embed(codes)
    assert vectors.shape == latents.shape
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert torch.equal(quantizer.code_vectors()[codes], vectors)
    # only directions count; of two codes that point the same way, rounding decides
    torch.testing.assert_close(quantizer.embed(quantizer.quantize(5 * vectors)), vectors)
    pictures = quantizer.decode(codes)
    assert pictures.shape == obs.shape
    assert pictures.dtype == torch.uint8
    features = quantizer.features(obs)
    assert features.shape == (40, quantizer.feature_dim) == (40, 32 * stack)
    assert features.dtype == torch.float32
    loss, numbers = quantizer.loss(obs, generator())
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(float(sum(numbers.values())), rel=1e-5)
    assert quantizer.encode(obs[:0]).shape == (0, quantizer.n_tokens)


def test_a_stack_is_its_frames_oldest_first(trained: tuple[DINOTokenizer, list[float]], dataset: Episodes) -> None:
    quantizer, _ = trained
    single = fresh(stack=1)
    single.load_state_dict(quantizer.state_dict())
    obs = observations(dataset)[:20]
    parts = torch.cat([single.encode(obs[:, 3 * k : 3 * k + 3]) for k in range(3)], 1)
    assert torch.equal(quantizer.encode(obs), parts)
    pictures = torch.cat([single.decode(part) for part in parts.chunk(3, 1)], 1)
    assert torch.equal(quantizer.decode(parts), pictures)
    # row by row within a frame: a change at the top right changes the codes there most
    image = torch.full((1, 3, SIZE, SIZE), 60, dtype=torch.uint8)
    changed = image.clone()
    changed[..., :6, 18:] = 240
    moved = (single.latents(changed) - single.latents(image)).norm(dim=-1)
    assert moved.argmax() == 3


def test_features_are_the_newest_frame_then_motion(
    trained: tuple[DINOTokenizer, list[float]], dataset: Episodes
) -> None:
    quantizer, _ = trained
    obs = observations(dataset)
    features = quantizer.features(obs)
    assert features[dataset.starts, 32:].abs().max() < 1e-4  # a stack of one frame repeated does not move
    single = fresh(stack=1)
    single.load_state_dict(quantizer.state_dict())
    now, before, oldest = (single.features(obs[:, 3 * k : 3 * k + 3]) for k in (2, 1, 0))
    expected = torch.cat([now, now - before, before - oldest], 1)
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)
    assert features[:, 32:].abs().max() > 0.1
    assert now.mean().abs() < 0.5  # in units of their own spread
    assert 0.3 < now.std() < 3
    assert fresh(config=DINOConfig(**{**vars(TINY), "features": False})).features(obs).shape == (320, 0)


def test_training_distils_the_teacher_through_several_codes(
    trained: tuple[DINOTokenizer, list[float]], dataset: Episodes
) -> None:
    quantizer, cosines = trained
    assert not quantizer.training
    assert cosines[-1] < 0.5 * cosines[0]
    codes = quantizer.encode(observations(dataset))
    shares = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
    perplexity = float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))
    assert perplexity > 2
    # a frame's codes tell the column of the square
    assert len(codes[:, -16:].unique(dim=0)) >= 4


def test_pictures_come_nearer_than_the_mean(trained: tuple[DINOTokenizer, list[float]], dataset: Episodes) -> None:
    quantizer, _ = trained
    truth = observations(dataset).float()
    with torch.no_grad():
        pictures = quantizer.decode(quantizer.encode(observations(dataset))).float()
    error, mean_error = (pictures - truth).square().mean(), (truth.mean(0) - truth).square().mean()
    assert error < 0.3 * mean_error


def test_untrained_pictures_are_the_mean_frame(dataset: Episodes) -> None:
    quantizer = fresh()
    obs = observations(dataset)
    quantizer.initialise(obs, generator())
    mean = obs[:, -3:].float().mean(0).repeat(3, 1, 1)
    assert (quantizer.decode(quantizer.encode(obs[:4])).float() - mean).abs().max() <= 0.5 + 1e-3


def test_the_painter_moves_no_code(dataset: Episodes) -> None:
    quantizer = fresh()
    obs = observations(dataset)[:32]
    quantizer.initialise(obs, generator())

    def gradients() -> dict[str, Tensor]:
        quantizer.zero_grad()
        quantizer.eval().loss(obs, generator())[0].backward()
        return {name: p.grad.clone() for name, p in quantizer.named_parameters() if p.grad is not None}

    blank = gradients()
    with torch.no_grad():
        quantizer.painter[-2].weight.normal_()
    painted = gradients()
    for name in blank:
        same = torch.equal(blank[name], painted[name])
        assert same != name.startswith("painter"), name
    assert {"encoder.cls_token", "to_code.0.weight", "distillation.to_features.2.bias"} < set(blank)
    assert not any(name.startswith(("teacher", "codebook")) for name in blank)
    quantizer.zero_grad()
    quantizer.decoder_loss(obs).backward()
    assert {name.split(".")[0] for name, p in quantizer.named_parameters() if p.grad is not None} == {"painter"}
    assert quantizer.decoder_loss(obs).detach() == pytest.approx(
        float(quantizer.loss(obs, generator())[1]["pixels"]), rel=1e-4
    )


def test_the_teacher_stays_as_it_was(dataset: Episodes) -> None:
    quantizer = fresh()
    quantizer.initialise(observations(dataset), generator())
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in quantizer.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        quantizer.train().loss(observations(dataset)[:32], generator(step))[0].backward()
        optimizer.step()
    after = quantizer.state_dict()
    for part in ("teacher", "encoder", "to_code", "distillation", "painter", "codebook", "feature_mean"):
        same = all(torch.equal(before[name], after[name]) for name in before if name.startswith(part))
        assert same == (part == "teacher"), part


def test_one_pass_gives_the_codes_and_features_of_two(dataset: Episodes) -> None:
    for features in (True, False):
        quantizer = fresh(config=DINOConfig(**{**vars(TINY), "features": features}))
        obs = observations(dataset)
        quantizer.initialise(obs, generator())
        passes: list[int] = []
        quantizer.encoder.patch_embed.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        codes, found = quantizer.codes_and_features(obs[:8])
        assert len(passes) == 1
        assert torch.equal(codes, quantizer.encode(obs[:8]))
        assert torch.equal(found, quantizer.features(obs[:8]))
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        fresh().codes_and_features(torch.zeros(2, 9, SIZE, SIZE))


def test_the_teachers_curve(dataset: Episodes) -> None:
    curve: list[tuple[str, int]] = []
    losses: list[float] = []

    def log(stage: str, step: int, numbers: Mapping[str, float]) -> None:
        curve.append((stage, step))
        losses.append(numbers["loss"])

    config = DINOConfig(**{**vars(TINY), "teacher_steps": 60})
    train_quantizer(fresh(config=config), dataset, LoopConfig(steps=10, batch_size=8), log=log)
    assert curve == [("teacher", 50), ("teacher", 60), ("quantizer", 10)]
    assert 0 < losses[0] < math.log(64) + 0.5  # at most about that of guessing among the prototypes


def test_saved_and_loaded_gives_the_same_codes(
    trained: tuple[DINOTokenizer, list[float]], dataset: Episodes, tmp_path: Path
) -> None:
    quantizer, _ = trained
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.config == quantizer.config
    obs = observations(dataset)
    codes = quantizer.encode(obs)
    assert len(codes.unique(dim=0)) > 4
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    assert torch.equal(loaded.features(obs), quantizer.features(obs))
    assert {name.split(".")[0] for name in load_tensors(tmp_path / "quantizer.safetensors")} == {
        "encoder", "to_code", "codebook", "distillation", "teacher", "painter", "mean_frame", "pixel_variance",
        "feature_mean", "feature_variance",
    }  # fmt: skip


def test_tokenize(trained: tuple[DINOTokenizer, list[float]], dataset: Episodes) -> None:
    quantizer, _ = trained
    codes, features = tokenize(quantizer, dataset, batch_size=50)
    assert codes.shape == (320, 48)
    assert features.shape == (320, 96)
    assert (codes.long() == quantizer.encode(observations(dataset))).float().mean() > 0.9  # bfloat16 against float32


def test_frames_of_other_sizes() -> None:
    """Frames are fitted to the side that the encoder sees, and pictures to the frames."""
    torch.manual_seed(0)
    quantizer = DINOTokenizer((3, 20, 30), TINY)
    obs = torch.randint(256, (64, 3, 20, 30), generator=generator()).to(torch.uint8)
    quantizer.initialise(obs, generator())
    assert quantizer.decode(quantizer.encode(obs)).shape == obs.shape
    assert quantizer.loss(obs, generator())[0].isfinite()


def test_small() -> None:
    config = DINOConfig.small(codebook_size=64)
    quantizer = build_quantizer("dino", (9, 84, 84), config)
    assert quantizer.n_tokens == 3 * 49
    assert quantizer.feature_dim == 3 * 96
    assert quantizer.codebook_size == 64
    codes = quantizer.encode(torch.zeros(1, 9, 84, 84, dtype=torch.uint8))
    assert quantizer.decode(codes).shape == (1, 9, 84, 84)


def test_bad_arguments() -> None:
    quantizer = fresh()
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        quantizer.encode(torch.zeros(2, 9, SIZE, SIZE))
    with pytest.raises(VOCError, match=r"\(batch, 9, 24, 24\) is needed"):
        quantizer.encode(torch.zeros(2, 6, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(VOCError, match="48 tokens per row"):
        quantizer.decode(torch.zeros(2, 16, dtype=torch.int64))
    with pytest.raises(VOCError, match=r"16\.\.16; 0\.\.15 is the codebook"):
        quantizer.embed(torch.full((2, 48), 16))
    for changed, said in [
        ({"heads": 5}, "width 32 of a dino tokenizer is not a multiple of its 5 heads"),
        ({"patch": 7}, "side 24 of a dino tokenizer is not a multiple of its patch 7"),
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"teacher": "resnet18"}, "teacher is 'resnet18'; '' (self-distilled) or 'timm:NAME' is needed"),
        ({"teacher_width": 40}, "teacher_width is 40; a multiple of 32"),
    ]:
        assert said in refusal(build_quantizer, "dino", (9, SIZE, SIZE), {**vars(TINY), **changed})
    with pytest.raises(VOCError, match=r"\(4, 24, 24\) are not stacked frames"):
        DINOTokenizer((4, SIZE, SIZE), TINY)
