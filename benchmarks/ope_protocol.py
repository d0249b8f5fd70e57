"""The protocol of the policy-evaluation benchmark: who made the data, who is evaluated, from where.

Data: episodes of checkpoints of one training run with sticky switching; action = .9 N(a*, .2^2) + .1 uniform (other
noise where a policy says so), log-densities stored. Targets: logged policies, mixtures of two, and policies that the
data do not hold. Settings are chosen on the development policies alone, which are checkpoints of test policies with
another noise, so near copies of them. The test policies were evaluated twice: what to mend (the ranking of the better
half, the width of intervals) was seen on the first evaluation, how, on development policies (docs/what_was_tried.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from voc_rl.agents import NoisyPolicy, StepMixture, StickyMixture, load_policy

TASKS = ("walker-walk", "cheetah-run")
SIGMA, EPSILON, SWITCH = 0.2, 0.1, 0.02
LOGGED = (0, 20_000, 40_000, 60_000, 80_000, 130_000, 200_000, 350_000)  # checkpoints that make data

Target = NoisyPolicy | StepMixture
Noisy = tuple[int, float]  # a checkpoint and the standard deviation of its noise


@dataclass(frozen=True)
class Protocol:
    """Who acts. logged: policies that make the data, each for 1 / SWITCH steps on average. mixed: pairs of them, one
    drawn at every step. unseen: policies that the data do not hold. development: those that settings are chosen on."""

    logged: tuple[Noisy, ...]
    mixed: tuple[tuple[Noisy, Noisy], ...]
    unseen: tuple[Noisy, ...]
    development: tuple[Noisy, ...]

    def behaviour(self, task: str) -> StickyMixture:
        """What makes the data."""
        return StickyMixture([_policy(task, noisy, EPSILON) for noisy in self.logged], SWITCH)

    def targets(self, task: str) -> dict[str, Target]:
        """The policies that are evaluated once, by name; the first word of a name tells its kind."""
        logged = {f"logged {_word(noisy)}": _policy(task, noisy) for noisy in self.logged}
        mixed = {
            f"mixed {_word(a)}+{_word(b)}": StepMixture([_policy(task, noisy) for noisy in (a, b)])
            for a, b in self.mixed
        }
        unseen = {f"unseen {step} sigma {sigma:g}": _policy(task, (step, sigma)) for step, sigma in self.unseen}
        return {**logged, **mixed, **unseen}

    def development_policies(self, task: str) -> dict[str, Target]:
        """The policies that settings are chosen on, by name."""
        return {f"development {step} sigma {sigma:g}": _policy(task, (step, sigma)) for step, sigma in self.development}


def _word(noisy: Noisy) -> str:
    return f"{noisy[0]}" if noisy[1] == SIGMA else f"{noisy[0]} sigma {noisy[1]:g}"


def _policy(task: str, noisy: Noisy, epsilon: float = 0.0) -> NoisyPolicy:
    return NoisyPolicy(load_policy(f"{task}/step_{noisy[0]}"), noisy[1], epsilon)


def _usual(*steps: int) -> tuple[Noisy, ...]:
    return tuple((step, SIGMA) for step in steps)


_DEVELOPMENT = (
    (20_000, 0.1), (60_000, 0.3), (80_000, 0.3), (130_000, 0.1),
    (160_000, 0.35), (200_000, 0.1), (250_000, 0.1), (350_000, 0.3),
)  # fmt: skip
_PAIRS = (
    (0, 60_000), (20_000, 80_000), (40_000, 130_000), (60_000, 200_000),
    (80_000, 350_000), (130_000, 200_000), (0, 350_000), (40_000, 350_000),
)  # fmt: skip

EIGHT = Protocol(  # 24 targets
    logged=_usual(*LOGGED),
    mixed=tuple(((a, SIGMA), (b, SIGMA)) for a, b in _PAIRS),
    # checkpoints that are not in the data, and other noise levels
    unseen=(
        (10_000, 0.2), (160_000, 0.2), (250_000, 0.2), (60_000, 0.4),
        (350_000, 0.05), (200_000, 0.4), (350_000, 0.5), (80_000, 0.05),
    ),
    development=_DEVELOPMENT,
)  # fmt: skip
SIXTEEN = Protocol(  # 40 targets
    logged=(*EIGHT.logged, *((step, 0.4) for step in LOGGED)),
    mixed=(
        *EIGHT.mixed, ((0, 0.4), (200_000, 0.2)), ((60_000, 0.4), (350_000, 0.2)),
        ((130_000, 0.4), (350_000, 0.4)), ((20_000, 0.2), (200_000, 0.4)),
    ),
    unseen=(
        (10_000, 0.2), (160_000, 0.2), (250_000, 0.2), (10_000, 0.5), (160_000, 0.5), (250_000, 0.4),
        (60_000, 0.6), (350_000, 0.05), (130_000, 0.6), (350_000, 0.6), (80_000, 0.05), (200_000, 0.05),
    ),
    development=_DEVELOPMENT,
)  # fmt: skip
