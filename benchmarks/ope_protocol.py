"""The protocol of the policy-evaluation benchmark: who made the data, who is evaluated, from where.

Data: episodes of eight checkpoints of one training run with sticky switching; action = .9 N(a*, .2^2) + .1 uniform,
log-densities stored. Targets: logged checkpoints, mixtures of two, and policies that the data do not hold.
Settings were chosen on the development policies alone; the test policies were run once.
"""

from __future__ import annotations

from voc_rl.agents import NoisyPolicy, StepMixture, StickyMixture, load_policy

TASKS = ("walker-walk", "cheetah-run")
SIGMA, EPSILON, SWITCH = 0.2, 0.1, 0.02
LOGGED = (0, 20_000, 40_000, 60_000, 80_000, 130_000, 200_000, 350_000)
MIXED = (
    (0, 60_000), (20_000, 80_000), (40_000, 130_000), (60_000, 200_000),
    (80_000, 350_000), (130_000, 200_000), (0, 350_000), (40_000, 350_000),
)  # fmt: skip
# (checkpoint, noise): three checkpoints that are not in the data, and other noise levels
UNSEEN = (
    (10_000, 0.2), (160_000, 0.2), (250_000, 0.2), (60_000, 0.4),
    (350_000, 0.05), (200_000, 0.4), (350_000, 0.5), (80_000, 0.05),
)  # fmt: skip
DEVELOPMENT = (
    (20_000, 0.1), (60_000, 0.3), (80_000, 0.3), (130_000, 0.1),
    (160_000, 0.35), (200_000, 0.1), (250_000, 0.1), (350_000, 0.3),
)  # fmt: skip

Target = NoisyPolicy | StepMixture


def behaviour(task: str) -> StickyMixture:
    """What makes the data."""
    return StickyMixture([_checkpoint(task, step, SIGMA, EPSILON) for step in LOGGED], SWITCH)


def target_policies(task: str) -> dict[str, Target]:
    """The 24 policies that are evaluated once: 8 logged, 8 mixtures, 8 unseen."""
    logged = {f"logged {step}": _checkpoint(task, step, SIGMA) for step in LOGGED}
    mixed = {f"mixed {a}+{b}": StepMixture([_checkpoint(task, s, SIGMA) for s in (a, b)]) for a, b in MIXED}
    unseen = {f"unseen {step} sigma {sigma:g}": _checkpoint(task, step, sigma) for step, sigma in UNSEEN}
    return {**logged, **mixed, **unseen}


def development_policies(task: str) -> dict[str, Target]:
    """The 8 policies that settings are chosen on."""
    return {f"development {step} sigma {sigma:g}": _checkpoint(task, step, sigma) for step, sigma in DEVELOPMENT}


def _checkpoint(task: str, step: int, sigma: float, epsilon: float = 0.0) -> NoisyPolicy:
    return NoisyPolicy(load_policy(f"{task}/step_{step}"), sigma, epsilon)
