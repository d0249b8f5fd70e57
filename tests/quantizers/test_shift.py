"""Random shifts: exact copies, one shift for all frames of a stack, every shift equally often."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import generator
from worlds import one_sentence

from voc_rl.errors import VOCError
from voc_rl.quantizers.shift import random_shift


def pictures(rows: int, channels: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 256, (rows, channels, height, width), dtype=np.uint8))


def crops(obs: np.ndarray, pad: int, offsets: np.ndarray) -> np.ndarray:
    """Each row padded by its border and cut out at its (down, right) offset, one after the other."""
    height, width = obs.shape[-2:]
    out = np.empty_like(obs)
    for i, (down, right) in enumerate(offsets + pad):
        padded = np.pad(obs[i], ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        out[i] = padded[:, down : down + height, right : right + width]
    return out


@pytest.mark.parametrize(("channels", "height", "width", "pad"), [(9, 12, 10, 4), (3, 5, 7, 2), (1, 3, 3, 5)])
def test_equals_pad_and_crop_row_by_row(channels: int, height: int, width: int, pad: int) -> None:
    obs = pictures(40, channels, height, width)
    before = obs.clone()
    shifted = random_shift(obs, pad, generator(3))
    offsets = torch.randint(-pad, pad + 1, (2, 40, 1), generator=generator(3))[..., 0].T.numpy()
    assert len(np.unique(offsets, axis=0)) > 10
    assert shifted.dtype == torch.uint8
    np.testing.assert_array_equal(shifted.numpy(), crops(obs.numpy(), pad, offsets))
    assert torch.equal(obs, before)


def test_a_shift_is_one_of_all_and_each_as_likely() -> None:
    """Found from the pictures alone: every row equals exactly one crop, and all nine crops occur alike."""
    obs = pictures(1, 3, 6, 6).expand(1800, -1, -1, -1)
    shifted = random_shift(obs, 1, generator()).numpy()
    every = np.array([(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)])
    options = crops(obs[:9].numpy(), 1, every)
    same = (shifted[:, None] == options[None]).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    assert (np.abs(same.sum(0) - 200) < 60).all()  # four standard deviations


def test_frames_of_a_stack_move_together() -> None:
    frame = pictures(50, 3, 12, 12)
    stack = random_shift(frame.repeat(1, 3, 1, 1), 3, generator())
    assert torch.equal(stack[:, :3], stack[:, 3:6])
    assert torch.equal(stack[:, :3], stack[:, 6:])
    assert not torch.equal(stack[:, :3], frame)
    # what moved by two pixels within the stack still does, whatever the shift
    moving = torch.cat([frame, frame.roll(2, -1)], 1)
    early, late = random_shift(moving, 3, generator())[..., 3:-3, 3:-3].chunk(2, 1)
    assert torch.equal(early[..., 2:-2], late[..., 4:])


def test_edges() -> None:
    obs = pictures(4, 9, 6, 6)
    assert torch.equal(random_shift(obs, 0, generator()), obs)
    assert random_shift(obs[:0], 2, generator()).shape == (0, 9, 6, 6)
    assert torch.equal(random_shift(obs, 2, generator(5)), random_shift(obs, 2, generator(5)))
    view = pictures(4, 18, 6, 6)[:, ::2]  # not contiguous
    assert torch.equal(random_shift(view, 2, generator(5)), random_shift(view.contiguous(), 2, generator(5)))
    with pytest.raises(VOCError, match="pad is -1") as error:
        random_shift(obs, -1, generator())
    assert one_sentence(str(error.value))
