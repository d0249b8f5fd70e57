"""Frames as the paper prepared them, by hand; and which files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import one_sentence

from voc_rl.errors import VOCError
from voc_rl.quantizers.published import levels_of_published, published_frames, read_published


@pytest.mark.parametrize("side", [80, 224, 84])
def test_frames_by_hand(side: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 84, 84), dtype=np.uint8)
    nearest = (np.arange(side, dtype=np.float32) * np.float32(84 / side)).astype(int)  # in float32, as PyTorch does
    expected = frames[:, :, nearest][..., nearest] / 255.0
    for c, shift in enumerate((0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225)):
        expected[:, c] -= shift
    found = published_frames(torch.from_numpy(frames), side)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_levels_come_back_bit_for_bit() -> None:
    frames = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    prepared = published_frames(frames, 16)
    assert torch.equal(levels_of_published(prepared), frames)
    assert levels_of_published(prepared + 9).unique().tolist() == [255]


def test_bare_and_nested(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3), "b": torch.zeros(2, 2)}
    for content in (tensors, {"state_dict": tensors, "epoch": 3}, {"model": tensors, "optimizer": {"lr": 0.1}}):
        torch.save(content, tmp_path / "file.pth")
        found = read_published(tmp_path / "file.pth")
        assert set(found) == {"a", "b"}
        assert torch.equal(found["a"], tensors["a"])


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {1: torch.zeros(2)}, {"model": {}}, torch.zeros(2)])
def test_other_contents_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(VOCError) as caught:
        read_published(tmp_path / "file.pth")
    assert "holds no state dict" in str(caught.value)
    assert one_sentence(str(caught.value))


def test_frames_of_another_kind_are_refused() -> None:
    for frames in (torch.zeros(1, 3, 84, 84), torch.zeros(1, 9, 84, 84, dtype=torch.uint8)):
        with pytest.raises(VOCError, match=r"uint8|\(batch, 3, 84, 84\)"):
            published_frames(frames, 80)
