"""What quantizers refuse, and where they make do: arguments, configs, patches, large frames, untrained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import SPEC, toy_episode
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_d4rl
from voc_rl.data import Episodes, load_dataset, write_episode
from voc_rl.data.checks import dataset_remarks
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import (
    VQVAE,
    DINOConfig,
    VQGANConfig,
    VQVAEConfig,
    build_quantizer,
    check_features,
    tokenize,
    train_quantizer,
)
from voc_rl.quantizers.training import fit_quantizer
from voc_rl.quantizers.vqvae import fitting_patch

SIZE = 12
SMALL = VQVAEConfig(n_tokens=3, levels=(5, 4), components=8, hidden=32, decoder_width=8, patch=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    """60 rows of noise."""
    folder = tmp_path_factory.mktemp("noise")
    frames = np.random.default_rng(0).integers(256, size=(60, 3, SIZE, SIZE), dtype=np.uint8)
    write_episode(folder / "0.hdf5", toy_episode(0, 60, frames=frames), SPEC)
    return Episodes.open(folder).load_frames()


def fresh() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE((9, SIZE, SIZE), SMALL)


def test_bad_arguments() -> None:
    quantizer = fresh()
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        quantizer.encode(torch.zeros(2, 9, SIZE, SIZE))
    for shape in ((2, 6, SIZE, SIZE), (9, SIZE, SIZE), (2, 9, SIZE, 6)):
        with pytest.raises(VOCError, match=r"\(batch, 9, 12, 12\) is needed"):
            quantizer.encode(torch.zeros(shape, dtype=torch.uint8))
    for codes, said in [
        (torch.zeros(2, 4, dtype=torch.int64), "3 tokens per row"),
        (torch.tensor([[0, 1, 2], [20, 20, 20]]), r"0\.\.20; 0\.\.19 is the codebook, and 20 is END, a future"),
        (torch.full((2, 3), 21), r"21\.\.21; 0\.\.19 is the codebook\.$"),
        (torch.full((2, 3), -1), r"-1\.\.-1"),
    ]:
        with pytest.raises(VOCError, match=said):
            quantizer.embed(codes)
        with pytest.raises(VOCError, match=said):
            quantizer.decode(codes)
    for codes, said in [
        (np.zeros((2, 3), np.int64), r"^Codes are ndarray; a tensor is needed, as torch\.from_numpy makes"),
        (torch.tensor(3), r"Codes have shape \(\); 3 tokens per row"),
        (
            torch.zeros(1, 2, 3, dtype=torch.int64),
            r"shape \(1, 2, 3\); \(B, n_tokens\) .* give futures\.flatten\(0, 1\)\.$",
        ),
    ]:
        with pytest.raises(VOCError, match=said):
            quantizer.decode(codes)  # type: ignore[arg-type]
    said = refusal(VQVAE, (9, 10, 12), SMALL)
    assert "do not fit vqvae with a patch of 3; sides that are multiples of 6" in said
    assert "another `patch`" in said
    assert "--quantizer dino" in said
    assert "(8, 12, 12) are not stacked frames" in refusal(VQVAE, (8, 12, 12), SMALL)
    with pytest.raises(VOCError, match="Unknown quantizer 'vq'"):
        build_quantizer("vq", (9, SIZE, SIZE))
    built = build_quantizer("vqvae", (9, SIZE, SIZE), {"patch": 3, "levels": [5, 4]})
    assert built.config == VQVAEConfig(patch=3, levels=(5, 4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_tokens": 0}, "n_tokens is 0"), ({"components": 0}, "components is 0"), ({"patch": 0}, "patch is 0"),
        ({"hidden": -1}, "hidden is -1"), ({"conv_width": -1}, "conv_width is -1"), ({"levels": ()}, "levels are ()"),
        ({"levels": (2, 2, 2)}, "levels are (2, 2, 2); one whole number of at least 3"),
        ({"levels": (8, 8, 8, 5, 5, 5)}, "is 64000; at most 32768 codes are accepted, because they are kept as int16"),
    ],
)  # fmt: skip
def test_bad_configs(change: dict[str, Any], said: str) -> None:
    assert said in refusal(build_quantizer, "vqvae", (9, SIZE, SIZE), change)


def test_codebooks_as_large_as_int16_holds() -> None:
    assert VQVAEConfig(levels=(8,) * 5).levels == (8,) * 5  # 32,768
    for config in (VQGANConfig, DINOConfig):
        assert config(codebook_size=32_768).codebook_size == 32_768
        assert "codebook_size is 32769; at most 32768" in refusal(config, codebook_size=32_769)


def test_the_largest_patch_that_fits() -> None:
    shapes = {(9, 84, 84): 6, (9, 64, 64): 4, (3, 100, 100): 5, (9, 128, 96): 4, (9, 84, 64): 2, (9, 63, 63): 6}
    assert {shape: fitting_patch(shape) for shape in shapes} == shapes


@pytest.mark.parametrize("name", ["vqvae", "musik", "vqgan", "dino"])
def test_codes_are_whole_numbers_of_any_width(name: str) -> None:
    """As ``tokenize`` keeps them, or an array of one's own; others would be rounded, or taken for a mask."""
    quantizer = build_quantizer(name, (9, SIZE, SIZE), SIZES.get(name, SIZES["vqvae"])).eval()
    codes = torch.arange(3 * quantizer.n_tokens).reshape(3, -1) % min(quantizer.codebook_size, 100)
    for call in (quantizer.embed, quantizer.decode):
        expected = call(codes)
        for dtype in (torch.int16, torch.int32, torch.uint8, torch.uint16):
            assert torch.equal(call(codes.to(dtype)), expected), dtype
        for other in (0.7 * codes, codes.half(), codes > 0):
            assert refusal(call, other).startswith(f"Codes are {other.dtype}; whole numbers are needed")


