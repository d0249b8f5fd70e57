"""A VOC as the features extractor of a Stable-Baselines3 policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from voc_rl.errors import VOCError
from voc_rl.model import VOC
from voc_rl.model_files import weights_mark
from voc_rl.plugin import Features, check_readable, feature_size, feature_vectors, open_voc, pixels_of, shows_codes


def open_path(voc: Any) -> VOC:
    """The VOC of a run folder (``open_voc``), given as a path, which is what a saved agent can hold.

    Raises:
        VOCError: something else, or no VOC there.
    """
    if isinstance(voc, VOC):
        raise VOCError("voc is a VOC; the path of its run folder is needed, because saved agents hold the path.")
    try:
        return open_voc(voc)
    except VOCError as error:
        if not isinstance(voc, str | Path) or Path(voc).exists():
            raise
        moved = "if it moved, a saved agent is loaded with its new path, as VOCFeaturesExtractor and VOCCritic show"
        raise VOCError(f"{str(error).removesuffix('.')}; {moved}.") from None


class OtherVOCError(VOCError, RuntimeError):
    """Saved weights that are of another VOC; also a RuntimeError, as all that PyTorch finds wrong with saved weights:
    what Stable-Baselines3 makes of a ValueError there hides its sentence."""


class VOCFeaturesExtractor(BaseFeaturesExtractor):
    """Features of stacked frames, or of their codes, from a trained VOC: for policies of PPO, A2C, SAC, TD3 and DQN.

    ``SAC("CnnPolicy", env, policy_kwargs={"features_extractor_class": VOCFeaturesExtractor,
    "features_extractor_kwargs": {"voc": "runs/demo"}})``

    Frozen (the default), the VOC is shared by all copies that an algorithm makes (actor, critic, targets), has no
    parameters for an optimiser, a target update or ``load_state_dict`` to touch, and is not in the saved zip, which
    holds the path and a mark of the weights: with a VOC that was trained anew there, the agent is not loaded. It
    computes on the CPU, in an agent on a GPU too. Fine-tuned, every copy has weights of its own; they are trained,
    averaged and saved with the policy. Either way it stays in evaluation mode, and an orthogonal initialisation (PPO,
    A2C) leaves it as it is.

    A run folder that moved is named where the agent is loaded, beside all else that its ``policy_kwargs`` held:
    ``SAC.load("agent.zip", custom_objects={"policy_kwargs": {"features_extractor_class": VOCFeaturesExtractor,
    "features_extractor_kwargs": {"voc": "moved/demo"}}})``.

    Codes have to be of the same VOC. The extractor cannot see whose an environment shows; ``train_offline``,
    ``VOCCritic``, ``VOCValueCallback`` and ``evaluate_policy_value`` look.

    Args:
        observation_space: uint8 (3K, H, W), channels first, the size and stack of the VOC's frames; or what a value
            wrapper shows with ``features="codes"``, which a replay buffer keeps in an 80th of the memory, and of
            which features are made in a fraction of the time; or a Dict with either as "pixels" (``MultiInputPolicy``),
            whose other parts follow the features as they are.
        voc: a run folder, as a path, so that saved agents stay small.
        features: ``context``, ``tokens`` or ``successor`` (``voc_rl.plugin.feature_vectors``).
        frozen: keep the VOC as it is. False trains what the features come from: the occupancy network (``context``)
            or the quantizer's encoder (``tokens``).
        normalized: the policy divides frames by 255, as Stable-Baselines3 does unless ``normalize_images=False``.

    Raises:
        VOCError: no VOC there, frames of another shape, or features that cannot be trained; when saved weights are
            loaded, another VOC than theirs.
    """

    voc_mark: Tensor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        voc: str | Path,
        features: Features = "context",
        frozen: bool = True,
        normalized: bool = True,
    ) -> None:
        model = open_path(voc)
        frames = pixels_of(observation_space)
        check_readable(frames, model, "The policy's")
        if features == "successor" and not frozen:
            raise VOCError("features 'successor' are sampled and cannot be trained; use frozen=True.")
        of_codes = shows_codes(frames, model)
        if of_codes and features == "tokens" and not frozen:
            raise VOCError("features 'tokens' of codes cannot be trained, only those of frames; use frozen=True.")
        parts = dict(observation_space) if isinstance(observation_space, gym.spaces.Dict) else {}
        beside = {name: get_flattened_obs_dim(part) for name, part in parts.items() if name != "pixels"}
        super().__init__(observation_space, feature_size(model, features) + sum(beside.values()))
        self._beside = tuple(beside)  # names of what a Dict shows beside the frames
        self._codes = of_codes
        self.features, self.frozen, self.normalized = features, frozen, normalized
        behind = [model.quantizer] if features == "tokens" else [model.quantizer, model.occupancy]
        if not frozen:
            model = copy.deepcopy(model)
            # only what the features come from becomes part of the policy
            self.trained: nn.Module = model.occupancy if features == "context" else model.quantizer
            behind.pop()
        mark = weights_mark(*behind)  # of what is not saved
        self.register_buffer("voc_mark", torch.tensor(list(bytes.fromhex(mark)), dtype=torch.uint8))
        self._folder = str(voc)
        self._voc = (model,)  # in a tuple, so that PyTorch does not take a frozen VOC for a part of the policy
        self.train(self.training)

    @property
    def voc(self) -> VOC:
        """The VOC behind the features."""
        return self._voc[0]

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Frames (B, 3K, H, W), uint8 or float (``normalized``), or their codes, or a Dict -> float32 (B, D)."""
        seen = pixels_of(observations)
        frames = (seen if self._codes else self._as_uint8(seen)).cpu()
        if self.frozen:
            with torch.no_grad():
                vectors = feature_vectors(self.voc, frames, self.features)
        else:
            if next(self.trained.parameters()).device.type != "cpu":
                raise VOCError("A VOC is fine-tuned on the CPU only; give the agent device='cpu', or use frozen=True.")
            vectors = feature_vectors(self.voc, frames, self.features)
        beside = [observations[name].float().flatten(1) for name in self._beside]
        return torch.cat([vectors.to(seen.device), *beside], 1)

    def _as_uint8(self, observations: Tensor) -> Tensor:
        if observations.dtype == torch.uint8:
            return observations
        largest = 1.0 if self.normalized else 255.0
        # numbers just above come from the division's rounding; NaN fails too
        if not bool((observations.amax() <= largest * 1.0001) & (observations.amin() >= 0)):
            found = f"{observations.amin().item():.4g}..{observations.amax().item():.4g}"
            raise VOCError(
                f"Frames lie in {found}, outside 0..{largest:g}; normalized={not self.normalized} may be what is "
                "meant (True: the policy divides by 255)."
            )
        if not self.normalized and not torch.equal(observations, observations.round()):
            raise VOCError("Frames hold no whole numbers; normalized=True is for frames that are divided by 255.")
        return (observations * (255.0 / largest)).round().to(torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict.setdefault(f"{prefix}voc_mark", self.voc_mark)  # agents of before marks have none
        if not torch.equal(saved.cpu(), self.voc_mark.cpu()):
            raise OtherVOCError(
                f"The agent learned on another VOC than {self._folder} holds, or on other `features`; load it with its "
                "own VOC's path and all else that it had, custom_objects={'policy_kwargs': ...}, or train it anew."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def train(self, mode: bool = True) -> VOCFeaturesExtractor:
        """Set the flag; the VOC itself stays in evaluation mode."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> VOCFeaturesExtractor:
        """Leave the weights as they are: policies use this to initialise theirs."""
        return self
