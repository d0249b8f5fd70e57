"""A file of one kind in the slot of another, and frames that no quantizer takes: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import one_sentence

from voc_rl.checkpoints import save_training_state
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer
from voc_rl.quantizers import VQVAE, DINOTokenizer, build_quantizer

SLOTS: dict[str, Callable[[Path], Any]] = {
    "gpt2": OccupancyTransformer.from_published,
    "vqgan": VQVAE.from_published,
    "vqkd": DINOTokenizer.from_published,
}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "transformer.wte.weight": torch.zeros(12, 16), "transformer.wpe.weight": torch.zeros(8, 16),
        "transformer.h.0.attn.c_attn.weight": torch.zeros(16, 48), "lm_head.weight": torch.zeros(12, 16),
    },
    "vqgan": {
        "encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "encoder.conv_out.weight": torch.zeros(4, 4, 3, 3),
        "encoder.down.0.block.0.conv1.weight": torch.zeros(4, 4, 3, 3), "quantize.embedding.weight": torch.zeros(8, 4),
    },
    "vqkd": {
        "encoder.pos_embed": torch.zeros(1, 197, 48), "encoder.patch_embed.proj.weight": torch.zeros(48, 3, 16, 16),
        "encoder.blocks.0.attn.qkv.weight": torch.zeros(144, 48), "quantize.embedding.weight": torch.zeros(8, 4),
    },
    "our network": dict(OccupancyTransformer(OccupancyConfig(8, 2, n_layer=1, n_head=2, width=16)).state_dict()),
    "a checkpoint of ours": {"fingerprint": "a", "step": 3, "optimizer": {}, "trainee": {"x": torch.zeros(2)}},
}  # fmt: skip


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, slot: str, kind: str) -> None:
    if slot == kind:
        pytest.skip("its own slot")
    path = tmp_path / "file.pth"
    save_training_state(path, KINDS[kind])
    with pytest.raises(VOCError) as caught:
        SLOTS[slot](path)
    assert str(path) in str(caught.value)
    assert one_sentence(str(caught.value)), str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file.pth"]


SMALL: dict[str, dict[str, Any]] = {
    "vqvae": {"components": 2, "hidden": 8, "decoder_width": 4},
    "musik": {"components": 2, "hidden": 8, "decoder_width": 4},
    "vqgan": {"channels": 4, "multipliers": (1, 1), "attention_levels": (), "latent_channels": 4, "side": 8},
    "dino": {"width": 32, "depth": 1, "heads": 2, "patch": 12, "side": 24, "codebook_size": 8, "teacher_width": 32},
}


@pytest.mark.parametrize("name", SMALL)
def test_frames_and_codes_that_do_not_fit_are_refused(name: str) -> None:
    quantizer = build_quantizer(name, (9, 24, 24), SMALL[name])
    good = torch.zeros(2, 9, 24, 24, dtype=torch.uint8)
    assert quantizer.encode(good).shape == (2, quantizer.n_tokens)
    codes, beyond = torch.zeros(2, quantizer.n_tokens, dtype=torch.int64), quantizer.codebook_size
    refused: list[tuple[Callable[[Any], Any], Any, str]] = [
        (quantizer.encode, good.float(), "dtype float32; uint8 frames are needed"),
        (quantizer.encode, good.to(torch.int64), "dtype int64"),
        (quantizer.encode, good[:, :6], r"(batch, 9, 24, 24) is needed"),
        (quantizer.encode, good[..., :12], r"(batch, 9, 24, 24) is needed"),
        (quantizer.encode, good[0], r"(batch, 9, 24, 24) is needed"),
    ]
    for call in (quantizer.embed, quantizer.decode):
        refused += [(call, codes + beyond, "is the codebook"), (call, codes - 1, "is the codebook")]
        refused.append((call, codes[:, :1], "tokens per row are needed"))
    for call, given, said in refused:
        with pytest.raises(VOCError) as caught:
            call(given)
        assert said in str(caught.value)
        assert one_sentence(str(caught.value)), str(caught.value)