def test_untrained_quantizers_say_nothing(dataset: Episodes) -> None:
    said = refusal(tokenize, fresh(), dataset)
    assert said == "Quantizer vqvae is untrained, and its codes say nothing; train it, or load one."


@pytest.mark.parametrize(("name", "sizes"), [("vqvae", {}), ("musik", {}), ("dino", {"side": 12, "patch": 12})])
def test_one_picture_alone_teaches_nothing(name: str, sizes: dict[str, int]) -> None:
    """Refused before anything is divided by its spread, and remarked on by ``voc-rl data validate``."""
    frames = np.full((20, 3, SIZE, SIZE), 7, np.uint8)
    quantizer = build_quantizer(name, (9, SIZE, SIZE), sizes or {"patch": 3})
    dataset = Episodes.from_episodes([toy_episode(0, 20, frames=frames)], SPEC, Path("memory"))
    assert "every frame is the same picture" in refusal(fit_quantizer, quantizer, dataset, 0)
    assert not quantizer.initialised
    remark = "Every frame is the same picture, so that no quantizer can be trained on them."
    assert dataset_remarks(dataset) == [remark]
    frames[19, 2, 0, 0] = 8  # one number of one picture
    other = Episodes.from_episodes([toy_episode(0, 20, frames=frames)], SPEC, Path("memory"))
    assert dataset_remarks(other) == []


def test_data_without_frames_teach_nothing(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "walker2d.hdf5", d4rl_arrays((3, 2)))
    dataset = load_dataset(tmp_path / "walker2d.hdf5")
    for call in (dataset.load_frames, lambda: train_quantizer(fresh(), dataset, LoopConfig(steps=2, batch_size=8))):
        assert (
            "has states but no frames; voc_rl.envs.render_states draws those of HalfCheetah and Walker2d."
            in refusal(call)
        )


def test_a_frozen_quantizer_cannot_be_trained(dataset: Episodes) -> None:
    frozen = fresh().requires_grad_(False)
    assert "Quantizer vqvae has no parameters that train" in refusal(
        train_quantizer, frozen, dataset, LoopConfig(steps=2, batch_size=8)
    )


def test_features_are_asked_of_those_that_have_them() -> None:
    check_features(fresh())
    sizes = {"width": 8, "depth": 1, "heads": 1, "patch": 12, "side": 12, "codebook_size": 8, "teacher_width": 32}
    check_features(build_quantizer("dino", (9, SIZE, SIZE), {**sizes, "features": True}))
    said = refusal(check_features, build_quantizer("dino", (9, SIZE, SIZE), sizes))
    assert "Quantizer dino has no continuous features" in said
    assert "inputs='tokens'" in said


SIZES: dict[str, dict[str, Any]] = {
    "vqvae": {"patch": 3, "components": 8, "hidden": 32, "decoder_width": 8},
    "musik": {"patch": 3, "components": 8, "hidden": 32, "decoder_width": 8},
    "vqgan": {
        "channels": 4, "multipliers": (1, 2), "residual_blocks": 1, "attention_levels": (1,), "latent_channels": 4,
        "codebook_size": 8, "code_dim": 4, "side": 4,
    },
    "dino": {
        "width": 8, "depth": 1, "heads": 1, "patch": 6, "side": 12, "codebook_size": 8, "teacher_width": 32,
        "features": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_list_is_a_shape_and_no_type_but_float32(name: str) -> None:
    """Neither PyTorch's default type nor autocast decides what a quantizer and its features are."""
    obs = torch.randint(256, (4, 9, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.set_default_dtype(torch.float64)
    try:
        quantizer = build_quantizer(name, [9, SIZE, SIZE], SIZES[name])  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)
    assert quantizer.observation_shape == (9, SIZE, SIZE)
    assert {t.dtype for t in quantizer.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert quantizer.encode(obs).shape == (4, quantizer.n_tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer.features(obs).dtype == torch.float32
        assert quantizer.codes_and_features(obs)[1].dtype == torch.float32


def test_large_frames_are_fitted_on_fewer_rows(dataset: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(VQVAE, "initialise", lambda self, obs, *rest: seen.append(len(obs)))
    for room in (1 << 30, 50 * 9 * SIZE**2 + 1, 1):
        monkeypatch.setattr("voc_rl.quantizers.training.FITTING_BYTES", room)
        fit_quantizer(fresh(), dataset, 0)
    assert seen == [60, 50, 1]
