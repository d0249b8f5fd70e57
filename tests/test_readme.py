"""Every snippet of the README and of docs/policy_evaluation.md runs; every `voc-rl` line of the README parses."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tyro
from pages import README, blocks
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from worlds import loop

from voc_rl import Episodes
from voc_rl.agents import EpsilonGreedy
from voc_rl.cli.command import Command, main
from voc_rl.data import load_dataset
from voc_rl.occupancy import policy_actions
from voc_rl.policy import observation_of

POLICIES = README.parent / "docs" / "policy_evaluation.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


def command_lines() -> list[str]:
    """The `voc-rl ...` commands of shell blocks; lines joined at a backslash, split at && and ;."""
    found = []
    for block in blocks("sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            parts = re.split(r"&&|;|\|", re.sub(r"(^|\s)#.*", "", line))
            found += [part.strip() for part in parts if re.match(r"(\S*/)?voc-rl\b", part.strip())]
    return found


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(re.sub(r"\[[^]]*\]", "", line))[1:]  # [--task ...]: what may be left out
    if "--help" in arguments:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        return
    try:
        tyro.cli(Command, prog="voc-rl", args=arguments)  # type: ignore[call-overload]
    except SystemExit:
        pytest.fail(f"`{line}` does not parse: {capsys.readouterr().err}")


def test_frames_of_ones_own_are_written_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = README.parent / "docs" / "data_formats.md"
    (block,) = [block for block in blocks("python", page=page) if "write_episode(" in block]
    exec(compile(block, page.name, "exec"), {})
    assert len(Episodes.open("runs/own")) == 21


def test_minari_records_what_can_be_read_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("jax")  # of minari[create]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    page = README.parent / "docs" / "data_formats.md"
    (block,) = [block for block in blocks("python", page=page) if "DataCollector(" in block]
    exec(compile(block, page.name, "exec"), {})
    episodes = load_dataset("minari:mine/hopper-v0")
    assert (len(episodes.starts), episodes.frame_shape, episodes.spec.task) == (2, (3, 84, 84), "Hopper-v5")
    assert episodes.state is not None
    assert episodes.state.shape[1] == 11


def test_an_agent_that_learned_under_vecnormalize_is_shown_what_it_knows() -> None:
    (block,) = [block for block in blocks("python", page=POLICIES) if "class Normalized" in block]
    found: dict[str, Any] = {}
    exec(compile(block, POLICIES.name, "exec"), found)
    policy, statistics, rng = found["policy"], found["statistics"], np.random.default_rng(0)
    statistics.obs_rms.update(5 + 3 * rng.normal(size=(100, *statistics.observation_space.shape)))
    states = rng.normal(size=(4, 17)).astype(np.float32)
    seen = statistics.normalize_obs(states)
    assert np.abs(seen - states).max() > 1
    (actions, _), (known, _) = (
        policy.predict(states, deterministic=True),
        found["agent"].predict(seen, deterministic=True),
    )
    np.testing.assert_array_equal(actions, known)
    assert observation_of(policy) == "state"


def test_a_dqn_that_learned_under_vecnormalize_explores_at_each_row_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("python", page=POLICIES) if "class Normalized" in block]
    (recipe,) = re.findall(r"`voc_rl\.agents\.(EpsilonGreedy\(Normalized.*)`", POLICIES.read_text())
    found: dict[str, Any] = {}
    exec(compile(block, POLICIES.name, "exec"), found)
    statistics = VecNormalize(make_vec_env("CartPole-v1"))
    rng, epsilon, draws = np.random.default_rng(0), 0.3, 4
    states = rng.normal(5.0, 3.0, (500, 4)).astype(np.float32)
    statistics.obs_rms.update(states)
    agent = DQN("MlpPolicy", statistics, device="cpu", buffer_size=1, seed=0)
    agent.exploration_rate = epsilon
    monkeypatch.setattr(np.random, "rand", lambda: pytest.fail("global random numbers"))
    own = {**found, "EpsilonGreedy": EpsilonGreedy, "agent": agent, "statistics": statistics}
    acted = np.eye(2, dtype=np.float32)[rng.integers(2, size=len(states))]
    data: Any = SimpleNamespace(state=states, action=acted, step_type=np.ones(len(states), np.uint8))
    (drawn,) = policy_actions([eval(recipe, own)], data, draws, rng)
    greedy = np.eye(2)[agent.predict(statistics.normalize_obs(states), deterministic=True)[0]]
    strayed = (drawn != greedy[:, None]).any(-1).mean(0)  # share of the rows, of each draw
    np.testing.assert_allclose(strayed, epsilon / 2, atol=4 * np.sqrt(epsilon / 2 / len(states)))


def test_the_readme_shows_commands_and_code() -> None:
    assert any(re.search(r"voc-rl demo\b", line) for line in command_lines())
    assert blocks("python")


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a small demo has collected and trained, in runs/demo; each block in a namespace of its own."""
    from voc_rl import sizes
    from voc_rl.agents import action_values, load_policy
    from voc_rl.benchmarks.demo import POLICIES as ACTORS
    from voc_rl.envs import collect
    from voc_rl.occupancy import OccupancyTraining, PolicyTraining
    from voc_rl.ope import EvaluationConfig, StitchingConfig
    from voc_rl.pipeline import Pipeline
    from voc_rl.runs import RunFolder
    from voc_rl.training import VOCConfig
    from voc_rl.values import FQEConfig, RewardConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    voc = VOCConfig(
        quantizer_training=loop(20, 1e-3, 32),
        occupancy=OccupancyTraining(gamma=0.9, loop=loop(16)),
        reward=RewardConfig(loop=loop(20)),
    )
    demo, actor = Path("runs/demo"), load_policy(ACTORS["walker-walk"])
    collect(demo / "data", "walker-walk", actor, 5, 0, max_episode_steps=60, processes=1, progress=False)
    with RunFolder(demo) as run:
        Pipeline(run, demo / "data", voc).train()
    # training in a snippet takes a few steps here: the same code, less patience
    quick = partial(sizes.sized, reward_steps=10)
    monkeypatch.setattr(sizes, "sized", quick)
    monkeypatch.setattr(action_values, "VOCConfig", partial(quick, "tiny"))
    few = EvaluationConfig(
        StitchingConfig(replicates=2),
        samples=8,
        critic=FQEConfig(loop(10)),
        voc=VOCConfig(reward=RewardConfig(loop=loop(10))),
        training=PolicyTraining(occupancy=OccupancyTraining(loop=loop(10))),
    )
    for place in ("voc_rl.ope", "voc_rl.ope.evaluation", "voc_rl.ope.evaluator"):
        monkeypatch.setattr(f"{place}.EvaluationConfig", partial(replace, few))
    monkeypatch.setattr("voc_rl.model.RewardConfig", lambda: few.voc.reward)  # of fit_reward
    for page in (README, POLICIES):
        for i, block in enumerate(blocks("python", page=page), 1):
            code = compile(block, f"{page.name}, python block {i}", "exec")
            exec(code, {"__name__": f"{page.stem}_{i}"})
