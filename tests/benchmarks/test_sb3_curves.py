"""Learning curves of PPO with and without a VOC, on the square's world: cells, resume, table, picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from square import square_env
from stable_baselines3.common import env_util
from worlds import one_sentence

from voc_rl.benchmarks import sb3_curves
from voc_rl.benchmarks.cells import finished
from voc_rl.benchmarks.results import hardware
from voc_rl.benchmarks.sb3_curves_plot import POINTS, curve
from voc_rl.errors import VOCError
from voc_rl.model import VOC

LIMIT = 12


@pytest.fixture
def arguments(square_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sb3_curves, "make_env", lambda task, max_episode_steps: square_env(max_episode_steps))
    monkeypatch.setattr(sb3_curves, "SCALES", {"smoke": (0.01, LIMIT)})
    monkeypatch.setattr(sb3_curves, "PPO_SETTINGS", {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "gamma": 0.9})
    return {
        "voc": square_voc, "scale": "smoke", "out": tmp_path / "out", "seeds": (0, 1), "results": tmp_path / "results",
    }  # fmt: skip


def test_all_arms_run_and_resume(arguments: dict[str, Any], tmp_path: Path) -> None:
    sb3_curves.main(sb3_curves.Args(**{**arguments, "seeds": (0,), "arms": ("features",)}))
    kept = finished(tmp_path / "out/cells.jsonl")
    assert [record["cell"] for record in kept] == [{"seed": 0, "arm": "features"}]
    with pytest.raises(VOCError, match=r"other settings \(task\)"):
        sb3_curves.main(sb3_curves.Args(**{**arguments, "task": "cheetah-run"}))
    results = sb3_curves.main(sb3_curves.Args(**arguments))
    records = finished(tmp_path / "out/cells.jsonl")
    assert records[:1] == kept
    done = {(record["cell"]["arm"], record["cell"]["seed"]): record["result"] for record in records}
    assert results["hardware"] == hardware()
    assert set(results["arms"]) == {"pixels", "pixels+shaping", "features", "features+shaping"}
    assert json.loads((tmp_path / "results/sb3_curves.json").read_text()) == results
    assert (tmp_path / "results/sb3_curves.png").stat().st_size > 5000
    text = (tmp_path / "results/sb3_curves.md").read_text()
    for arm, row in results["arms"].items():
        assert f"| `{arm}` |" in text
        assert row["seeds"] == 2
        for seed in (0, 1):
            returns = np.array(done[arm, seed]["episodes"])[:, 2]
            # raw returns, also where the agent was paid shaped rewards: an arrival pays 1, and takes two steps or more
            assert set(returns) <= set(np.arange(LIMIT // 4 + 2.0))
            assert row["last_returns"][seed] == pytest.approx(returns[-16:].mean(), abs=0.051)


def test_cells_are_of_one_voc_and_say_which_machine_made_them(
    arguments: dict[str, Any], square_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes, machines = [[10, 0.5, 3.0], [20, 1.0, 5.0]], iter(("m 0", "m 1"))
    monkeypatch.setattr(sb3_curves, "train_agent", lambda cell, args: {"steps": 20, "episodes": episodes})
    monkeypatch.setattr("voc_rl.benchmarks.cells.hardware", lambda: next(machines))
    voc, some = VOC.load(square_voc), {**arguments, "voc": tmp_path / "voc", "arms": ("pixels",)}
    voc.save(some["voc"])
    results = sb3_curves.main(sb3_curves.Args(**some))
    assert results["hardware"] == "m 0; m 1"
    assert results["arms"]["pixels"]["last_returns"] == [4, 4]
    voc.save(tmp_path / "moved")  # the same VOC under another path goes on
    sb3_curves.main(sb3_curves.Args(**{**some, "voc": tmp_path / "moved"}))
    with torch.no_grad():
        next(voc.occupancy.parameters()).add_(1.0)
    voc.save(some["voc"])  # another VOC under the same path does not
    with pytest.raises(VOCError, match=r"other settings \(voc\)"):
        sb3_curves.main(sb3_curves.Args(**some))


def test_no_two_seeds_share_starts(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(env_util, "make_vec_env", lambda make, count, seed: started.extend(range(seed, seed + count)))
    for seed in (0, 1, 2):
        sb3_curves.agent_env("pixels", "square", arguments["voc"], seed)
    assert len(set(started)) == 3 * sb3_curves.ENVS


@pytest.mark.parametrize(("arm", "shape", "shaped"), [
    ("pixels", (9, 36, 36), False), ("pixels+shaping", (9, 36, 36), True),
    ("features", None, False), ("features+shaping", None, True),
])  # fmt: skip
def test_arms_see_and_are_paid_what_they_should(arm: str, shape: Any, shaped: bool, arguments: dict[str, Any]) -> None:
    env = sb3_curves.agent_env(arm, "square", arguments["voc"], 0, LIMIT)
    env.reset()
    assert env.num_envs == sb3_curves.ENVS
    assert (env.observation_space.shape == shape) == (shape is not None)
    assert len(env.observation_space.shape or ()) == (3 if shape else 1)
    _, rewards, _, infos = env.step(np.ones((sb3_curves.ENVS, 1), np.float32))
    differs = [reward not in (0, 1) for reward in rewards]
    assert all(differs) if shaped else not any(differs)
    assert all(("raw_reward" in info.get("voc", {})) == shaped for info in infos)
    env.close()


def test_a_curve_is_the_mean_of_the_last_episodes_of_every_run() -> None:
    steps = np.arange(1, 41) * 100.0
    one = np.stack([steps, steps / 10, np.arange(40.0)], 1)
    other = np.stack([steps[:30], steps[:30] / 5, 10 + np.arange(30.0)], 1)
    grid, mean, error = curve([one, other], 0)
    assert len(grid) == POINTS
    assert (grid[0], grid[-1]) == (1600, 3000)  # from the first full window to where the shorter run ends
    assert mean[0] == pytest.approx(np.mean([np.arange(16).mean(), 10 + np.arange(16).mean()]))
    assert mean[-1] == pytest.approx(np.mean([np.arange(14, 30).mean(), 10 + np.arange(14, 30).mean()]))
    np.testing.assert_allclose(error, 5.0)  # two runs ten apart
    assert (curve([one], 1)[2] == 0).all()


def test_without_stable_baselines3_there_is_help_and_one_sentence(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, tyro\n"
        "sys.modules['stable_baselines3'] = None\n"  # as where it is not installed
        "from voc_rl.benchmarks.sb3_curves import Args\n"
        "tyro.cli(Args, args=['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--voc" in done.stdout, done.stderr
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(VOCError, match=r"need Stable-Baselines3; pip install 'voc_rl\[sb3\]'"):
        sb3_curves.main(sb3_curves.Args(**arguments))


def test_refusals(arguments: dict[str, Any], tmp_path: Path) -> None:
    for changed, words in (
        ({"scale": "gpu"}, "Unknown scale 'gpu'"), ({"arms": ("tokens",)}, "Unknown arm 'tokens'"),
        ({"voc": tmp_path / "none"}, "holds no VOC"), ({"seeds": ()}, "number of seeds is 0"),
    ):  # fmt: skip
        with pytest.raises(VOCError) as caught:
            sb3_curves.main(sb3_curves.Args(**{**arguments, **changed}))
        assert words in str(caught.value)
        assert one_sentence(str(caught.value))
