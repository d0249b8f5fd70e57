"""What is said of a policy: its value, the interval, how far the data support it, and when not to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voc_rl.values.density import FEWEST, too_few

FEW = 20  # episodes: intervals from fewer may hold much less than they say (docs/policy_evaluation.md)
MOVED = 0.2  # share of the value by which a critic or network may move that of the chain without a warning
FAR = 2.0  # typical distances: a policy whose jumps are longer on average is not supported by the data
COVERS = (
    "the mean of these starts over which episodes were logged (chains of resampled episodes, and how far they drift) "
    "and the noise of the policy"
)


def covers(critic: bool = False, network: bool = False, samples: bool = False) -> str:
    """What an interval covers, in words: of a chain alone, or also of what was asked beside it."""
    more = ", how far the critic moved the chain's value" if critic else ""
    more += ", how far the network is from its chain" if network else ""
    more += ", the noise of sampling" if samples else ""
    return f"{COVERS}{more}; not a reward that the frames do not show"


@dataclass(frozen=True, eq=False)
class PolicyEstimate:
    """The value of one policy: its discounted return from the next step on, averaged over the starts, in reward units.

    value, stderr, low, high: the estimate, its standard error and the interval *of the mean* at ``level``; ``covers``
    says which uncertainty that is. The last three are NaN where only one episode has a step; all four are where too few
    rows count for ``density``. start_values float64 (S,): the value of each start, NaN where too few rows count for it
    (``density``). diagnostics: numbers that tell how far the data support the policy (``docs/policy_evaluation.md``).
    warning: why not to believe it, or "".
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

    @property
    def interval(self) -> str:
        """In words, for tables."""
        return "no interval" if np.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: None for NaN, which JSON has not."""
        found = {name: _known(value) for name, value in asdict(self).items()}
        return {**found, "start_values": [_known(value) for value in self.start_values.tolist()]}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def format_estimates(estimates: Sequence[PolicyEstimate]) -> str:
    """Markdown: a row per policy, then what the intervals cover and whatever is to be warned of."""
    lines = [
        f"| policy | value | {estimates[0].level:.0%} interval | match distance | starts / elsewhere |",
        "|---|---:|---|---:|---|",
    ]
    for e in estimates:
        told = e.diagnostics
        lines.append(
            f"| {e.policy} | {e.value:.3f} | {e.interval} | {told['match_distance']:.2f} "
            f"| {told['value_at_starts']:.3f} / {told['value_elsewhere']:.3f} |"
        )
    lines += [
        "",
        f"Discount {estimates[0].gamma:g}, estimator {estimates[0].estimator}. Intervals cover {estimates[0].covers}.",
        *logged_of(estimates),
    ]
    return "\n".join([*lines, *warnings_of(estimates)])


def logged_of(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """What was logged from the starts, in a line; none where no return from there is known."""
    logged = estimates[0].diagnostics.get("logged")
    return [] if logged is None else [f"Logged from these starts, by whatever policies acted: {logged:.3f}."]


def warnings_of(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """The estimates' warnings, each once."""
    return list(dict.fromkeys(e.warning for e in estimates if e.warning))


def too_few_rows(name: str) -> str:
    """Why policies called ``name`` have no density estimate."""
    return (
        f"There is no density estimate of {name}: fewer than {FEWEST:g} rows count (the effective sample size); give "
        "more density_rows, or use estimator='sample'."
    )


def warning_of(
    name: str,
    diagnostics: Mapping[str, float],
    episodes: int,
    *,
    sure: bool = False,
    wide: bool = False,
    ends: bool = False,
    moved: float = 0.0,
) -> str:
    """A sentence for each reason not to believe a value, or its interval, of a policy; "" where there is none.

    sure: the interval has no width although rewards or ends vary in the data. wide: it is wider than values are. ends:
    episodes terminate in the data, and no critic checked the jumps. moved: by which share of the value a critic or a
    network moved that of the chain.
    """
    said = []
    if sure:
        said.append(
            f"The chain of {name} stays in {diagnostics['rows_used']:.0f} rows, where nothing varies, and so do those "
            "of resampled episodes; its interval, of no width, does not say what other rewards or ends it would meet."
        )
    if wide:
        said.append(
            f"The interval of {name} is wider than the values of these data are large; they do not tell its value at "
            "this discount, so ask at a smaller one or log more episodes."
        )
    if ends:
        said.append(
            "Episodes terminate in these data, and chains of jumps may miss ends, which makes values too high; compare "
            "with estimator='corrected'."
        )
    if moved > MOVED:
        said.append(
            f"The chain of {name} alone gives {diagnostics['value_at_starts']:.4g}, which is {moved:.0%} off the value "
            "given; roll the policy out, if you can, to see which of them is right."
        )
    if too_few(diagnostics.get("effective_rows", FEWEST)):
        said.append(too_few_rows(name))
    if diagnostics["match_distance"] > FAR:
        said.append(
            f"The data hardly support {name}: rows like the ones that it meets, with actions like its own, are "
            f"{diagnostics['match_distance']:.1f} typical distances away; do not rely on its value."
        )
    if episodes < 2:
        said.append("One episode does not tell how much depends on which ones were logged; there is no interval.")
    elif episodes < FEW:
        said.append(f"Intervals from {episodes} episodes may be too narrow; do not rely on those of fewer than {FEW}.")
    return " ".join(said)
