"""What becomes of Minari's spaces: pictures of every layout, numbers of every size, bounds, and what has no place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from voc_rl.data import Episodes
from voc_rl.data.minari_data import open_minari
from voc_rl.data.minari_observations import read_observations
from voc_rl.errors import VOCError

minari = pytest.importorskip("minari")
ROWS = 4


@pytest.mark.parametrize(
    ("shape", "newest"),
    [
        ((84, 84, 3), np.s_[..., :3]), ((84, 84, 9), np.s_[..., 6:]), ((96, 96, 12), np.s_[..., 9:]),
        ((3, 84, 84), np.s_[:, :3]), ((9, 84, 84), np.s_[:, 6:]), ((84, 84, 1), None), ((84, 84, 4), None),
        ((1, 84, 84), None), ((84, 96, 84), None), ((2, 2, 3), np.s_[..., :3]),
    ],
)  # fmt: skip
def test_pictures(shape: tuple[int, ...], newest: Any) -> None:
    pictures = np.random.default_rng(0).integers(256, size=(2, *shape), dtype=np.uint8)
    if newest is None:
        with pytest.raises(VOCError, match=r"^x: pictures are \(\d+, \d+, \d+\); \(H, W, 3K\) or"):
            read_observations(pictures, "x")
        return
    frames, state = read_observations(pictures, "x")
    assert state is None
    last = newest[0] is Ellipsis
    np.testing.assert_array_equal(frames, pictures[newest].transpose(0, 3, 1, 2) if last else pictures[newest])


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def written(space: Any, observations: Any, bounds: Any = (-1, 1)) -> Episodes:
    """Two episodes with the same observations, as Minari itself writes them, and actions (0, 1) / 4, (1, 2) / 4, ..."""
    last = np.arange(ROWS - 1) == ROWS - 2
    actions = (np.arange(ROWS - 1)[:, None] + np.arange(2)).astype(np.float32) / 4
    low, high = (np.broadcast_to(np.float32(bound), 2) for bound in bounds)
    buffer = minari.data_collector.EpisodeBuffer(
        observations=observations, actions=actions, rewards=last * 1.0, terminations=last, truncations=last & False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for authors
        minari.create_dataset_from_buffers(
            "toy-v0", [buffer, buffer], action_space=Box(low, high), observation_space=space,
            jpeg_encoding=False,
        )  # fmt: skip
    return open_minari("toy-v0")


def test_every_number_of_a_dictionary_is_a_column() -> None:
    t = np.arange(ROWS)
    space = Dict(
        {
            "pixels": Box(0, 255, (8, 8, 3), np.uint8), "b": Box(-9, 99, (2,), np.float64), "gear": Discrete(9),
            "speed": Box(0, 9, (), np.float32),
        }
    )  # fmt: skip
    pixels = np.broadcast_to(t.astype(np.uint8)[:, None, None, None], (ROWS, 8, 8, 3)).copy()
    values = {"pixels": pixels, "b": np.stack([t + 10.0, t + 20.0], 1), "gear": t * 2, "speed": t / np.float32(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = written(space, values)
    np.testing.assert_array_equal(dataset.frames(np.arange(ROWS))[:, 0, 0, 0], t)
    np.testing.assert_array_equal(dataset.state[:ROWS], np.stack([t + 10, t + 20, 2 * t, t / 2], 1))


def test_what_has_no_place_is_named_once() -> None:
    space = Dict({"depth": Box(0, 1, (8, 8, 1), np.float32), "v": Box(-9, 9, (1,), np.float32)})
    values = {"depth": np.zeros((ROWS, 8, 8, 1), np.float32), "v": np.ones((ROWS, 1), np.float32)}
    with pytest.warns(UserWarning, match=r"of the observations, float32 \(4, 8, 8, 1\) have no place here") as caught:
        dataset = written(space, values)
    assert len(caught) == 1
    assert dataset.state.shape == (2 * ROWS, 1)
    with pytest.raises(VOCError, match=r"x: observations are float32 \(4, 8, 8, 1\); one picture"):
        read_observations({"depth": values["depth"]}, "x")
    two = {"a": np.zeros((2, 8, 8, 3), np.uint8), "b": np.zeros((2, 8, 8, 3), np.uint8)}
    with pytest.raises(VOCError, match="one picture"):
        read_observations(two, "x")


NUMBERS = (Box(-9, 9, (1,), np.float32), np.ones((ROWS, 1), np.float32))


def test_bounds_inside_one_are_rescaled_too() -> None:
    """As of CarRacing: a policy that answered in the environment's own bounds would be valued wrongly."""
    with pytest.warns(
        UserWarning, match=r"actions are rescaled from \[-1\.0, 0\.0\]\.\.1 to \[-1, 1\]; policies .* answer"
    ):
        dataset = written(*NUMBERS, bounds=([-1, 0], 1))
    np.testing.assert_array_equal(dataset.action[:ROWS], [[0, 0], [0, -0.5], [0.25, 0], [0.5, 0.5]])


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max, 1e7])
def test_bounds_beyond_any_action_are_none(bound: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = written(*NUMBERS, bounds=(-bound, bound))
    np.testing.assert_array_equal(dataset.action[:ROWS], [[0, 0], [0, 0.25], [0.25, 0.5], [0.5, 0.75]])
