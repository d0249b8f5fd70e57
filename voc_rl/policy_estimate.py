"""What is said of a policy: its value, the interval, how far the data support it, and when not to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FAR = 2.0  # typical distances: a policy whose jumps are longer on average is not supported by the data
COVERS = (
    "the mean over which episodes were logged (chains of resampled episodes, and how far they drift), the noise of the "
    "policy and of sampling, how far a critic moved the chain's value, and how far the network is from its chain; not "
    "a reward that the frames do not show"
)


@dataclass(frozen=True)
class PolicyEstimate:
    """The value of one policy: its discounted return from the next step on, averaged over the starts, in reward units.

    value, stderr, low, high: the estimate, its standard error and the interval *of the mean* at ``level``; ``covers``
    says which uncertainty that is. start_values float64 (S,): the value of each start. diagnostics: numbers that tell
    how far the data support the policy (``docs/policy_evaluation.md``). warning: why not to believe it, or "".
    """

    policy: str
    value: float
    stderr: float
    low: float
    high: float
    level: float
    gamma: float
    estimator: str
    covers: str
    start_values: np.ndarray
    diagnostics: dict[str, float]
    warning: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "start_values": self.start_values.tolist()}


def format_estimates(estimates: Sequence[PolicyEstimate]) -> str:
    """Markdown: a row per policy, then what the intervals cover and whatever is to be warned of."""
    lines = [
        f"| policy | value | {estimates[0].level:.0%} interval | match distance | starts / elsewhere |",
        "|---|---:|---|---:|---|",
    ]
    for e in estimates:
        told = e.diagnostics
        lines.append(
            f"| {e.policy} | {e.value:.3f} | {e.low:.3f} to {e.high:.3f} | {told['match_distance']:.2f} "
            f"| {told['value_at_starts']:.3f} / {told['value_elsewhere']:.3f} |"
        )
    lines += ["", f"Discount {estimates[0].gamma:g}, estimator {estimates[0].estimator}. Intervals cover {COVERS}."]
    return "\n".join([*lines, *(e.warning for e in estimates if e.warning)])


def warning_of(name: str, diagnostics: Mapping[str, float]) -> str:
    """A sentence for a policy that the data do not support, else ""."""
    if diagnostics["match_distance"] <= FAR:
        return ""
    return (
        f"The data hardly support {name}: rows like the ones that it meets, with actions like its own, are "
        f"{diagnostics['match_distance']:.1f} typical distances away; do not rely on its value."
    )
