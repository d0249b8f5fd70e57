"""What a run's report shows of episodes that end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from small import SPEC, numbered_frames, toy_dataset, toy_episode

from voc_rl.data import Episodes, write_episode
from voc_rl.plugin import pictures_of
from voc_rl.reports.plots_frames import _squared
from voc_rl.reports.run_report import _futures, _telling_episode

END = 7


class Decoder:
    """Decodes a code to a stack of two pictures of one column, filled with it; END is not one of its codes."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        assert int(codes.max()) < END
        return (10 + codes[:, :1, None, None]).expand(-1, 6, 4, 4).to(torch.uint8)


def voc_of(drawn: Any) -> Any:
    config = SimpleNamespace(end_code=END)
    return SimpleNamespace(quantizer=Decoder(), occupancy=SimpleNamespace(config=config), futures_of_codes=drawn)


def test_what_comes_after_an_end_has_no_picture() -> None:
    found = pictures_of(voc_of(None), torch.tensor([[3, 3], [END, END], [0, 0]]))
    assert found.shape == (3, 3, 4, 4)
    assert found.reshape(3, -1).max(1).tolist() == found.reshape(3, -1).min(1).tolist() == [13, 0, 10]


def test_real_and_sampled_futures_are_black_after_an_end(tmp_path: Path) -> None:
    for name, terminated in (("ends", (0, 1, 2, 3)), ("cut", ())):
        for i in range(4):
            episode = toy_episode(i, 6, i in terminated, 1 + numbered_frames(10 * i, 6, 4, 4))
            write_episode(tmp_path / name / f"episode_{i}.hdf5", episode, SPEC)
        test = Episodes.open(tmp_path / name)
        drawn = voc_of(lambda codes, features, count, gamma, generator: torch.full((len(codes), count, 2), END))
        pipeline: Any = SimpleNamespace(
            test=test, train=lambda drawn=drawn: drawn,
            tokens_of=lambda test: (torch.zeros(len(test), 2).long(), torch.zeros(len(test), 1)),
        )  # fmt: skip
        contexts, real, sampled = _futures(pipeline, (0.5, 0.99), np.random.default_rng(0), torch.Generator())
        assert not sampled.any()
        assert len(contexts) > 1
        last = test.frames(test.ends[test.episode[contexts]] - 1)
        for context, futures, end in zip(contexts, real, last, strict=True):
            later = {f.tobytes() for f in test.frames(np.arange(context + 1, test.ends[test.episode[context]]))}
            black = [not frame.any() for frame in futures.reshape(-1, *end.shape)]
            assert any(black) == (name == "ends")
            shown = [f.tobytes() for f in futures.reshape(-1, *end.shape) if f.any()]
            assert set(shown) <= later
            assert name == "ends" or end.tobytes() in shown


def test_the_episode_that_tells_most_is_neither_flat_nor_short(tmp_path: Path) -> None:
    data = toy_dataset(tmp_path, (2, 9, 9, 3), terminated=(0, 1, 2, 3))
    data.reward[:] = 0.0
    data.reward[data.ends[[0, 2, 3]] - 1] = 1.0  # all but the second reach a goal; the third walks there
    gamma = SimpleNamespace(occupancy=SimpleNamespace(gamma=0.8))
    assert _telling_episode(SimpleNamespace(test=data, config=gamma)) == 2  # type: ignore[arg-type]


def test_pictures_keep_their_proportions() -> None:
    background = np.array([9, 8, 7], np.uint8)
    found = _squared(np.full((2, 6, 3), 200, np.uint8), background)
    assert found.shape == (6, 6, 3)
    assert (found[2:4] == 200).all()
    assert (found[[0, 1, 4, 5]] == background).all()
