"""``VOCValueWrapper`` for vector environments: one question to the VOC per step, for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from voc_rl.envs.raw_reward import RAW
from voc_rl.envs.value_reader import Mode, Observe, Reading, ValueReader, ValueSettings, check_kind, warn_of
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import Seen, pixels_of


class VOCValueVectorWrapper(VectorWrapper[Any, Any, Any, Any, Any]):
    """``VOCValueWrapper`` around a vector environment; same arguments (but ``overlay``), modes and numbers, one batched
    call per step.

    ``infos["voc"]`` holds arrays with a row per environment. All three autoreset modes are understood:

    - ``NEXT_STEP``: the step that only resets is no transition; its reward stays as it is.
    - ``SAME_STEP``: a step that ends an episode is shaped with the value of ``infos["final_obs"]``, which is also what
      ``infos["final_info"]["voc"]`` shows; in mode ``observation`` final observations are what an agent would see.
    - ``DISABLED``: ``reset(options={"reset_mask": ...})`` starts the chosen environments anew.

    Raises, Warns:
        as ``VOCValueWrapper``.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        voc: VOC | str | Path,
        mode: Mode = "info",
        estimator: Estimator = "head",
        gamma: float | None = None,
        observe: Observe = "value",
        features: Seen = "context",
        successor_features: bool = False,
        futures: int = 0,
        samples: int = 100,
    ) -> None:
        check_kind(env, VectorEnv)
        super().__init__(env)
        settings = ValueSettings(mode, estimator, gamma, observe, features, successor_features, futures, samples)
        self._reader = ValueReader(voc, env.single_observation_space, settings)
        self.single_observation_space = self._reader.observation_space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._autoreset = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        call = getattr(env.unwrapped, "call", None)  # environments that are not made of single ones have none
        specs = call("data_spec") if call is not None and all(call("has_wrapper_attr", "data_spec")) else []
        warn_of(self.voc, specs)
        self._potential = np.zeros(env.num_envs)
        self._over = np.zeros(env.num_envs, bool)  # episodes whose next step only resets

    @property
    def voc(self) -> VOC:
        """The VOC that is asked."""
        return self._reader.voc

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``, and read where they stand."""
        mask = (options or {}).get("reset_mask")  # the environment takes it out of the options
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        reading = self._reader.read(pixels_of(obs))
        chosen = np.ones(self.num_envs, bool) if mask is None else mask
        self._potential = np.where(chosen, reading.value, self._potential)
        self._over &= ~chosen
        return self._reader.observe(obs, reading), self._with_columns(infos, reading.columns(), chosen)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments and read where they arrived, and where ended episodes did, in one call."""
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        n, done = self.num_envs, np.flatnonzero(terminations | truncations)
        finals = done if self._autoreset == AutoresetMode.SAME_STEP else done[:0]
        last = [pixels_of(infos["final_obs"][i])[None] for i in finals]
        reading = self._reader.read(np.concatenate([pixels_of(obs), *last]))
        now = reading.value[:n]
        arrived = now.copy()
        arrived[finals] = reading.value[n:]
        columns = {name: column[:n] for name, column in reading.columns().items()}
        if self._reader.settings.mode == "shaping":
            columns[RAW] = _raw_rewards(infos, rewards)
            shaped = self._reader.shaped(rewards, terminations, arrived, self._potential)
            rewards = np.where(self._over, rewards, shaped)
        if len(finals):
            infos = self._with_finals(infos, finals, reading)
        self._potential = now
        if self._autoreset == AutoresetMode.NEXT_STEP:
            self._over = terminations | truncations
        infos = self._with_columns(infos, columns, np.ones(n, bool))
        return self._reader.observe(obs, reading), rewards, terminations, truncations, infos

    def _with_finals(self, infos: dict[str, Any], finals: np.ndarray, reading: Reading) -> dict[str, Any]:
        """What ended episodes last looked like, as an agent would see it, with their values: rows n and on."""
        n = self.num_envs
        seen = np.full(n, None, object)
        for row, i in enumerate(finals, n):
            seen[i] = self._reader.observe_one(infos["final_obs"][i], reading, row)
        spread = {}
        for name, column in reading.columns().items():
            spread[name] = np.zeros((n, *column.shape[1:]), column.dtype)
            spread[name][finals] = column[n:]
        shown = self._with_columns(infos.get("final_info", {}), spread, np.isin(np.arange(n), finals))
        return {**infos, "final_obs": seen, "final_info": shown}

    @staticmethod
    def _with_columns(infos: dict[str, Any], columns: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
        """``infos`` with "voc", in Gymnasium's form: a mask beside every array says for whom it holds."""
        masks = {f"_{name}": mask.copy() for name in columns}
        return {**infos, "voc": {**infos.get("voc", {}), **columns, **masks}, "_voc": mask.copy()}


def _raw_rewards(infos: dict[str, Any], rewards: np.ndarray) -> np.ndarray:
    """What the environments paid, float64 (n,), also where wrappers inside have shaped it."""
    raw = np.array(rewards, np.float64)
    for shown in (infos.get("voc", {}), infos.get("final_info", {}).get("voc", {})):
        if RAW in shown:
            raw = np.where(shown[f"_{RAW}"], shown[RAW], raw)
    return raw
