"""The critics learn values that are known functions of the picture, from returns that are really known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from chains import episodes_of
from worlds import exact_values, write_world

from voc_rl.benchmarks import baselines
from voc_rl.benchmarks.baselines import Budget, ConvolutionalCritic, _Goals, _shifted, train_critic
from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.values import discounted_returns, horizon, scores

GAMMA, CELLS, SIZE, ROWS = 0.8, 4, 36, 60


def world(folder: Path, episodes: int, seed: int) -> tuple[Episodes, np.ndarray]:
    columns = write_world(folder, episodes, ROWS, SIZE, CELLS, seed)
    return Episodes.open(folder).load_frames(), columns.ravel()


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return world(tmp_path_factory.mktemp("training"), 14, 0)[0]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Episodes, np.ndarray]:
    return world(tmp_path_factory.mktemp("held_out"), 4, 1)


def known_rows(dataset: Episodes) -> tuple[np.ndarray, np.ndarray]:
    returns, known = discounted_returns(dataset, GAMMA)
    return np.flatnonzero(known), returns[known]


@pytest.mark.parametrize(("kind", "n"), [("mc", 20), ("td", 20), ("td", 3)])
def test_both_learn_the_value(training: Episodes, held_out: tuple[Episodes, np.ndarray], kind: str, n: int) -> None:
    dataset, columns = held_out
    critic = train_critic(kind, training, GAMMA, n, Budget(1e9, steps=150), seed=0)  # type: ignore[arg-type]
    assert critic.steps == 150
    rows, truth = known_rows(dataset)
    found = critic.values(dataset, rows)
    assert found.shape == (len(rows),)
    assert found.dtype == np.float64
    score = scores(found, truth, GAMMA, 1.0)
    constant = scores(np.full(len(truth), discounted_returns(training, GAMMA)[0].mean()), truth, GAMMA, 1.0)
    assert score["error"] < 0.5
    assert constant["error"] > 0.95
    exact = exact_values(GAMMA, CELLS)
    by_column = np.array([found[columns[rows] == c].mean() for c in range(CELLS)])
    assert np.abs(by_column - exact).max() / np.ptp(exact) < 0.35
    assert np.argmax(by_column) == np.argmax(exact)


def test_exact_steps_repeat(training: Episodes) -> None:
    rows = np.arange(0, 200, 7)
    one, two, other = (
        train_critic("td", training, GAMMA, 5, Budget(budget, steps=12), seed).values(training, rows)
        for budget, seed in ((1e9, 0), (1e-3, 0), (1e9, 1))
    )
    np.testing.assert_array_equal(one, two)  # CPU seconds have no say
    assert (one != other).any()


@pytest.mark.parametrize("kind", ["mc", "td"])
def test_the_budget_of_cpu_seconds(training: Episodes, kind: str) -> None:
    critic = train_critic(kind, training, GAMMA, 10, Budget(2.0))  # type: ignore[arg-type]
    assert 1.0 < critic.cpu_seconds < 3.0
    assert critic.steps > 10


def test_it_logs_losses_and_held_out_errors(training: Episodes) -> None:
    lines: list[tuple[str, int, dict[str, float]]] = []
    train_critic(
        "td", training, GAMMA, 5, Budget(1.0, steps=100),
        log=lambda stage, step, numbers: lines.append((stage, step, dict(numbers))),
    )  # fmt: skip
    assert {stage for stage, _, _ in lines} == {"td"}
    assert [step for _, step, numbers in lines if "loss" in numbers] == [50, 100]
    assert [step for _, step, numbers in lines if "val_error" in numbers] == list(range(10, 101, 10))
    assert all(np.isfinite(value) for _, _, numbers in lines for value in numbers.values())


def test_the_best_on_held_out_episodes_is_kept(training: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ruin the slow copy after the third period: what is returned is the copy from before."""
    whole = baselines._steps

    def ruined(kind, budget, network, slow, *rest):  # type: ignore[no-untyped-def]
        for period, step in enumerate(whole(kind, budget, network, slow, *rest)):
            if period >= 3:
                slow.body[-1].bias.data.fill_(1e3)
            yield step

    monkeypatch.setattr(baselines, "_steps", ruined)
    critic = train_critic("mc", training, GAMMA, 5, Budget(1.0, steps=20))
    assert np.abs(critic.values(training, np.arange(20))).max() < 1 / (1 - GAMMA) + 1


def test_constant_returns_are_no_trouble(tmp_path: Path) -> None:
    """No variance to measure errors in."""
    dataset, _ = world(tmp_path, 4, 0)
    dataset.reward[:] = 0
    lines: list[float] = []
    critic = train_critic(
        "mc",
        dataset,
        GAMMA,
        5,
        Budget(1.0, steps=5),
        log=lambda stage, step, numbers: lines.extend(numbers.values()),
    )
    np.testing.assert_allclose(critic.values(dataset, np.arange(10)), 0, atol=0.01)
    assert np.isfinite(lines).all()


