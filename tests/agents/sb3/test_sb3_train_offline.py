"""Offline training against exact Q values of a short chain, and what would go wrong where rows are misaligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corridor import Log
from links import BEST, GAMMA, LINKS, Chain, exact_q, seen
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import one_sentence

from voc_rl.agents.sb3 import fill_replay_buffer, train_offline
from voc_rl.data import Episodes
from voc_rl.errors import VOCError


def agent(algorithm: Any = SAC, envs: int = 1, **changed: Any) -> Any:
    exact = {"ent_coef": 0.0} if algorithm is SAC else {"target_policy_noise": 0.0, "policy_delay": 1}
    settings = {"buffer_size": 1000, "gamma": GAMMA, "tau": 0.02, "batch_size": 64, **exact, **changed}
    env = DummyVecEnv([Chain] * envs)
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [32, 32]}, seed=0, device="cpu", **settings)


def largest_error(model: Any) -> float:
    actions, worst = np.linspace(-1, 1, 21, dtype=np.float32), 0.0
    for s in range(LINKS):
        with torch.no_grad():
            both = model.critic(torch.full((21, 1), float(seen(s))), torch.from_numpy(actions)[:, None])
        worst = max(worst, float(np.abs(torch.cat(both, 1).mean(1).numpy() - exact_q(s, actions)).max()))
    return worst


def trained(model: Any, dataset: Episodes | None, steps: int = 1200) -> Any:
    return train_offline(model, dataset, steps, log_every=100, progress=False, say=None)


@pytest.mark.parametrize(("algorithm", "envs"), [(SAC, 1), (TD3, 4)])
def test_exact_q_values_and_best_actions_are_learned(algorithm: Any, envs: int, chain: Path) -> None:
    model = agent(algorithm, envs, learning_rate=lambda left: 5e-3 * left)
    model.set_logger(log := Log())
    assert largest_error(model) > 1.0
    assert trained(model, Episodes.open(chain)) is model
    assert largest_error(model) < 0.2
    actions = model.predict(seen(np.arange(LINKS))[:, None], deterministic=True)[0][:, 0]
    np.testing.assert_allclose(actions, BEST, atol=0.2)
    losses = [row["train/critic_loss"] for _, row in log.dumps]
    assert len(losses) == 12
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("spoilt", ["reward", "action", "timeouts"])
def test_one_row_beside_is_not_what_is_learned(spoilt: str, chain: Path) -> None:
    """What the test above would catch: numbers of the row before, and time limits taken for terminations."""
    dataset = Episodes.open(chain)
    if spoilt != "timeouts":
        setattr(dataset, spoilt, np.roll(getattr(dataset, spoilt), 1, axis=0))
    model = agent(learning_rate=lambda left: 5e-3 * left)
    fill_replay_buffer(model, dataset, say=None)
    if spoilt == "timeouts":
        assert model.replay_buffer.timeouts.any()
        model.replay_buffer.timeouts[:] = 0
    assert largest_error(trained(model, None)) > 0.5


def test_what_is_logged_and_how_the_learning_rate_falls(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(learning_rate=lambda left: 1e-3 * left)
    model.set_logger(log := Log())
    asked: list[tuple[int, int]] = []
    train = model.train
    monkeypatch.setattr(model, "train", lambda steps, size: (asked.append((steps, size)), train(steps, size)))
    train_offline(model, Episodes.open(chain), 25, log_every=10, progress=False, say=None)
    assert asked == [(1, 64)] * 25
    assert [step for step, _ in log.dumps] == [10, 20, 25]
    for step, row in log.dumps:
        assert row["time/gradient_steps"] == step
        assert row["train/n_updates"] == step
        assert row["train/learning_rate"] == pytest.approx(1e-3 * (1 - (step - 1) / 25))
        assert np.isfinite([row["train/actor_loss"], row["train/critic_loss"]]).all()
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 25)
    told: list[tuple[Any, int]] = []
    # goes on, from the full rate again
    train_offline(model, None, 3, batch_size=16, log_every=2, callback=lambda *now: told.append(now), progress=False)
    assert asked[25:] == [(1, 16)] * 3
    assert [(step, row["time/gradient_steps"]) for step, row in log.dumps[3:]] == [(27, 27), (28, 28)]
    assert log.dumps[-1][1]["train/n_updates"] == 28
    assert told == [(model, 27), (model, 28)]
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 3)


@pytest.mark.parametrize(("log_every", "interval", "falls"), [(7, 1, 3), (50, 1, 3), (1000, 1, 3), (10, 8, 8)])
def test_when_something_is_logged_changes_nothing_that_is_learned(
    log_every: int, interval: int, falls: int, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of 250 gradient steps falls every third one, or after the next move of the target."""
    learned = []
    for every in (250, log_every):
        model = agent(learning_rate=lambda left: 1e-3 * left, target_update_interval=interval)
        rates = list[float]()
        step = model.critic.optimizer.step
        monkeypatch.setattr(
            model.critic.optimizer, "step",
            lambda *a, model=model, rates=rates, step=step: (
                rates.append(model.critic.optimizer.param_groups[0]["lr"]), step(*a),
            ),
        )  # fmt: skip
        fill_replay_buffer(model, Episodes.open(chain), say=None)
        model.set_random_seed(3)
        train_offline(model, None, 250, log_every=every, progress=False)
        done = np.arange(250)
        np.testing.assert_allclose(rates, 1e-3 * (1 - (done - done % falls) / 250))
        learned.append(model.policy.state_dict())
    for name, tensor in learned[0].items():
        assert torch.equal(tensor, learned[1][name]), name


