"""The VQGAN's published files: the published numbers, and files that are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Payload
from torch import Tensor
from vqgan_layout import (
    PUBLISHED,
    State,
    check_parity,
    frames,
    published_layout,
    random_weights,
    write_weights,
)
from worlds import one_sentence

from voc_rl.errors import VOCError
from voc_rl.quantizers import VQVAE
from voc_rl.quantizers.vqgan import VQGAN, VQGANConfig


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_the_published_numbers(name: str, tmp_path: Path) -> None:
    sizes = PUBLISHED[name]
    path, state = write_weights(tmp_path, sizes)
    quantizer = VQGAN.from_published(path)
    assert not quantizer.training
    assert quantizer.config == VQGANConfig(**{**vars(sizes), "published": True})  # all sizes were inferred
    assert quantizer.observation_shape == (3, 84, 84)
    assert quantizer.n_tokens == (80 // 2 ** (len(sizes.multipliers) - 1)) ** 2
    codes = check_parity(quantizer, state, frames(3))
    assert codes.shape == (3, quantizer.n_tokens)
    assert len(codes.unique()) > 3
    torch.testing.assert_close(quantizer.code_vectors(), state["quantize.embedding.weight"])


def test_the_published_sizes(tmp_path: Path) -> None:
    sizes = VQGANConfig()
    path, state = write_weights(tmp_path, sizes)
    assert sum(tensor.numel() for tensor in state.values()) > 60e6
    quantizer = VQGAN.from_published(path, stack=3)
    assert quantizer.config == VQGANConfig(published=True)
    assert (quantizer.n_tokens, quantizer.codebook_size, quantizer.code_dim) == (75, 1024, 256)
    single = VQVAE.from_published(path)  # the paper's name for it
    assert isinstance(single, VQGAN)
    assert single.n_tokens == 25
    codes = check_parity(single, state, frames(1))
    assert len(codes.unique()) > 3


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 7}, lambda s: {"model": s}])
def test_what_belonged_to_training_is_left_out(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    sizes = PUBLISHED["five levels"]
    _, state = write_weights(tmp_path, sizes)
    extra = {
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(3),
        "model_ema.decay": torch.tensor(0.5),
    }
    torch.save(wrap({**state, **extra}), tmp_path / "more.pth")
    obs = frames(2)
    codes = VQGAN.from_published(tmp_path / "more.pth").encode(obs)
    assert torch.equal(codes, VQGAN.from_published(str(tmp_path / "vqgan.pth")).encode(obs))


def test_half_precision_weights_are_read(tmp_path: Path) -> None:
    _, state = write_weights(tmp_path, PUBLISHED["five levels"])
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pth")
    torch.set_default_dtype(torch.float64)  # makes no difference
    try:
        quantizer = VQGAN.from_published(tmp_path / "half.pth")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in quantizer.state_dict().values() if t.is_floating_point()} == {torch.float32}
    check_parity(quantizer, {name: tensor.half().float() for name, tensor in state.items()}, frames(2))


def test_published_codes_do_not_depend_on_autocast(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    quantizer, obs = VQGAN.from_published(path, stack=2), frames(12, channels=6)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.encode(obs)
    assert torch.equal(codes, quantizer.encode(obs))


def test_a_stack_is_its_frames_oldest_first(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    stacked, single = VQGAN.from_published(path, stack=3), VQGAN.from_published(path)
    assert stacked.observation_shape == (9, 84, 84)
    assert stacked.n_tokens == 75
    obs = frames(13, channels=9)  # 39 frames: more than pass at once
    parts = [single.encode(obs[:, 3 * k : 3 * k + 3]) for k in range(3)]
    assert not torch.equal(parts[0], parts[1])
    codes = stacked.encode(obs)
    # the work is cut elsewhere, and sums of floats with it
    assert (codes == torch.cat(parts, 1)).float().mean() > 0.99
    pictures = torch.cat([single.decode(part) for part in codes.chunk(3, 1)], 1).float()
    assert stacked.decode(codes).shape == obs.shape
    assert (stacked.decode(codes).float() - pictures).abs().max() <= 1


# ---- files that are refused


def refused(path: Path) -> str:
    with pytest.raises(VOCError) as caught:
        VQGAN.from_published(path)
    text = str(caught.value)
    assert one_sentence(text), text
    assert str(path) in text
    return text


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_file_is_never_run(nested: bool, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(random_weights(PUBLISHED["five levels"]))
    state["encoder.conv_in.weight"] = Payload(tmp_path / "created")
    torch.save({"state_dict": state} if nested else state, tmp_path / "evil.pth")
    assert "is refused" in refused(tmp_path / "evil.pth")
    assert not (tmp_path / "created").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)["state_dict" if nested else "encoder.conv_in.weight"]
    assert (tmp_path / "created").exists()  # the trap was live


def changed_states() -> dict[str, tuple[Callable[[State], Any], str]]:
    """Changes of a good state dict, and what is said about them."""

    def without(*names: str) -> Callable[[State], Any]:
        return lambda s: {n: t for n, t in s.items() if n not in names and not n.startswith(names)}

    def replaced(**tensors: Tensor) -> Callable[[State], Any]:
        return lambda s: {**s, **{n.replace("__", "."): t for n, t in tensors.items()}}

    return {
        "a missing bias": (without("decoder.mid.attn_1.k.bias"), r"missing decoder\.mid\.attn_1\.k\.bias, unexp.*noth"),
        "no decoder": (without("decoder."), r"missing decoder\.conv_in\.bias, .* and \d+ more, unexpected nothing"),
        "no codebook": (without("quantize."), r"not a VQGAN: quantize\.embedding\.weight missing"),
        "no stem": (without("encoder.conv_in."), r"not a VQGAN: encoder\.conv_in\.weight missing"),
        "a hole in the levels": (without("encoder.down.2."), r"encoder\.down\.2\.block\.0\.conv1\.weight missing"),
        "an unexpected name": (replaced(extra__weight=torch.zeros(3)), r"missing nothing, unexpected extra\.weight"),
        "another shape": (
            replaced(encoder__norm_out__weight=torch.ones(17)),
            r"encoder\.norm_out\.weight is float32 \(17,\); float \(16,\) is needed",
        ),
        "whole numbers": (
            replaced(quant_conv__bias=torch.zeros(8, dtype=torch.int64)), r"quant_conv\.bias is int64 \(8,\)",
        ),
        "a flat stem": (replaced(encoder__conv_in__weight=torch.zeros(4)), r"encoder\.conv_in\.weight missing or of"),
        "an empty stem": (replaced(encoder__conv_in__weight=torch.zeros(0, 3, 3, 3)), "not multiples of the 0"),
        "broken multiples": (replaced(encoder__conv_in__weight=torch.zeros(3, 3, 3, 3)), "not multiples of the 3"),
        "an empty codebook": (replaced(quantize__embedding__weight=torch.zeros(0, 8)), "codebook_size is 0"),
        "other widths": (
            lambda s: random_weights_of_width(48), "48 channels; at most 32, or a multiple of it",
        ),
        "too deep": (lambda s: {**s, **sixth_level(s)}, "side 80 of a vqgan is not a multiple of 32"),
    }  # fmt: skip


def random_weights_of_width(width: int) -> State:
    return {name: torch.zeros(shape) for name, shape in published_layout_of_width(width).items()}


def published_layout_of_width(width: int) -> dict[str, tuple[int, ...]]:
    sizes = VQGANConfig(16, (1, 1), 1, (), 4, 8, 4)
    object.__setattr__(sizes, "channels", width)  # a width that our config refuses
    return published_layout(sizes)


def sixth_level(state: State) -> State:
    return {n.replace("down.4", "down.5"): t for n, t in state.items() if n.startswith("encoder.down.4.block.")}


@pytest.mark.parametrize("change", changed_states())
def test_other_state_dicts_are_refused(change: str, tmp_path: Path) -> None:
    alter, said = changed_states()[change]
    torch.save(alter(random_weights(PUBLISHED["five levels"])), tmp_path / "other.pth")
    text = refused(tmp_path / "other.pth")
    assert re.search(said, text), text


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "part.pth").write_bytes(whole[: int(share * len(whole))])
        assert re.search(r"part\.pth is (not a whole torch file|refused)", refused(tmp_path / "part.pth"))
    assert "does not exist" in refused(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in refused(tmp_path / "list.pth")
    dino = {
        "encoder.pos_embed": torch.zeros(1, 197, 768),
        "encoder.blocks.0.attn.qkv.weight": torch.zeros(2304, 768),
        "quantize.embedding.weight": torch.zeros(8192, 32),
    }
    torch.save({"model": dino}, tmp_path / "dino.pth")
    text = refused(tmp_path / "dino.pth")
    assert "is not a VQGAN: encoder.conv_in.weight, encoder.conv_out.weight, encoder.down.0" in text
