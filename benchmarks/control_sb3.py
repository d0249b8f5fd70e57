"""Rows of the control benchmark that Stable-Baselines3 trains: TD3 on logged episodes, alone and beside a VOC's Q."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from voc_rl import VOCValueWrapper
from voc_rl.agents.sb3 import VOCCritic, VOCFeaturesExtractor, train_offline
from voc_rl.benchmarks.control_data import ControlData, model_path
from voc_rl.envs import make_env
from voc_rl.plugin import codes_as_vectors, open_voc

BATCH = 128


def offline_td3(data: ControlData, weight: float, alpha: float | None, seed: int, steps: int, device: str) -> OnFrames:
    """An agent trained on the codes of the data's frames, with the VOC's Q at a weight in its critic, kept near the
    logged actions by ``alpha`` or not; it sees frames.

    Through the model ``voc`` of its seed, whose discount it has, at any weight.
    """
    voc = str(model_path(data, "voc", seed))
    env = VOCValueWrapper(make_env(data.task), voc, mode="observation", observe="features_only", features="codes")
    eyes = {"features_extractor_class": VOCFeaturesExtractor, "features_extractor_kwargs": {"voc": voc}}
    agent = VOCCritic(
        "MlpPolicy", env, voc, weight, bc_alpha=alpha, buffer_size=len(data.episodes), batch_size=BATCH,
        policy_kwargs=eyes, seed=seed, device=device,
    )  # fmt: skip
    train_offline(agent, data.episodes, steps)
    env.close()
    return OnFrames(agent)


class OnFrames:
    """An agent that was trained on codes, as a policy on frames."""

    observation: Literal["state", "pixels"] = "pixels"

    def __init__(self, agent: VOCCritic) -> None:
        self.agent, self.voc = agent, open_voc(agent.voc)

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions float32 (B, A) of frames uint8 (B, 3K, H, W), as Stable-Baselines3's."""
        codes = codes_as_vectors(*self.voc.context(observation)).cpu().numpy()
        return self.agent.predict(codes, state, episode_start, deterministic)
