"""Configs are dataclasses; from a mapping they are built strictly: an unknown key is an error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

from voc_rl.errors import VOCError

Config = TypeVar("Config")


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "config") -> Config:
    """Build ``cls`` from ``values``; nested dataclasses from nested mappings.

    Raises:
        VOCError: a key that ``cls`` does not have, or a mapping where a plain value is needed.
    """
    if not isinstance(values, Mapping):
        raise VOCError(f"{where} is {type(values).__name__}; a mapping for {cls.__name__} is needed.")
    types = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise VOCError(
            f"{where} has unknown key(s) {', '.join(unknown)}; {cls.__name__} accepts {', '.join(sorted(known))}."
        )
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        inner = _dataclass_in(types[name])
        if inner is not None and not (value is None and inner is not types[name]):
            value = from_dict(inner, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)  # JSON has no tuples, and configs have no lists
        elif isinstance(value, Mapping):
            value = {key: tuple(own) if isinstance(own, list) else own for key, own in value.items()}
        arguments[name] = value
    try:
        return cls(**arguments)
    except TypeError as error:
        raise VOCError(f"{where} does not describe a {cls.__name__}: {error}.") from error


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON-ready values: equal settings give equal words, also where NumPy's numbers are among them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _dataclass_in(annotation: Any) -> type[Any] | None:
    """The dataclass of ``Config`` or ``Config | None``; None for any other annotation."""
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)
