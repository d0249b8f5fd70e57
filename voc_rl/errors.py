"""Checks at the border: one sentence that names what is wrong, what was found and what is accepted."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any


class VOCError(ValueError):
    """Bad input, said in one sentence. The command line prints it and exits with code 2."""


def few(names: list[str]) -> str:
    """The first three of some names, and how many more there are; for messages."""
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def reason_of(error: Exception) -> str:
    """The first sentence of another library's error, for messages: PyTorch's own run over several."""
    return str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else type(error).__name__


def check_gamma(gamma: float, name: str = "gamma") -> float:
    """A discount in [0, 1)."""
    if not isinstance(gamma, numbers.Real) or not 0.0 <= gamma < 1.0:
        raise VOCError(f"{name} is {gamma!r}; a discount in [0, 1) is needed.")
    return float(gamma)


def known_gamma(gamma: float, *known: float) -> float:
    """A discount in [0, 1); what differs from one of ``known`` by rounding alone, as 0.1 * 9 or a float32, is that."""
    gamma = check_gamma(gamma)
    return next((own for own in known if abs(own - gamma) < 1e-7), gamma)


def check_gammas(gammas: tuple[float, float]) -> None:
    """A range of discounts in [0, 1): the smallest and the largest."""
    if len(gammas) != 2 or not check_gamma(gammas[0], "gammas") < check_gamma(gammas[1], "gammas"):
        raise VOCError(f"gammas is {gammas!r}; the smallest and the largest of a range of discounts are needed.")


def check_choice(value: str, choices: Iterable[str], name: str) -> str:
    """One of a few words."""
    choices = sorted(choices)
    if value not in choices:
        raise VOCError(f"Unknown {name} {value!r}; accepted: {', '.join(choices)}.")
    return value


def check_choices(values: Iterable[str], choices: Iterable[str], name: str) -> None:
    """Each one of a few words."""
    choices = list(choices)
    for value in values:
        check_choice(value, choices, name)


def check_count(value: int, name: str) -> None:
    """A whole number above zero, as an integer."""
    if not isinstance(value, numbers.Integral) or not value > 0:
        raise VOCError(f"{name} is {value!r}; a whole number above zero is needed.")


def check_positive(value: int | float, name: str) -> None:
    """A number above zero."""
    if not value > 0:
        raise VOCError(f"{name} is {value!r}; a number above zero is needed.")


def check_at_least(value: int | float, least: int, name: str) -> None:
    """A number that is not below ``least``."""
    if not value >= least:
        raise VOCError(f"{name} is {value!r}; at least {least} is needed.")


def check_share(value: float, name: str) -> None:
    """A share, 0 and 1 among them."""
    if not 0 <= value <= 1:
        raise VOCError(f"{name} is {value!r}; a share between 0 and 1 is needed.")


def check_decay(value: float, name: str) -> None:
    """A share that leaves something: of what an average keeps, of what dropout takes away."""
    if not 0 <= value < 1:
        raise VOCError(f"{name} is {value!r}; a number from 0 to below 1 is needed.")


def check_seed(seed: int) -> None:
    """A seed of NumPy's and torch's generators, as an integer."""
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**63:
        raise VOCError(f"seed is {seed!r}; a whole number from 0 to 2^63 - 1 is needed.")


def check_samples(samples: int) -> None:
    """A number of samples that has a standard error."""
    if not isinstance(samples, numbers.Integral) or samples < 2:
        raise VOCError(f"samples is {samples!r}; at least 2, a whole number, are needed for a standard error.")


def check_level(level: float) -> None:
    """The confidence of an interval."""
    if not isinstance(level, numbers.Real) or not 0 < level < 1:
        raise VOCError(f"level is {level!r}; a confidence between 0 and 1 is needed.")


def check_reward_fn(reward_fn: Any) -> None:
    """What computes rewards of a dataset."""
    if not callable(reward_fn):
        raise VOCError(
            f"reward_fn is {type(reward_fn).__name__}; a function is needed, which takes the episodes and returns "
            "rewards (N,) (of an array: lambda episodes: array)."
        )


def check_token_rows(codes: Any, features: Any, rows: int) -> None:
    """Codes int (N, n_tokens), and features (N, feature_dim) where there are any (not None), of N rows of data."""
    if codes.is_floating_point():
        dtype = str(codes.dtype).removeprefix("torch.")
        raise VOCError(f"Codes have dtype {dtype}; whole numbers are needed (tokens are the codes, then the features).")
    for part, name in ((codes, "codes"), (features, "features")):
        if part is not None and len(part) != rows:
            raise VOCError(f"{len(part)} rows of {name} do not fit {rows} rows of data; tokenise this dataset.")


def check_observations(obs: Any, shape: tuple[int, ...]) -> None:
    """uint8 observations of ``shape`` (3K, H, W), with one batch axis in front."""
    found = tuple(getattr(obs, "shape", ()))
    dtype = str(getattr(obs, "dtype", type(obs).__name__)).removeprefix("torch.")
    if dtype != "uint8":
        raise VOCError(f"Observations have dtype {dtype}; uint8 frames are needed.")
    if found[1:] != shape:
        raise VOCError(
            f"Observations have shape {found}; (batch, {', '.join(map(str, shape))}) is needed "
            "(stacked frames, channels first, oldest frame first)."
        )
