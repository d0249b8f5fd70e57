"""What MUSIK's classifier is shown: frames some steps apart and the action between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import toy_dataset

from voc_rl.data import Episodes
from voc_rl.data.hdf5 import FIRST
from voc_rl.quantizers import musik
from voc_rl.quantizers.musik import MUSIK, MUSIKBatch, MUSIKConfig, TakenActions

TINY = MUSIKConfig(
    n_tokens=2, levels=(4, 3), components=2, hidden=32, decoder_width=8, patch=1, horizon=5, negatives=32,
    energy_hidden=32,
)  # fmt: skip


def drawn(dataset: Episodes, rows: np.ndarray) -> MUSIKBatch:
    torch.manual_seed(0)
    return MUSIK((9, 2, 2), TINY).batch(dataset, rows, np.random.default_rng(0))


def test_pairs_are_aligned_and_never_cross_an_episode(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (6, 2, 9), terminated=(1,))
    rows = np.tile(np.arange(len(dataset)), 40)
    batch = drawn(dataset, rows)
    assert [t.dtype for t in batch[:4]] == [torch.uint8, torch.uint8, torch.float32, torch.int64]
    assert batch.obs.shape == batch.later.shape == (len(rows), 9, 2, 2)
    obs, later = (x[:, ::3, 0, 0].long().numpy() for x in (batch.obs, batch.later))
    # the frame of row t of episode e is 40 e + t
    episode, t = obs[:, -1] // 40, obs[:, -1] % 40
    steps, length = batch.steps.numpy(), np.array([6, 2, 9])[obs[:, -1] // 40]
    np.testing.assert_array_equal(later[:, -1], 40 * episode + t + steps)
    for stack, newest in ((obs, t), (later, t + steps)):
        for back in (1, 2):
            np.testing.assert_array_equal(stack[:, -1 - back], 40 * episode + np.maximum(newest - back, 0))
    # the action taken at t stands in row t + 1; 0..2 and 1..8 hundredths are brought to -1..1
    expected = np.stack([episode - 1, (t + 1 - 4.5) / 3.5], 1)
    np.testing.assert_allclose(batch.action.numpy(), expected, atol=1e-5)
    assert steps.min() == 1
    assert steps.max() == TINY.horizon
    assert (t + steps <= length - 1).all()
    # rows with a step left are taken as they come; the last rows of episodes are drawn anew
    kept = dataset.steps_left[rows] > 0
    np.testing.assert_array_equal((40 * dataset.episode + _time(dataset))[rows[kept]], obs[kept, -1])
    assert len(np.unique(obs[~kept, -1])) == 14  # any row but the three last ones
    assert {0, 40, 80} <= set(obs[:, -1])
    assert {5, 41, 88} <= set(later[:, -1])


def _time(dataset: Episodes) -> np.ndarray:
    return np.arange(len(dataset)) - dataset.starts[dataset.episode]


def test_actions_are_looked_at_once_for_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = toy_dataset(tmp_path / "one", (6, 4)), toy_dataset(tmp_path / "other", (9, 4))
    asked: list[Episodes] = []
    monkeypatch.setattr(musik, "TakenActions", lambda dataset: asked.append(dataset) or TakenActions(dataset))
    quantizer, rng = MUSIK((9, 2, 2), TINY), np.random.default_rng(0)
    batches = [quantizer.batch(dataset, np.arange(5), rng) for dataset in (one, one, other, other)]
    assert asked == [one, other]
    largest = [float(batch.action.abs().max()) for batch in batches]
    assert largest == pytest.approx([1.0] * 4)  # in the range of its own dataset
    one.action = 3 * one.action
    torch.testing.assert_close(quantizer.batch(one, np.arange(5), rng).action, batches[0].action)


def test_k_is_uniform_where_the_episode_is_long_enough(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (30,))
    steps = drawn(dataset, np.zeros(5000, np.int64)).steps
    counts = torch.bincount(steps)
    assert counts[0] == 0
    assert len(counts) == TINY.horizon + 1
    assert (abs(counts[1:] - 1000) < 120).all()  # four standard deviations
    late = drawn(dataset, np.full(500, 27)).steps
    assert set(late.tolist()) == {1, 2}


def test_actions_fill_the_range_of_the_negatives(tmp_path: Path) -> None:
    """Small, large and lopsided ones alike; a dimension that never changes would tell the logged action at sight."""
    dataset, rows = toy_dataset(tmp_path, (6, 6)), np.arange(5)
    taken = np.random.default_rng(0).uniform(-1, 1, (12, 2)).astype(np.float32)
    taken[3], taken[8] = -1, 1
    first = (dataset.step_type == FIRST)[:, None]
    dataset.action = np.where(first, 0, taken)
    plain = drawn(dataset, rows).action
    assert torch.equal(plain, torch.from_numpy(taken[rows + 1]))  # all of the range is used: they stay as they are
    small, large, still = 0.05 * taken[:, :1] + 0.3, 40 * taken[:, 1:], np.full((12, 1), 0.5)
    dataset.action = np.where(first, 0, np.hstack([still, small, still, large])).astype(np.float32)
    torch.testing.assert_close(drawn(dataset, rows).action, plain, atol=1e-5, rtol=0)
