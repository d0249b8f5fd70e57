"""Episodes: alignment, stacks, windows, foreign layouts, subsets, and what crosses a process."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from chains import episodes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small import LENGTHS, SPEC, numbered_frames, toy_episode, write_v_d4rl
from worlds import refusal

from voc_rl.data import Episodes, load_dataset, write_episode
from voc_rl.errors import VOCError


def test_columns_come_back_as_written(dataset: Episodes) -> None:
    assert len(dataset) == sum(LENGTHS)
    assert dataset.spec == SPEC
    np.testing.assert_array_equal(dataset.starts, [0, 7, 9])
    np.testing.assert_array_equal(dataset.ends, [7, 9, 18])
    np.testing.assert_array_equal(dataset.episode, [0] * 7 + [1] * 2 + [2] * 9)
    np.testing.assert_array_equal(dataset.steps_left, [6, 5, 4, 3, 2, 1, 0, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminal), [17])  # a time limit is no termination
    written = [toy_episode(i, n, i == 2) for i, n in enumerate(LENGTHS)]
    for name, dtype in {
        "action": np.float32, "reward": np.float32, "discount": np.float32, "step_type": np.uint8,
        "state": np.float32, "physics": np.float64, "log_prob": np.float32, "unclipped_action": np.float32,
        "policy_id": np.int16,
    }.items():  # fmt: skip
        column = getattr(dataset, name)
        assert column.dtype == dtype, name
        np.testing.assert_array_equal(column, np.concatenate([getattr(e, name) for e in written]), err_msg=name)


@pytest.mark.parametrize("episode", [0, 1, 2])
def test_alignment_of_a_step(dataset: Episodes, episode: int) -> None:
    """From row t: the next row's action and reward, the stack at t and the stack at t + 1."""
    start, rows = dataset.starts[episode], LENGTHS[episode]
    for t in range(rows - 1):
        window = dataset.windows(np.array([start + t]), 1)
        np.testing.assert_allclose(window.action[0, 0], [episode / 100, (t + 1) / 100])
        assert window.reward[0, 0] == 100 * episode + t + 1
        ended = episode == 2 and t == rows - 2
        assert window.discount[0, 0] == (0.0 if ended else 1.0)
        assert window.mask.all()
        assert window.steps[0] == 1
        # oldest frame first; the first frame of the episode fills up the stack at its start
        assert stack_of(window.obs[0]) == [40 * episode + max(t - back, 0) for back in (2, 1, 0)]
        assert stack_of(window.next_obs[0]) == [40 * episode + max(t + 1 - back, 0) for back in (2, 1, 0)]


def stack_of(obs: np.ndarray) -> list[int]:
    """The number of each frame of one stack, whose pixels must all agree."""
    frames = obs.reshape(-1, 3, *obs.shape[1:])
    assert all((frame == frame.flat[0]).all() for frame in frames)
    return [int(frame.flat[0]) for frame in frames]


@pytest.mark.parametrize("stack", [1, 2, 5])
def test_stack_sizes(folder: Path, stack: int) -> None:
    dataset = Episodes.open(folder, stack)
    assert dataset.observation_shape == (3 * stack, 2, 2)
    obs = dataset.observations(np.array([9, 10, 17]))
    expected = [[80 + max(t - back, 0) for back in range(stack - 1, -1, -1)] for t in (0, 1, 8)]
    assert [stack_of(o) for o in obs] == expected


def test_rows_counted_from_the_end(dataset: Episodes) -> None:
    own, rows = np.array([-1, -len(dataset), -3]), np.array([len(dataset) - 1, 0, len(dataset) - 3])
    assert np.array_equal(dataset.stacked_rows(own), dataset.stacked_rows(rows))
    assert np.array_equal(dataset.observations(own), dataset.observations(rows))
    counted, plain = dataset.windows(own, 4), dataset.windows(rows, 4)
    for name, value in vars(plain).items():
        assert np.array_equal(getattr(counted, name), value), name


