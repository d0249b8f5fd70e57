"""Quantizer files that are damaged or of another kind are refused in a sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from voc_rl.checkpoints import load_tensors, save_tensors, write_json
from voc_rl.errors import VOCError
from voc_rl.quantizers import QUANTIZERS, VQVAE, VQVAEConfig, load_quantizer, save_quantizer
from voc_rl.sizes import SIZES, sized

SIZE = 12
SMALL = VQVAEConfig(n_tokens=3, levels=(5, 4), components=8, hidden=32, decoder_width=8, patch=3)


def fresh(config: VQVAEConfig = SMALL) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE((9, SIZE, SIZE), config)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(VOCError, match=r"quantizer description .*quantizer\.json does not exist"):
        load_quantizer(tmp_path)
    save_quantizer(fresh(), tmp_path)
    path, weights = tmp_path / "quantizer.json", tmp_path / "quantizer.safetensors"
    good, tensors = json.loads(path.read_text()), load_tensors(weights)
    for changed, said in [
        ({"format_version": 99}, "has format version 99; this voc_rl reads version 1: make it anew"),
        (
            {"name": "magic"},
            r"Unknown quantizer 'magic'; accepted: .*vqvae; one of your own is entered first: ",
        ),
        ({"name": ["vqvae"]}, r"Unknown quantizer \['vqvae'\]; accepted"),
        ({"config": {**good["config"], "colour": 3}}, r"unknown key\(s\) colour"),
        ({"config": 3}, "config"),
        ({"observation_shape": [9, 13, 12]}, "multiples of 6"),
        ({"observation_shape": "large"}, "observation_shape"),
        ({"observation_shape": [9, 12]}, "observation_shape"),
    ]:
        write_json(path, {**good, **changed})
        with pytest.raises(VOCError, match=said):
            load_quantizer(tmp_path)
    for key in ("name", "config", "observation_shape"):
        write_json(path, {k: v for k, v in good.items() if k != key})
        with pytest.raises(VOCError, match=rf"{re.escape(str(path))} lacks the key '{key}'"):
            load_quantizer(tmp_path)
    write_json(path, good)
    save_quantizer(fresh(config=VQVAEConfig(**{**good["config"], "levels": (5, 4), "hidden": 16})), tmp_path)
    write_json(path, good)
    with pytest.raises(VOCError, match=r"quantizer\.safetensors: .* has shape .*16.*32.* is needed"):
        load_quantizer(tmp_path)
    save_tensors(weights, {k: v for k, v in tensors.items() if k != "to_pixels.bias"})
    with pytest.raises(VOCError, match=r"does not fit VQVAE: missing to_pixels\.bias"):
        load_quantizer(tmp_path)
    weights.unlink()
    with pytest.raises(VOCError, match="does not exist"):
        load_quantizer(tmp_path)


class Mine(VQVAE):
    """A quantizer of a user's own."""

    name = "mine"


def test_a_quantizer_of_ones_own_is_saved_once_it_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mine = Mine((9, SIZE, SIZE), SMALL)
    with pytest.raises(VOCError, match=r"No quantizer 'mine' is known.*QUANTIZERS\['mine'\] = "):
        save_quantizer(mine, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(QUANTIZERS, "mine", (Mine, VQVAEConfig))
    for size in ("small", "paper"):
        assert sized(size, "mine") == replace(SIZES[size], quantizer="mine", quantizer_config={})
    save_quantizer(mine, tmp_path)
    again = load_quantizer(tmp_path)
    assert isinstance(again, Mine)
    for name, tensor in mine.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
