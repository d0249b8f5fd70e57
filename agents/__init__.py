"""Policies: actors that ship with the package, and noise and mixtures for collecting data.

The names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voc_rl.agents.actors import GaussianActor as GaussianActor
    from voc_rl.agents.actors import load_policy as load_policy
    from voc_rl.agents.actors import shipped_policies as shipped_policies
    from voc_rl.agents.behaviour import NoisyPolicy as NoisyPolicy
    from voc_rl.agents.behaviour import StepMixture as StepMixture
    from voc_rl.agents.behaviour import StickyMixture as StickyMixture
    from voc_rl.agents.loading import Deterministic as Deterministic
    from voc_rl.agents.loading import policy_of as policy_of

_HOME = {
    "GaussianActor": "actors",
    "NoisyPolicy": "behaviour",
    "StepMixture": "behaviour",
    "StickyMixture": "behaviour",
    "Deterministic": "loading",
    "load_policy": "actors",
    "policy_of": "loading",
    "shipped_policies": "actors",
}

__all__ = [
    "Deterministic",
    "GaussianActor",
    "NoisyPolicy",
    "StepMixture",
    "StickyMixture",
    "load_policy",
    "policy_of",
    "shipped_policies",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"voc_rl.agents.{_HOME[name]}"), name)
    raise AttributeError(f"module 'voc_rl.agents' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
