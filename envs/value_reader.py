"""What the three value wrappers share: one question to the VOC per step, and what becomes of the answer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from voc_rl.data import DataSpec
from voc_rl.errors import VOCError, check_at_least, check_choice, check_gamma
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import (
    FEATURES,
    Seen,
    check_space,
    codes_as_vectors,
    codes_size,
    feature_size,
    open_voc,
    pixels_of,
    vectors_of_codes,
)

Mode = Literal["info", "observation", "shaping"]
Observe = Literal["value", "features", "features_only"]
_process = os.getpid()  # that computes with the threads that PyTorch has


def _one_thread_in_a_fork() -> None:
    """A forked worker (AsyncVectorEnv forks on Linux) has none of the threads that its parent computed with, and its
    first product would wait for them for ever; one thread each is right where workers are many."""
    global _process
    if _process != os.getpid():
        _process = os.getpid()
        torch.set_num_threads(1)


@dataclass(frozen=True)
class ValueSettings:
    """What a value wrapper was asked for; ``VOCValueWrapper`` says what the words mean."""

    mode: Mode = "info"
    estimator: Estimator = "head"
    gamma: float | None = None
    observe: Observe = "value"
    features: Seen = "context"
    successor_features: bool = False
    futures: int = 0
    samples: int = 100

    def __post_init__(self) -> None:
        check_choice(self.mode, ("info", "observation", "shaping"), "mode")
        check_choice(self.observe, ("value", "features", "features_only"), "observe")
        check_choice(self.features, (*FEATURES, "codes"), "kind of features")
        if self.mode != "observation" and (self.observe, self.features) != ("value", "context"):
            raise VOCError("observe and features say what observations show; they need mode='observation'.")
        if self.observe == "value" and self.features != "context":
            raise VOCError(
                f"features={self.features!r} are not shown with observe='value'; use observe='features' (beside the "
                "frames) or 'features_only'."
            )
        if self.mode == "shaping" and self.gamma is None:
            raise VOCError("mode 'shaping' needs gamma, the discount of the agent that learns from the shaped rewards.")
        ordinary = self.mode == "shaping" and self.gamma == 1  # of agents whose episodes terminate
        if self.gamma is not None and not ordinary:
            check_gamma(self.gamma)
        check_at_least(self.futures, 0, "futures")


@dataclass(frozen=True, eq=False)
class Reading:
    """What a VOC says of n observations.

    value, stderr, low, high (n,) float64, at discount ``gamma``; features (n, D) and successor_features (n, P)
    float32, futures (n, F, n_tokens) int64, or None where they were not asked for.
    """

    value: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gamma: float
    features: np.ndarray | None
    successor_features: np.ndarray | None
    futures: np.ndarray | None

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that ``info`` shows, one row per observation."""
        shown = {"value": self.value, "stderr": self.stderr, "gamma": np.full(len(self.value), self.gamma)}
        if self.successor_features is not None:
            shown["successor_features"] = self.successor_features
        if self.futures is not None:
            shown["futures"] = self.futures
        return shown

    def row(self, i: int) -> dict[str, Any]:
        """``columns`` of one observation; numbers as plain floats."""
        return {name: float(column[i]) if column.ndim == 1 else column[i] for name, column in self.columns().items()}


def check_kind(env: Any, kind: type) -> None:
    """Refuse an environment of another kind than a value wrapper wraps.

    Raises:
        VOCError: another kind; names the wrapper of each.
    """
    if not isinstance(env, kind):
        raise VOCError(
            f"The environment is a {type(env).__name__}; VOCValueWrapper wraps one Gymnasium environment, "
            "VOCValueVectorWrapper Gymnasium's vector environments and VecVOCValue those of Stable-Baselines3."
        )


