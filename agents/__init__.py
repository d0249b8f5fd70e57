"""Policies: actors that ship with the package, noise and mixtures for collecting data, planner and offline agents.

The names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voc_rl.agents.action_values import ActionValues as ActionValues
    from voc_rl.agents.action_values import RollOutScores as RollOutScores
    from voc_rl.agents.action_values import action_training as action_training
    from voc_rl.agents.action_values import train_action_voc as train_action_voc
    from voc_rl.agents.actors import GaussianActor as GaussianActor
    from voc_rl.agents.actors import load_policy as load_policy
    from voc_rl.agents.actors import shipped_policies as shipped_policies
    from voc_rl.agents.behaviour import Deterministic as Deterministic
    from voc_rl.agents.behaviour import EpsilonGreedy as EpsilonGreedy
    from voc_rl.agents.behaviour import NoisyPolicy as NoisyPolicy
    from voc_rl.agents.behaviour import StepMixture as StepMixture
    from voc_rl.agents.behaviour import StickyMixture as StickyMixture
    from voc_rl.agents.improvement import ImprovementConfig as ImprovementConfig
    from voc_rl.agents.improvement import policy_voc as policy_voc
    from voc_rl.agents.improvement import weighted_clone as weighted_clone
    from voc_rl.agents.loading import callable_of as callable_of
    from voc_rl.agents.loading import policy_of as policy_of
    from voc_rl.agents.objectives import TD3BC as TD3BC
    from voc_rl.agents.objectives import Cloning as Cloning
    from voc_rl.agents.objectives import top_episodes as top_episodes
    from voc_rl.agents.offline import AgentConfig as AgentConfig
    from voc_rl.agents.offline import OfflineAgent as OfflineAgent
    from voc_rl.agents.planner import PlannerConfig as PlannerConfig
    from voc_rl.agents.planner import VOCPlanner as VOCPlanner

_HOME = {
    "ActionValues": "action_values",
    "RollOutScores": "action_values",
    "action_training": "action_values",
    "train_action_voc": "action_values",
    "OfflineAgent": "offline",
    "AgentConfig": "offline",
    "VOCPlanner": "planner",
    "PlannerConfig": "planner",
    "Cloning": "objectives",
    "TD3BC": "objectives",
    "top_episodes": "objectives",
    "weighted_clone": "improvement",
    "policy_voc": "improvement",
    "ImprovementConfig": "improvement",
    "GaussianActor": "actors",
    "EpsilonGreedy": "behaviour",
    "NoisyPolicy": "behaviour",
    "StepMixture": "behaviour",
    "StickyMixture": "behaviour",
    "Deterministic": "behaviour",
    "load_policy": "actors",
    "callable_of": "loading",
    "policy_of": "loading",
    "shipped_policies": "actors",
}

__all__ = [
    "TD3BC",
    "ActionValues",
    "AgentConfig",
    "Cloning",
    "Deterministic",
    "EpsilonGreedy",
    "GaussianActor",
    "ImprovementConfig",
    "NoisyPolicy",
    "OfflineAgent",
    "PlannerConfig",
    "RollOutScores",
    "StepMixture",
    "StickyMixture",
    "VOCPlanner",
    "action_training",
    "callable_of",
    "load_policy",
    "policy_of",
    "policy_voc",
    "shipped_policies",
    "top_episodes",
    "train_action_voc",
    "weighted_clone",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"voc_rl.agents.{_HOME[name]}"), name)
    raise AttributeError(f"module 'voc_rl.agents' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
