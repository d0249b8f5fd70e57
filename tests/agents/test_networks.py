"""What agents see of a frame is what they learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import SPEC, toy_episode

from voc_rl.agents.networks import FrozenEncoder
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.agents.planner import PlannerConfig, VOCPlanner
from voc_rl.data import Episodes, write_episode
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import build_quantizer, seen_as_stored, tokenize, train_quantizer


@pytest.mark.parametrize("low", [False, True])
def test_live_frames_give_the_stored_codes_and_features(
    low: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a processor with bfloat16, which every processor can at least emulate."""
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: low)
    torch.manual_seed(0)
    parts = {"n_tokens": 4, "components": 8, "hidden": 64, "conv_width": 8}
    quantizer = build_quantizer("vqvae", (9, 24, 24), parts).eval()
    frames = np.random.default_rng(0).integers(256, size=(80, 3, 24, 24), dtype=np.uint8)
    write_episode(tmp_path / "e.hdf5", toy_episode(0, 80, frames=frames), SPEC)
    dataset = Episodes.open(tmp_path)
    train_quantizer(quantizer, dataset, LoopConfig(steps=2, batch_size=8), seed=0)
    codes, features = tokenize(quantizer, dataset)
    obs = torch.from_numpy(dataset.observations(np.arange(len(dataset))))
    _, exact = quantizer.codes_and_features(obs)
    assert bool((exact.half() != features).any()) == low  # so the test bites where products are rounded
    own, seen = seen_as_stored(quantizer, obs)
    assert torch.equal(own, codes.long())
    assert torch.equal(seen, features)
    encoder = FrozenEncoder(quantizer, tokens=True)
    encoder.fit(codes, features)
    assert torch.equal(encoder(obs), encoder.inputs(codes, features))
    asked = []

    def score(codes: torch.Tensor, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        asked.append((codes, features))
        return torch.zeros(actions.shape[:2])

    few = AgentConfig(width=16, loop=LoopConfig(steps=3, batch_size=8))
    planner = VOCPlanner(OfflineAgent((9, 24, 24), 2, few, quantizer), score, PlannerConfig(candidates=4, rounds=1))
    planner.predict(obs.numpy(), deterministic=True)
    assert torch.equal(asked[0][0], codes.long())
    assert torch.equal(asked[0][1], features)