def test_rows_of_a_mask(dataset: Episodes) -> None:
    """The mask's true rows, in every call; the last rows have no step left."""
    mask, rows = dataset.terminal | (dataset.steps_left == 3), [3, 14, 17]
    expected = dataset.observations(rows)
    np.testing.assert_array_equal(np.flatnonzero(mask), rows)
    np.testing.assert_array_equal(expected[:, ::3, 0, 0], [[1, 2, 3], [83, 84, 85], [86, 87, 88]])
    np.testing.assert_array_equal(dataset.observations(mask), expected)
    np.testing.assert_array_equal(dataset.frames(mask), expected[:, -3:])
    np.testing.assert_array_equal(dataset.stacked_rows(mask), [[1, 2, 3], [12, 13, 14], [15, 16, 17]])
    window = dataset.windows(mask, 2)
    np.testing.assert_array_equal(window.rows, rows)
    np.testing.assert_array_equal(window.reward, [[4, 5], [206, 207], [0, 0]])
    np.testing.assert_array_equal(window.obs, expected)
    nothing = np.zeros(len(dataset), bool)
    for none in ([], nothing):
        assert dataset.observations(none).shape == (0, 9, 2, 2)
        assert dataset.frames(none).shape == (0, 3, 2, 2)
        assert dataset.windows(none, 2).next_obs.shape == (0, 9, 2, 2)


@pytest.mark.parametrize(("rows", "said"), [
    ([18], "There is no row 18; there are 18, from 0 to 17."),
    ([3, -19], "There is no row -19; there are 18, from 0 to 17."),
    ([1.0], "The rows asked for have dtype float64; whole numbers or a mask of bool are needed."),
    ([True] * 3, "The mask of rows has shape (3,); one of shape (18,) is needed."),
    (5, "The rows asked for have shape (); one axis is needed."),
    ([[1, 2]], "The rows asked for have shape (1, 2); one axis is needed."),
])  # fmt: skip
def test_rows_that_are_none(dataset: Episodes, rows: Any, said: str) -> None:
    for call in (dataset.observations, dataset.stacked_rows, partial(dataset.windows, n=2)):
        assert refusal(call, rows) == said
    if "axis" in said:
        assert dataset.frames(rows).shape == (*np.shape(rows), 3, 2, 2)  # frames take any shape
    else:
        assert refusal(dataset.frames, rows) == said


def test_a_long_window_stops_at_its_episode(dataset: Episodes) -> None:
    window = dataset.windows(np.array([4, 6, 7, 9]), 5)
    np.testing.assert_array_equal(window.steps, [2, 0, 1, 5])
    np.testing.assert_array_equal(window.mask.sum(1), window.steps)
    np.testing.assert_array_equal(window.reward[0], [5, 6, 0, 0, 0])
    np.testing.assert_array_equal(window.reward[2], [101, 0, 0, 0, 0])
    np.testing.assert_array_equal(window.reward[3], [201, 202, 203, 204, 205])
    assert [stack_of(o)[-1] for o in window.next_obs] == [6, 6, 41, 85]
    assert window.reward.dtype == window.action.dtype == window.discount.dtype == np.float32


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    n=st.integers(1, 12),
    stack=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_windows_never_cross_an_episode(lengths: list[int], n: int, stack: int, seed: int) -> None:
    """Rewards and frames that carry the number of their row, against plain slices of each episode."""
    first = np.cumsum([0, *lengths])
    dataset = episodes_of([first[i] + np.arange(k, dtype=float) for i, k in enumerate(lengths)], [False] * len(lengths))
    dataset._store.memory = numbered_frames(0, first[-1])
    dataset.stack = stack
    rows = dataset.sample_rows(20, np.random.default_rng(seed))
    window = dataset.windows(rows, n)
    for i, row in enumerate(rows):
        episode = int(np.searchsorted(first, row, side="right")) - 1
        ahead = np.arange(row + 1, min(row + n, first[episode + 1] - 1) + 1)
        assert len(ahead) > 0  # sample_rows leaves out rows without a next one
        assert window.steps[i] == len(ahead)
        np.testing.assert_array_equal(window.reward[i], np.pad(ahead, (0, n - len(ahead))))
        assert stack_of(window.obs[i]) == [max(row - back, first[episode]) for back in range(stack - 1, -1, -1)]
        assert stack_of(window.next_obs[i]) == [
            max(ahead[-1] - back, first[episode]) for back in range(stack - 1, -1, -1)
        ]


