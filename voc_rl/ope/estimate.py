"""What is said of a policy: its value, the interval, how far the data support it, and when not to believe it; and of
two: which is worth more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voc_rl.errors import VOCError
from voc_rl.ope.error import ErrorParts
from voc_rl.ope.estimators import WITH_CRITIC
from voc_rl.values.density import FEWEST, too_few

FEW = 20  # episodes: intervals from fewer may hold much less than they say (docs/policy_evaluation.md)
MOVED = 0.2  # share of the value by which a critic or network may move that of the chain without a warning
FAR = 2.0  # typical distances: a policy whose jumps are longer on average is not supported by the data
NARROW = " Such intervals may be too narrow where no critic checks the jumps; compare by 'corrected' or 'head'."
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


@dataclass(frozen=True)
class PolicyDifference:
    """By how much a policy is worth more ``than`` another, in reward units, and the interval of that at ``level``.

    Of this one difference, not of several at once: of the best of many policies, luck may have made it the best.
    stderr, low, high: NaN where there is no interval; value: where one of the two has none.
    """

    policy: str
    than: str
    value: float
    stderr: float
    low: float
    high: float
    level: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "no difference"
        digits = f"+.{decimals(self.value, self.stderr)}f"
        return f"{self.value:{digits}} ({_interval(self.low, self.high, digits)})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: None for NaN, which JSON has not."""
        return _plain({**asdict(self), "told_apart": self.told_apart})


@dataclass(frozen=True, eq=False, repr=False)
class PolicyEstimate:
    """The value of one policy: its discounted return from the next step on, averaged over the starts, in reward units.

    value: NaN where too few rows count for ``density``. error: what its standard error is made of. level: confidence of
    the interval. covers: which uncertainty that is. start_values float64 (S,): the value of each start, NaN where too
    few rows count for it (``density``). diagnostics: numbers that tell how far the data support the policy
    (``docs/policy_evaluation.md``). warning: why not to believe it, or "". question: equal where one evaluator was
    asked the same, so that policies can be compared.
    """

    policy: str
    value: float
    error: ErrorParts
    level: float
    gamma: float
    estimator: str
    covers: str
    start_values: np.ndarray
    diagnostics: dict[str, float]
    warning: str
    question: tuple[Any, ...]

    def __repr__(self) -> str:
        """In a line, as lists of several are printed too."""
        doubts = f"; {self.warning}" if self.warning else ""
        value = f"{self.value:{self.digits}} ({self.interval})"
        return f"<{self.policy}: {value}, {self.estimator} at gamma {self.gamma:g}{doubts}>"

    @property
    def stderr(self) -> float:
        """Standard error of the value; NaN where only one episode has a step, or no value."""
        return self.error.stderr

    @property
    def low(self) -> float:
        """Lower end of the interval *of the mean* at ``level``; NaN as the standard error."""
        return self.error.interval(self.value, self.level)[0]

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.error.interval(self.value, self.level)[1]

    @property
    def interval(self) -> str:
        """In words, for tables."""
        return _interval(self.low, self.high, self.digits)

    @property
    def digits(self) -> str:
        """How its numbers are formatted."""
        return f".{decimals(self.value, self.stderr)}f"

    def difference(self, other: PolicyEstimate) -> PolicyDifference:
        """By how much this policy is worth more than another of the same evaluation, at this estimate's ``level``.

        What makes both values too high or too low alike drops out; what makes one of them wrong, as actions that the
        data lack, does not, and is in no interval: mind the warnings and the match distances of both.

        Raises:
            VOCError: estimates of two evaluations, or of other rewards, another discount or estimator.
        """
        if self.question != other.question:
            raise VOCError(
                f"The values of {self.policy} and {other.policy} answer different questions; ask both of one "
                "evaluate_policy or PolicyEvaluator, with the same estimator, rewards and discount."
            )
        value, error = self.value - other.value, self.error - other.error
        low, high = error.interval(value, self.level)
        return PolicyDifference(self.policy, other.policy, value, error.stderr, low, high, self.level)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without ``question``: None for NaN, which JSON has not."""
        found = {name: own for name, own in asdict(self).items() if name != "question"}
        return _plain({**found, "stderr": self.stderr, "low": self.low, "high": self.high})


def decimals(value: float, stderr: float) -> int:
    """How many decimals numbers are shown with: three, or where rewards are small as many as show two digits of the
    standard error, but no more than six digits of the value."""
    size = abs(value) if np.isfinite(value) and value else 1.0
    finest = stderr if np.isfinite(stderr) and stderr else 0.01 * size
    return int(max(3, min(1 - np.floor(np.log10(finest)), 5 - np.floor(np.log10(size)))))


def _interval(low: float, high: float, digits: str) -> str:
    return "no interval" if np.isnan(low) else f"{low:{digits}} to {high:{digits}}"


def _plain(value: Any) -> Any:
    """Lists for arrays and None for NaN, at any depth."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(own) for own in value.tolist()]
    return None if isinstance(value, float) and np.isnan(value) else value


def against_best(estimates: Sequence[PolicyEstimate]) -> list[PolicyDifference]:
    """The estimates, best first, against the first of them: of all but that."""
    return [estimate.difference(estimates[0]) for estimate in estimates[1:]]


def ranking(estimates: Sequence[PolicyEstimate]) -> list[list[str]]:
    """Headings, then of each policy its name, value and interval, best first; of several also the difference to the
    best."""
    rows = [["policy", "value", f"{estimates[0].level:.0%} interval"]]
    rows += [[e.policy, f"{e.value:{e.digits}}", e.interval] for e in estimates]
    if len(estimates) > 1:
        against = ["against the best", "", *map(str, against_best(estimates))]
        rows = [[*row, other] for row, other in zip(rows, against, strict=True)]
    return rows


def format_estimates(estimates: Sequence[PolicyEstimate]) -> str:
    """Markdown: a row per policy, best first, then what the intervals cover and whatever is to be warned of."""
    first, (head, *ranked) = estimates[0], ranking(estimates)
    rows = [[*head, "match distance", "starts / elsewhere"], ["---", "---:", *["---"] * (len(head) - 2), "---:", "---"]]
    for e, row in zip(estimates, ranked, strict=True):
        told = e.diagnostics
        around = f"{told['value_at_starts']:{e.digits}} / {told['value_elsewhere']:{e.digits}}"
        rows.append([*row, f"{told['match_distance']:.2f}", around])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"Discount {first.gamma:g}, estimator {first.estimator}. Intervals cover {first.covers}.",
        *rivals_of(estimates),
        *logged_of(estimates),
    ]
    return "\n".join([*lines, *warnings_of(estimates)])


def rivals_of(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """Which policies the data do not tell apart from the best, in a line; none where only one was asked."""
    best, others = estimates[0], [d for d in against_best(estimates) if not np.isnan(d.value)]
    if not others:
        return []
    level = f"the {best.level:.0%} interval of each difference"
    narrow = "" if best.estimator in WITH_CRITIC else NARROW
    names = [other.policy for other in others if not other.told_apart]
    if names:
        return [f"Not told apart from {best.policy} by {level}: {'; '.join(names)}.{narrow}"]
    return [f"All others are told apart from {best.policy} by {level}; the best of many may be so by luck.{narrow}"]


def logged_of(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """What was logged from the starts, in a line; none where no return from there is known."""
    told, digits = estimates[0].diagnostics, estimates[0].digits
    if "logged" not in told:
        return []
    stderr = f" (standard error {told['logged_stderr']:{digits}})" if "logged_stderr" in told else ""
    return [f"Logged from these starts, by whatever policies acted: {told['logged']:{digits}}{stderr}."]


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
