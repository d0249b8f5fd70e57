"""What MUSIK tells the logged action from: uniform actions, or others that were taken where these are few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import generator, toy_episode
from torch import Tensor
from worlds import CELLS, SPEC, picture

from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import train_quantizer
from voc_rl.quantizers.musik import MUSIK, MUSIKConfig, TakenActions, candidate_actions

SIZE = 24
SMALL = MUSIKConfig(
    n_tokens=2, levels=(4, 3), components=8, hidden=32, decoder_width=8, patch=6, horizon=1, negatives=32,
    energy_hidden=32,
)  # fmt: skip
NONE = torch.zeros(0, dtype=torch.int64), torch.zeros(1, 0)  # listed and choices where every dimension is continuous
ONE_HOT = np.eye(CELLS, dtype=np.float32)
CORNERS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)


def dataset_of(actions: np.ndarray, shown: np.ndarray | None = None) -> Episodes:
    """One episode with actions (T, A); row t shows a square in column ``shown[t]``."""
    rows = len(actions) + 1
    episode = toy_episode(0, rows, frames=None if shown is None else picture(shown, SIZE))
    action = np.concatenate([0 * actions[:1], actions])
    return Episodes.from_episodes([replace(episode, action=action, unclipped_action=None)], SPEC, Path("choices"))


def taken(actions: np.ndarray) -> tuple[list[int], Tensor]:
    found = TakenActions(dataset_of(actions))
    return found.listed.tolist(), torch.from_numpy(found.choices)


def test_uniform_candidates_of_continuous_actions() -> None:
    action = torch.tensor([[0.5, -0.25], [0.1, 0.9]])
    candidates = candidate_actions(action, *NONE, 4000, generator())
    assert candidates.shape == (2, 4001, 2)
    assert torch.equal(candidates[:, 0], action)
    negatives = candidates[:, 1:]
    assert torch.equal(negatives, 2 * torch.rand(2, 4000, 2, generator=generator()) - 1)
    torch.testing.assert_close(negatives.mean(1), torch.zeros(2, 2), atol=0.05, rtol=0)
    torch.testing.assert_close(negatives.var(1), torch.full((2, 2), 1 / 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("choices", [ONE_HOT, CORNERS])
def test_few_choices_are_all_candidates_once(choices: np.ndarray) -> None:
    actions = choices[np.random.default_rng(0).integers(len(choices), size=100)]
    listed, found = taken(actions)
    assert listed == list(range(actions.shape[1]))
    expected = 2 * choices - 1 if choices is ONE_HOT else choices
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in expected.tolist()}
    for action in found:
        for negatives in (len(choices) - 1, 256):
            candidates = candidate_actions(action[None], torch.tensor(listed), found, negatives, generator())
            assert torch.equal(candidates[0, 0], action)
            assert torch.equal(candidates[0].unique(dim=0), found)
            assert candidates.shape[1] == len(choices)


def test_dimensions_of_few_values_beside_continuous_ones() -> None:
    """A gripper beside an arm: its values are drawn as they were taken together, and the arm's uniformly."""
    rng = np.random.default_rng(0)
    arm, both = rng.uniform(-1, 1, (500, 1)), rng.choice([-1.0, 1.0], (500, 1))
    listed, choices = taken(np.hstack([both, arm, both]).astype(np.float32))
    assert listed == [0, 2]
    assert choices.tolist() == [[-1, -1], [1, 1]]
    candidates = candidate_actions(torch.zeros(3, 3), torch.tensor(listed), choices, 4000, generator())
    negatives = candidates[:, 1:]
    assert torch.equal(negatives[..., 0], negatives[..., 2])
    assert torch.equal(negatives[..., 0].abs(), torch.ones(3, 4000))
    torch.testing.assert_close(negatives.mean(1), torch.zeros(3, 3), atol=0.07, rtol=0)  # four standard deviations
    assert torch.equal(negatives[..., 1], (2 * torch.rand(3, 4000, 3, generator=generator()) - 1)[..., 1])


def test_more_choices_than_negatives_are_drawn() -> None:
    choices = torch.tensor([[a, b] for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)])
    candidates = candidate_actions(choices[:3], torch.tensor([0, 1]), choices, 7, generator())
    assert candidates.shape == (3, 8, 2)
    assert torch.equal(candidates[:, 0], choices[:3])
    many = torch.cat(
        [candidate_actions(choices[:1], torch.tensor([0, 1]), choices, 7, generator(i)) for i in range(99)]
    )
    drawn, counts = many[:, 1:].flatten(0, 1).unique(dim=0, return_counts=True)
    assert torch.equal(drawn, choices)
    assert (abs(counts - 77) < 34).all()  # four standard deviations


def test_continuous_actions_are_not_listed() -> None:
    rng = np.random.default_rng(0)
    clipped = np.clip(rng.normal(size=(400, 2)), -1, 1).astype(np.float32)  # a third of them at the bounds
    for actions in (clipped, clipped[:12], np.repeat(clipped, 4, 0)):
        assert taken(actions)[0] == []


@pytest.mark.parametrize("choices", [ONE_HOT, CORNERS])
def test_only_pairs_tell_which_choice_was_taken(choices: np.ndarray) -> None:
    """Each frame shows the choice that led to it, or another one. A classifier that looks at actions alone guesses."""
    rng = np.random.default_rng(0)
    chosen, other = rng.integers(4, size=(2, 600))
    end = {}
    for name, shown in (("told", chosen), ("untold", other)):
        dataset = dataset_of(choices[chosen], np.insert(shown, 0, 0))
        torch.manual_seed(0)
        losses: list[float] = []
        train_quantizer(
            MUSIK((9, SIZE, SIZE), SMALL), dataset, LoopConfig(steps=300, batch_size=64, learning_rate=3e-3),
            log=lambda stage, step, numbers, losses=losses: losses.append(numbers["infonce"]),
        )  # fmt: skip
        end[name] = np.mean(losses[-2:])
    print(
        f"infonce {end['told']:.2f} where the frames tell, {end['untold']:.2f} where not; guessing is {np.log(4):.2f}"
    )
    assert end["told"] < 0.5 * np.log(4)
    assert end["untold"] == pytest.approx(np.log(4), abs=0.1)