def test_it_starts_at_the_mean_of_the_data(training: Episodes) -> None:
    goals = _Goals("td", training, GAMMA, 5)
    network = baselines._fresh(training, goals, 0)
    out = network(torch.from_numpy(training.observations(np.arange(10))))
    torch.testing.assert_close(out, torch.full((10,), goals.mean), rtol=1e-6, atol=1e-6)
    assert goals.mean == pytest.approx(training.reward[training.step_type > 0].mean())
    assert isinstance(network, ConvolutionalCritic)


def test_shifts_move_the_picture_and_repeat_its_border() -> None:
    obs = torch.arange(2 * 1 * 12 * 12, dtype=torch.uint8).reshape(2, 1, 12, 12)
    seen = set()
    for seed in range(40):
        moved = _shifted(obs, np.random.default_rng(seed))
        assert moved.shape == obs.shape
        top, left = (int(v) for v in np.random.default_rng(seed).integers(9, size=2))
        y, x = (np.clip(np.arange(12) + shift - 4, 0, 11) for shift in (top, left))
        np.testing.assert_array_equal(moved.numpy(), obs.numpy()[:, :, y[:, None], x])
        seen.add((top, left))
    assert len(seen) > 20


# --- targets


def chain_of_rewards() -> Episodes:
    """Three episodes: cut by a time limit, terminated, cut."""
    rng = np.random.default_rng(0)
    return episodes_of([np.r_[0.0, rng.random(29)] for _ in range(3)], [False, True, False])


def test_truncated_rows_are_no_mc_targets() -> None:
    dataset = chain_of_rewards()
    goals = _Goals("mc", dataset, GAMMA, 5)
    H = horizon(GAMMA)
    assert H == 21
    # later rows of the terminated episode are known too, but alone: those of episodes that lived on are not
    expected = [*range(30 - H), *range(30, 60 - H), *range(60, 90 - H)]
    assert goals.rows.tolist() == expected
    returns, _ = discounted_returns(dataset, GAMMA)
    np.testing.assert_allclose(goals(goals.rows).numpy(), returns[goals.rows] * (1 - GAMMA), rtol=1e-6)
    by_hand = sum(GAMMA**k * dataset.reward[3 + k] for k in range(27)) / (1 - GAMMA**27)
    assert float(goals(np.array([2]))[0]) == pytest.approx(by_hand * (1 - GAMMA), rel=1e-5)


@pytest.mark.parametrize("n", [1, 5, 100])
def test_td_targets_are_n_rewards_and_the_value_after_them(n: int) -> None:
    dataset = chain_of_rewards()
    goals = _Goals("td", dataset, GAMMA, n)
    assert goals.rows.tolist() == [*range(29), *range(30, 59), *range(60, 89)]
    goals.later[:] = np.random.default_rng(1).random(90)
    for row in (0, 10, 27, 28, 30, 57, 58, 70):
        end = row // 30 * 30 + 29
        m = min(n, end - row)
        total = (1 - GAMMA) * sum(GAMMA**k * dataset.reward[row + 1 + k] for k in range(m))
        if not (row + m == end and end == 59):  # nothing follows a termination
            total += GAMMA**m * goals.later[row + m]
        assert float(goals(np.array([row]))[0]) == pytest.approx(total, rel=1e-5), row


@pytest.mark.parametrize("kind", ["mc", "td"])
def test_targets_know_nothing_of_other_episodes(kind: str) -> None:
    rng = np.random.default_rng(0)
    own = np.r_[0.0, rng.random(29)]
    one, two = (
        _Goals(kind, episodes_of([other, own, other], [False, False, False]), GAMMA, 50)  # type: ignore[arg-type]
        for other in (np.r_[0.0, np.full(29, 0.5)], np.r_[0.0, rng.random(29) * 100])
    )
    for goals in (one, two):
        goals.later[:30], goals.later[60:] = goals.mean * 7, -goals.mean * 7
        goals.later[30:60] = np.arange(30)
    rows = np.intersect1d(one.rows, np.arange(30, 60))
    assert len(rows) >= 8
    np.testing.assert_array_equal(one(rows).numpy(), two(rows).numpy())


def test_no_known_return_is_refused(tmp_path: Path) -> None:
    dataset, _ = world(tmp_path, 3, 0)
    with pytest.raises(VOCError, match=r"No state has a known return at gamma 0\.99") as caught:
        train_critic("mc", dataset, 0.99, 5, Budget(1.0, steps=2))
    assert str(caught.value).count(".") == 2  # 0.99, and the end of the sentence