class ValueReader:
    """Reads observations with a VOC, by the same random numbers each time: what it says is a function of the frames.

    Raises:
        VOCError: no VOC, observations that it cannot read, or an estimator or discount that it does not have.
    """

    def __init__(self, voc: VOC | str | Path, space: gym.Space[Any], settings: ValueSettings) -> None:
        _one_thread_in_a_fork()
        self._source = voc
        self.voc = open_voc(voc)
        self.settings = settings
        check_space(pixels_of(space), self.voc.observation_shape, "The environment's")
        # in mode "shaping" gamma is the agent's, and the potential is the value at the model's own discount
        self._value_gamma = None if settings.mode == "shaping" else settings.gamma
        self.read(np.zeros((1, *self.voc.observation_shape), np.uint8))  # refuses here what it could refuse at a step
        self.observation_space = self._space(space)

    def __getstate__(self) -> dict[str, Any]:
        by_path = isinstance(self._source, str | Path)
        return {name: value for name, value in self.__dict__.items() if not (by_path and name == "voc")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _one_thread_in_a_fork()
        self.__dict__.update(state)
        if "voc" not in state:
            self.voc = open_voc(self._source)

    def _space(self, space: gym.Space[Any]) -> gym.Space[Any]:
        if self.settings.mode != "observation":
            return space
        width = 1 if self.settings.observe == "value" else self._width()
        shown = self._shown(space, gym.spaces.Box(-np.inf, np.inf, (width,), np.float32))
        return gym.spaces.Dict(shown) if isinstance(shown, dict) else shown

    def _width(self) -> int:
        kind = self.settings.features
        return codes_size(self.voc) if kind == "codes" else feature_size(self.voc, kind)

    def _features(self, codes: torch.Tensor, features: torch.Tensor | None) -> np.ndarray:
        kind = self.settings.features
        if kind == "codes":
            return codes_as_vectors(codes, features).cpu().numpy()
        with torch.no_grad():
            return vectors_of_codes(self.voc, codes, features, kind).cpu().numpy()

    def read(self, obs: np.ndarray) -> Reading:
        """One batched call for observations uint8 (n, 3K, H, W)."""
        _one_thread_in_a_fork()
        settings, voc = self.settings, self.voc
        state = voc.context(obs)
        estimate = voc.value_of_codes(*state, self._value_gamma, settings.estimator, settings.samples, common=True)
        features = successor = futures = None
        if settings.mode == "observation" and settings.observe != "value":
            features = self._features(*state)
        if settings.successor_features:
            successor = voc.successor_features_of_codes(*state, settings.samples, common=True)
        if settings.futures:
            futures = voc.futures_of_codes(*state, settings.futures, self._value_gamma, common=True).cpu().numpy()
        gamma = voc.gamma if self._value_gamma is None else self._value_gamma
        return Reading(estimate.mean, estimate.stderr, estimate.low, estimate.high, gamma, features, successor, futures)

    def observe(self, obs: Any, reading: Reading) -> Any:
        """What the agent sees of a batch of n observations, the first n of a reading."""
        if self.settings.mode != "observation":
            return obs
        return self._shown(obs, self._extra(reading)[: len(pixels_of(obs))])

    def observe_one(self, obs: Any, reading: Reading, row: int = 0) -> Any:
        """What the agent sees of one observation, which is a row of a reading."""
        return obs if self.settings.mode != "observation" else self._shown(obs, self._extra(reading)[row])

    def _extra(self, reading: Reading) -> np.ndarray:
        """What mode "observation" adds, float32 (n, D)."""
        if self.settings.observe == "value":
            return reading.value[:, None].astype(np.float32)
        assert reading.features is not None  # read in this mode
        return reading.features

    def _shown(self, seen: Any, extra: Any) -> Any:
        """Observations, or their space, with what mode "observation" adds; ``features_only`` leaves the frames out."""
        parts = dict(seen) if isinstance(seen, Mapping) else {"pixels": seen}
        if self.settings.observe == "features_only":
            del parts["pixels"]
        name = "value" if self.settings.observe == "value" else "features"
        return {**parts, name: extra} if parts else extra

    def shaped(self, reward: Any, terminated: Any, arrived: np.ndarray, before: np.ndarray) -> np.ndarray:
        """r + gamma Phi(s') - Phi(s) (Ng et al. 1999), Phi = 0 after a termination; the agent's gamma."""
        gamma = self.settings.gamma
        assert gamma is not None  # checked by the settings
        return np.asarray(reward, np.float64) + gamma * np.where(terminated, 0.0, arrived) - before


def warn_of(voc: VOC, specs: Iterable[DataSpec]) -> None:
    """Warn where environments make frames in another way than those that a VOC was trained on.

    Of environments that do not say of which task they are or how they draw (no specs), once, if the VOC's training
    data did.
    """
    mine, unsaid = voc.spec, False
    for spec in set(specs) or {DataSpec()}:
        voc.check_spec(spec, "the environment")
        quiet = bool((mine.task and not spec.task) or (mine.render and not spec.render))
        unsaid = unsaid or (quiet and not mine.differences(spec))
    if unsaid:
        drawn = f", render {mine.render!r}, camera {mine.camera}" if mine.render else ""
        warnings.warn(
            "Cannot tell how the environment's frames are made, as its data_spec does not say; the VOC was trained "
            f"with task {mine.task!r}{drawn}: compare its frames with the data.",
            stacklevel=3,
        )