@pytest.mark.parametrize("log_every", [1000, 10, 16])
def test_sac_moves_its_target_as_often_as_it_is_told(
    log_every: int, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is logged no earlier than it was asked for, between two moves."""
    moves: list[float] = []
    monkeypatch.setattr("stable_baselines3.sac.sac.polyak_update", lambda *a: moves.append(a[2]))
    model = agent(target_update_interval=8)
    model.set_logger(log := Log())
    train_offline(model, Episodes.open(chain), 80, log_every=log_every, progress=False, say=None)
    assert sorted(moves) == [0.02] * 10 + [1.0] * 10
    assert [step for step, _ in log.dumps] == ([80] if log_every == 1000 else [16, 32, 48, 64, 80])


def test_an_agent_that_never_learned_before_and_goes_on_learning(chain: Path, tmp_path: Path) -> None:
    """Without a logger at first; then saved, loaded, filled again, and let loose in its environment."""
    model, said = agent(), list[str]()
    dataset = Episodes.open(chain)
    train_offline(model, dataset, 5, progress=False, say=said.append)
    transitions = int((dataset.steps_left > 0).sum())
    assert said == [f"The replay buffer takes 0.00 GB of memory for {transitions} transitions."]
    model.save(tmp_path / "agent")
    again = SAC.load(tmp_path / "agent", env=DummyVecEnv([Chain]), device="cpu")
    obs = seen(np.arange(LINKS))[:, None]
    np.testing.assert_array_equal(again.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert again.replay_buffer.size() == 0
    train_offline(again, dataset, 5, progress=False, say=None)
    again.learn(8)
    assert again.replay_buffer.size() == transitions + 8


class Played(BaseCallback):
    """Keeps the actions that an agent plays."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"][0])
        return True


def test_what_was_learned_offline_is_played_from_the_first_step_on(chain: Path) -> None:
    """And no random action, which TD3's first hundred are otherwise; nothing is learned while it plays."""
    model, played = trained(agent(TD3, gradient_steps=0), Episodes.open(chain), 5), Played()
    assert model.learning_starts == 0
    model.learn(20, callback=played)
    expected = model.predict(np.zeros(1, np.float32), deterministic=True)[0]
    np.testing.assert_allclose(played.actions, np.broadcast_to(expected, (20, 1)), atol=1e-6)


def test_episodes_that_the_buffer_holds_are_not_added_again(chain: Path) -> None:
    """Where they came first, and where the agent had played before."""
    dataset = Episodes.open(chain)
    for played in (0, 3):
        model = agent(learning_starts=100)
        if played:
            model.learn(played)
        train_offline(model, dataset, 2, progress=False, say=None)
        held = model.replay_buffer.size()
        with pytest.raises(VOCError, match="are in the replay buffer already; pass dataset=None") as refusal:
            train_offline(model, dataset, 2, progress=False, say=None)
        assert one_sentence(str(refusal.value))
        assert model.replay_buffer.size() == held
        model.learn(3) if not played else None
        with pytest.raises(VOCError, match="already"):
            fill_replay_buffer(model, dataset)
        fill_replay_buffer(model, dataset.subset(range(20, 40)), None)  # which it neither begins nor ends with


def test_a_logger_that_cannot_be_made_costs_no_time(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*settings: Any) -> None:
        raise ImportError("no tensorboard")

    model = agent()
    monkeypatch.setattr("voc_rl.agents.sb3.offline.configure_logger", fails)
    with pytest.raises(ImportError, match="no tensorboard"):
        train_offline(model, Episodes.open(chain), 5, progress=False)
    assert model.replay_buffer.size() == 0


def test_nothing_to_train_on_is_refused(chain: Path) -> None:
    with pytest.raises(VOCError, match=r"The dataset is str; Episodes are needed: voc_rl.Episodes.open\(path\)"):
        train_offline(agent(), str(chain), 5, progress=False)  # type: ignore[arg-type]
    with pytest.raises(VOCError, match="The replay buffer is empty") as refusal:
        train_offline(agent(), None, 5, progress=False)
    assert one_sentence(str(refusal.value))
    for changed in ({"steps": 0}, {"steps": 5, "log_every": 0}):
        model = agent()
        with pytest.raises(VOCError, match=" is 0; a number above zero is needed"):
            train_offline(model, Episodes.open(chain), progress=False, **changed)
        assert model.replay_buffer.size() == 0


class Moves(TD3):
    """Learns a part of what it learns while it plays, as other packages' agents may."""

    def _on_step(self) -> None:
        raise AssertionError("played")


def test_an_agent_that_also_learns_while_it_plays_is_refused(chain: Path) -> None:
    model = agent(Moves)
    with pytest.raises(VOCError, match="Moves does more at its steps in an environment") as refused:
        train_offline(model, Episodes.open(chain), 5, progress=False)
    assert one_sentence(str(refused.value))
    assert model.replay_buffer.size() == 0
