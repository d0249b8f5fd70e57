"""Trained actors as plain numpy: a tanh-squashed Gaussian over a small network of the flat state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import log_ndtr

from voc_rl.agents.stochastic import StochasticPolicy
from voc_rl.errors import VOCError

SHIPPED = Path(__file__).parent / "policies"
_PARTS = ("layers.0", "layers.1", "mu", "log_std")
# The float32 just below 1.
_LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


class GaussianActor(StochasticPolicy):
    """Soft actor-critic's actor: a = tanh(u), u ~ N(mean(s), exp(log_std(s))^2).

        h = relu(layers.0 s); h = relu(layers.1 h); mean = mu h; log_std = clip(log_std h, -20, 2)

    Args:
        tensors: ``{layers.0, layers.1, mu, log_std}.{weight, bias}``, float32, weights (out, in).
        name: what ``repr`` and stored data call this actor.
        seed: of the generator behind ``predict(..., deterministic=False)``; ``sample`` is given its own.

    Raises:
        VOCError: missing tensors, or shapes that do not fit each other.
    """

    observation: Literal["state", "pixels"] = "state"

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str = "", seed: int = 0) -> None:
        self.name = name
        self._rng = np.random.default_rng(seed)
        self._tensors = _checked(tensors, name or "the actor")
        self.state_size = self._tensors["layers.0.weight"].shape[1]
        self.action_size = len(self._tensors["mu.bias"])

    def __repr__(self) -> str:
        return f"GaussianActor({self.name})"

    def distribution(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of u, float64 (..., A), at states (..., S)."""
        # In float64, so that one state and a batch, on any number of threads, get the same action.
        states = np.asarray(observation, np.float64)
        if states.ndim not in (1, 2) or states.shape[-1] != self.state_size:
            raise VOCError(
                f"{self!r} was given an observation of shape {states.shape}; the flat state "
                f"({self.state_size},) or a batch of it is needed."
            )
        hidden = np.maximum(self._linear("layers.0", states), 0)
        hidden = np.maximum(self._linear("layers.1", hidden), 0)
        log_std = np.clip(self._linear("log_std", hidden), -20, 2)
        return self._linear("mu", hidden), np.exp(log_std)

    def _linear(self, part: str, values: np.ndarray) -> np.ndarray:
        return values @ self._tensors[f"{part}.weight"].T + self._tensors[f"{part}.bias"]

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The mean's actions, float32 (A,) or (B, A)."""
        return np.tanh(self.distribution(observation)[0]).astype(np.float32)

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws, float32 (count, A) or (count, B, A), of one pass."""
        mean, std = self.distribution(observation)
        return np.tanh(mean + std * rng.standard_normal((count, *mean.shape))).astype(np.float32)

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """An action float32 (A,) at one state, its ``log_prob``, and the policy id 0."""
        action = self.draw(observation, rng)
        return action, float(self.log_prob(observation, action)), 0

    def log_prob(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Log-density, float64 (), or (B,) for batches, of ``action`` in [-1, 1].

        An entry of exactly +-1 stands for all that float32 rounds there: its factor is that probability, so
        the ratio of two policies stays right where actions saturate.

        Raises:
            VOCError: an action outside [-1, 1], or of another shape than the policy's.
        """
        mean, std = self.distribution(observation)
        action = np.asarray(action)
        if action.shape != mean.shape:
            raise VOCError(f"The action has shape {action.shape}; {mean.shape} is needed.")
        if not (np.abs(action) <= 1).all():
            raise VOCError(f"{self!r} was given an action outside [-1, 1]; it never draws one.")
        return _log_prob(action, mean, std)


def _log_prob(action: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Sum over the last axis of log N(u; mean, std) - log(1 - tanh(u)^2) with u = atanh(action)."""
    action = action.astype(np.float64)
    at_edge = np.abs(action) > _LARGEST
    inside = np.where(at_edge, 0.0, action)
    z = (np.arctanh(inside) - mean) / std
    density = -0.5 * (z**2 + np.log(2 * np.pi)) - np.log(std) - np.log1p(-(inside**2))
    halfway = np.arctanh((1 + _LARGEST) / 2)  # from here on, tanh(u) is rounded to 1
    beyond = log_ndtr((np.sign(action) * mean - halfway) / std)
    return np.where(at_edge, beyond, density).sum(-1)


def _checked(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    names = {f"{part}.{kind}" for part in _PARTS for kind in ("weight", "bias")}
    if set(tensors) != names:
        missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
        raise VOCError(f"{where} is not an actor: missing {missing or '-'}, unexpected {extra or '-'}.")
    checked = {name: np.ascontiguousarray(tensors[name], np.float64) for name in names}
    for part, before in zip(_PARTS, (None, "layers.0", "layers.1", "layers.1"), strict=True):
        weight, bias = checked[f"{part}.weight"], checked[f"{part}.bias"]
        width = None if before is None else len(checked[f"{before}.bias"])
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or width not in (None, weight.shape[1]):
            raise VOCError(f"{where}: {part}'s weight {weight.shape} and bias {bias.shape} do not fit.")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise VOCError(f"{where}: {part} holds NaN or infinity; finite numbers are needed.")
    return checked


def load_policy(name: str | Path, seed: int = 0) -> GaussianActor:
    """An actor that ships with the package (``"walker-walk/step_60000"``), or a ``.safetensors`` file's.

    Raises:
        VOCError: no such actor or file, or a file that is damaged or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    shipped = shipped_policies()
    path = shipped.get(str(name), Path(name))
    if not path.is_file():
        raise VOCError(
            f"No policy {str(name)!r}; a .safetensors file is needed (for policy evaluation, the folder of a saved "
            f"OfflineAgent serves too), or {', '.join(shipped)}."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise VOCError(f"Policy {path} is not a whole safetensors file ({error}).") from error
    return GaussianActor(tensors, name=str(name), seed=seed)


def shipped_policies() -> dict[str, Path]:
    """Names of the actors that ship with the package, and their files."""
    files = sorted(SHIPPED.glob("*/step_*.safetensors"), key=lambda f: (f.parent, len(f.stem), f.stem))
    return {f"{file.parent.name.replace('_', '-')}/{file.stem}": file for file in files}