def test_sampled_rows_are_uniform_over_those_with_steps_left(dataset: Episodes) -> None:
    rng = np.random.default_rng(0)
    allowed = [3, 2, 1, 0, *range(9, 15)]  # three steps left: rows 0..3 of episode 0, none of 1, 0..5 of 2
    counts = np.bincount(dataset.sample_rows(20000, rng, min_steps=3), minlength=18)
    assert set(np.flatnonzero(counts)) == set(allowed)
    expected = 20000 / len(allowed)
    assert ((counts[allowed] - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, p = .001
    with pytest.raises(VOCError, match=r"No row has 9 step\(s\) left; the longest episode has 8"):
        dataset.sample_rows(1, rng, min_steps=9)
    assert dataset.sample_rows(0, rng).shape == (0,)


def test_subset_of_a_subset(dataset: Episodes) -> None:
    part = dataset.subset([2, 1]).subset([1])
    np.testing.assert_array_equal(part.source_rows, [7, 8])
    np.testing.assert_array_equal(part.reward, [0, 101])
    np.testing.assert_array_equal(part.frames(np.arange(2))[:, 0, 0, 0], [40, 41])
    assert part.spec == dataset.spec
    assert len(dataset) == 18  # untouched
    with pytest.raises(VOCError, match="zero episodes"):
        dataset.subset([])
    best = dataset.returns > 100
    for mask in (best, best.tolist()):
        np.testing.assert_array_equal(dataset.subset(mask).source_rows, np.arange(7, 18))
    np.testing.assert_array_equal(dataset.subset([-1]).source_rows, np.arange(9, 18))
    assert refusal(dataset.subset, [3]) == "There is no episode 3; there are 3, from 0 to 2."
    assert refusal(dataset.subset, 1) == "The episodes asked for have shape (); one axis is needed."


def test_split(dataset: Episodes) -> None:
    train, held_out = dataset.split(0.34, np.random.default_rng(0))
    assert (len(train.starts), len(held_out.starts)) == (2, 1)
    assert sorted([*train.source_rows, *held_out.source_rows]) == list(range(18))
    again = dataset.split(0.34, np.random.default_rng(0))
    np.testing.assert_array_equal(again[0].source_rows, train.source_rows)
    held = {int(dataset.split(0.34, np.random.default_rng(s))[1].source_rows[0]) for s in range(20)}
    assert held == {0, 7, 9}  # every episode is held out by some seed
    for fraction, share in ((0.0, 1), (1.0, 2)):  # both sides get at least one
        assert len(dataset.split(fraction, np.random.default_rng(0))[1].starts) == share
    with pytest.raises(VOCError, match="1 episode cannot be split"):
        dataset.subset([0]).split(0.5, np.random.default_rng(0))
    said = refusal(dataset.split, 1.5, np.random.default_rng(0))
    assert said == "fraction is 1.5; a share between 0 and 1 is needed."
    said = refusal(dataset.split, 0.3, 0)
    assert said == "rng is 0; a np.random.Generator is needed, as np.random.default_rng(0)."


def test_v_d4rl_layout(tmp_path: Path) -> None:
    """Several episodes in a shard, several shards, float step types, float32 or float64, no keys of ours."""
    one = write_v_d4rl(tmp_path / "a.hdf5", (4, 3), first=0, size=84)
    two = write_v_d4rl(tmp_path / "b.h5", (5,), first=100, size=84, reward=np.arange(5, dtype=np.float32))
    assert one["step_type"].dtype == np.float64
    dataset = Episodes.open(tmp_path)
    assert len(dataset) == 12
    assert dataset.observation_shape == (9, 84, 84)
    assert dataset.spec.size == 84
    assert dataset.state is dataset.physics is dataset.log_prob is None
    np.testing.assert_array_equal(dataset.starts, [0, 4, 7])
    np.testing.assert_array_equal(dataset.reward, np.r_[one["reward"], two["reward"]].astype(np.float32))
    np.testing.assert_array_equal(dataset.action, np.r_[one["action"], two["action"]].astype(np.float32))
    np.testing.assert_array_equal(dataset.step_type, [0, 1, 1, 2, 0, 1, 2, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(dataset.frames(np.arange(12))[:, 1, 5, 7], [*range(7), *range(100, 105)])
    assert stack_of(dataset.observations(np.array([4]))[0]) == [
        4,
        4,
        4,
    ]  # the stack of a later episode of a shard
    assert not dataset.terminal.any()


def test_an_optional_key_counts_only_where_every_file_has_it(tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (4,), policy_id=np.zeros(4))
    write_v_d4rl(tmp_path / "b.hdf5", (4,), policy_id=np.ones(4))
    np.testing.assert_array_equal(Episodes.open(tmp_path).policy_id, [0] * 4 + [1] * 4)
    write_v_d4rl(tmp_path / "c.hdf5", (4,))
    assert Episodes.open(tmp_path).policy_id is None


def test_an_episode_without_its_end_is_taken_as_cut_unless_its_discount_is_0(tmp_path: Path) -> None:
    step_type = np.array([0.0, 1, 1, 0, 1, 1, 0, 1, 2])
    discount = np.array([1.0, 1, 1, 1, 0, 0, 1, 1, 0])
    write_v_d4rl(tmp_path / "a.hdf5", (9,), step_type=step_type, discount=discount)
    with pytest.warns(UserWarning, match=r": 1 episode\(s\) without a last step"):
        dataset = Episodes.open(tmp_path)
    np.testing.assert_array_equal(dataset.ends, [3, 6, 9])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminal), [5, 8])
    for episode in range(3):  # what is written of it says the same
        write_episode(tmp_path / "again" / f"{episode}.hdf5", dataset.whole(episode), dataset.spec)
    np.testing.assert_array_equal(np.flatnonzero(Episodes.open(tmp_path / "again").terminal), [5, 8])


def test_rows_that_look_aligned_to_the_next_action_are_warned_of(tmp_path: Path) -> None:
    action, reward = np.zeros((7, 2)), np.zeros(7)
    reward[4], action[1:4] = 3, 0.5
    write_v_d4rl(tmp_path / "a.hdf5", (4, 3), action=action, reward=reward)
    for opened in (Episodes.open, load_dataset):
        with pytest.warns(UserWarning, match=r"1 of 2 episodes have an action or a reward in their first") as caught:
            opened(tmp_path / "a.hdf5")
        assert len(caught) == 1
    reward[4] = 0
    write_v_d4rl(tmp_path / "a.hdf5", (4, 3), action=action, reward=reward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Episodes.open(tmp_path)


def test_several_folders_are_one_dataset(folder: Path, tmp_path: Path) -> None:
    """In the order given, also where their files have the same names; of one making, and each whole."""
    other = tmp_path / "other"
    for i, rows in enumerate((4, 3)):
        write_episode(other / f"episode_{i:03d}.hdf5", toy_episode(5 + i, rows), SPEC)
    both = Episodes.open([folder, other])
    assert (both.ends - both.starts).tolist() == [*LENGTHS, 4, 3]
    parts = [Episodes.open(folder), Episodes.open(other)]
    for name in ("action", "reward", "discount", "step_type"):
        np.testing.assert_array_equal(getattr(both, name), np.concatenate([getattr(part, name) for part in parts]))
    frames = [part.frames(np.arange(len(part))) for part in parts]
    np.testing.assert_array_equal(both.frames(np.arange(25)), np.concatenate(frames))
    np.testing.assert_array_equal(both.load_frames().frames(np.arange(25)), np.concatenate(frames))
    write_episode(tmp_path / "far" / "0.hdf5", toy_episode(0, 4), replace(SPEC, render="faithful"))
    assert f"has render profile faithful, but {both.paths[0]} has fast; keep them apart" in refusal(
        Episodes.open, [folder, tmp_path / "far"]
    )
    write_v_d4rl(tmp_path / "a" / "1.hdf5", (4,), step_type=np.array([0.0, 1, 1, 1]))
    write_v_d4rl(tmp_path / "b" / "2.hdf5", (4,), step_type=np.array([1.0, 1, 1, 2]))
    said = refusal(Episodes.open, [tmp_path / "a", tmp_path / "b"])
    assert "2.hdf5 begins inside an episode, and 1.hdf5 is not the file before it" in said
    assert refusal(Episodes.open, []) == "Zero files or folders were asked for; at least one is needed."
    for nothing in (None, 3, [None]):
        said = f"A dataset's place is {3 if nothing == 3 else None}; the path of a file or folder is needed."
        assert refusal(Episodes.open, nothing) == said


def test_files_of_several_makings_say_what_they_share_alone(tmp_path: Path) -> None:
    medium = replace(SPEC, policy="medium", backend="egl", mujoco="3.1", dm_control="1.1", max_episode_steps=3)
    expert = replace(medium, policy="expert", dm_control="1.0", max_episode_steps=9)
    for name, spec in (("medium", medium), ("expert", expert), ("other", replace(expert, backend="osmesa"))):
        write_episode(tmp_path / name / "0.hdf5", toy_episode(0, 4), spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = Episodes.open([tmp_path / "medium", tmp_path / "expert"])
    for dataset in (both, both.subset([1])):
        assert dataset.spec == replace(medium, policy="", dm_control="1.0, 1.1", max_episode_steps=0)
    with pytest.warns(
        UserWarning, match=r"other/0\.hdf5 was made with backend osmesa \(not egl\), other than .*medium/"
    ):
        three = Episodes.open([tmp_path / name for name in ("medium", "expert", "other")])
    assert three.spec == replace(medium, policy="", dm_control="1.0, 1.1", max_episode_steps=0, backend="")


def test_counts_that_are_none(folder: Path, dataset: Episodes) -> None:
    assert refusal(dataset.windows, np.array([0]), 2.5) == "n is 2.5; a whole number above zero is needed."
    assert refusal(Episodes.open, folder, 2.0) == "stack is 2.0; a whole number above zero is needed."


def test_a_name_with_a_digit_that_is_no_number(tmp_path: Path) -> None:
    for i, name in enumerate(("\u00b21", "\u00b22", "\u00b210")):  # a superscript 2
        write_episode(tmp_path / f"{name}.hdf5", toy_episode(i, 2), SPEC)
    assert Episodes.open(tmp_path).reward.tolist() == [0, 1, 0, 101, 0, 201]


def test_one_chunk_per_frame(folder: Path) -> None:
    with h5py.File(folder / "episode_002.hdf5") as file:
        assert file["observation"].chunks == (1, 3, 2, 2)
        assert file["observation"].compression == "gzip"
        assert file["step_type"].dtype == np.float64  # as in V-D4RL


def test_repr_says_what_it_is(dataset: Episodes) -> None:
    assert repr(dataset) == "Episodes(toy: 3 episodes, 18 rows, frames (3, 2, 2), stack 3)"
    assert repr(toy_episode(0, 3, True)) == "Episode(3 rows, return 3, terminated)"
    assert repr(toy_episode(0, 3)) == "Episode(3 rows, return 3, truncated)"


def test_a_reward_in_a_first_row_is_in_no_return() -> None:
    dataset = episodes_of([np.array([0.0, 1, 2]), np.array([0.0, 4])], [False, True])
    dataset.reward[dataset.starts] = 1e6
    assert dataset.returns.tolist() == [3.0, 4.0]
    assert dataset.returns.dtype == np.float64
