"""The snippet of docs/control.md runs, in a folder with a run of the square in runs/demo."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from actions import FEW, small_config

from voc_rl.agents import ImprovementConfig, action_values, improvement, offline
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining, PolicyTraining

DOCS = Path(__file__).parents[2] / "docs" / "control.md"


@pytest.mark.skipif(not DOCS.exists(), reason="there is no docs/control.md")
def test_a_planner_and_clones_are_made_of_a_finished_run(
    square_actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    shutil.copytree(square_actions / "voc", tmp_path / "runs/demo")
    shutil.copytree(square_actions / "data", tmp_path / "runs/demo/data")
    monkeypatch.chdir(tmp_path)
    # the same code with less patience, all of which is in defaults
    few = PolicyTraining(occupancy=OccupancyTraining(gamma=0.5, loop=LoopConfig(steps=4, batch_size=8)))
    for module, name, made in (
        (action_values, "action_training", few), (action_values, "VOCConfig", small_config(2)),
        (offline, "AgentConfig", FEW),
        (improvement, "ImprovementConfig", ImprovementConfig(agent=FEW, training=few, voc=small_config(2))),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda made=made: made)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/control.md", "exec"), found)
    assert found["actions"].shape == (2, 1)
    assert np.abs(found["actions"]).max() <= 1
    assert found["planner"].prior is found["prior"]
    seen = found["data"].observations(np.arange(8))
    clones = [found[name].predict(seen, deterministic=True)[0] for name in ("prior", "clone", "second")]
    assert len(np.unique(np.stack(clones), axis=0)) == 3
