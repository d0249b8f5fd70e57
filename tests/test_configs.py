"""Configs: strict, nested, and the same after JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from worlds import refusal

from voc_rl.configs import from_dict
from voc_rl.errors import VOCError, check_choice, check_gamma, check_observations, check_positive
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining
from voc_rl.quantizers import DINOConfig, MUSIKConfig, VQGANConfig, VQVAEConfig
from voc_rl.sizes import sized
from voc_rl.training import NetworkSize
from voc_rl.values import RewardConfig

LOOP = partial(LoopConfig, 5)
SIZES = partial(OccupancyConfig, **{"codebook_size": 5, "n_tokens": 2})


@dataclass(frozen=True)
class Inner:
    width: int = 4
    levels: tuple[int, ...] = (8, 6)


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: float | None = None


def test_nested_and_tuples_survive_json() -> None:
    config = Outer("a", Inner(7, (5, 5, 3)), 0.5)
    again = from_dict(Outer, json.loads(json.dumps(asdict(config))))
    assert again == config
    assert isinstance(again.inner, Inner)
    assert again.inner.levels == (5, 5, 3)
    assert from_dict(Outer, {"name": "a"}) == Outer("a")
    assert from_dict(Outer, {"name": "a", "inner": {}, "maybe": None}) == Outer("a")


@pytest.mark.parametrize(
    "config",
    [
        OccupancyTraining(gamma=0.95, n=3, loop=LoopConfig(steps=7)),
        VQVAEConfig(levels=(5, 3)),
        LoopConfig(2),
        sized("tiny", "vqgan"),
    ],
)
def test_our_own_configs_survive_json(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"name": "a", "colour": 1},
            r"^config has unknown key\(s\) colour; Outer accepts inner, maybe, name\.$",
        ),
        (
            {"name": "a", "inner": {"depth": 1, "b": 2}},
            r"^config\.inner has unknown key\(s\) b, depth; Inner accepts",
        ),
        ({"name": "a", "inner": 3}, r"^config\.inner is int; a mapping for Inner is needed"),
        ({}, r"^config does not describe a Outer: .*name"),
        ([1], r"^config is list; a mapping for Outer is needed"),
    ],
)
def test_refused(values: Any, said: str) -> None:
    with pytest.raises(VOCError, match=said):
        from_dict(Outer, values)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"steps": 0}, "steps is 0"), ({"steps": 5, "batch_size": 8.0}, "batch_size is 8.0; a whole number above"),
     ({"steps": 5, "learning_rate": -1.0}, "learning_rate is -1.0"),
     ({"steps": float("nan")}, "steps is nan"), ({"steps": "many"}, "steps is 'many'")],
)  # fmt: skip
def test_values_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(VOCError, match=said):
        from_dict(LoopConfig, values)


@pytest.mark.parametrize(
    ("config", "name", "value", "needed"),
    [
        *((LOOP, name, value, needed) for name, value, needed in (
            ("warmup", 20, "a share between 0 and 1"), ("warmup", -1, "a share between 0 and 1"),
            ("warmup", math.nan, "a share between 0 and 1"), ("weight_decay", -1.0, "at least 0 is"),
            ("learning_rate", math.inf, "a finite number"), ("betas", (0.9,), "two numbers from 0 to below 1"),
            ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        )),
        *((DINOConfig, "decay", value, "a number from 0 to below 1") for value in (1.5, 1.0, -0.1)),
        (DINOConfig, "commitment", -1.0, "at least 0 is"),
        *((config, name, 8.5, "a whole number above zero") for config, names in (
            (VQVAEConfig, ("n_tokens", "components", "hidden", "decoder_width", "patch")),
            (MUSIKConfig, ("n_tokens", "horizon", "negatives", "energy_hidden", "max_action_size")),
            (VQGANConfig, ("channels", "residual_blocks", "latent_channels", "codebook_size", "code_dim", "side")),
            (DINOConfig, ("width", "depth", "heads", "patch", "side", "codebook_size", "code_dim", "decoder_width")),
        ) for name in names),
        *((OccupancyTraining, name, value, "a whole number above zero")
          for name, value in (("n", -3), ("n", 0), ("n", 1.5), ("futures", 0), ("refill", 0), ("top_k", 5.0))),
        (OccupancyTraining, "head_weight", -1.0, "a number above zero"),
        *((OccupancyTraining, "ema", value, "a number from 0 to below 1") for value in (1.5, 1.0, -0.1, math.nan)),
        *((OccupancyTraining, "feature_dropout", value, "a share between 0 and 1") for value in (2, -0.1, math.nan)),
        *((OccupancyTraining, "feature_noise", value, "at least 0 is") for value in (-0.1, math.nan)),
        *((config, name, 0, "a number above zero")
          for config in (NetworkSize, SIZES) for name in ("n_layer", "n_head", "width")),
        *((config, name, value, "a number from 0 to below 1")
          for config in (NetworkSize, SIZES) for name in ("dropout", "attention_dropout") for value in (1.0, -0.1)),
        *((SIZES, name, 0, "a number above zero") for name in ("codebook_size", "n_tokens", "top_k")),
        *((SIZES, name, -1, "at least 0 is") for name in ("feature_dim", "action_dim", "policies")),
        (NetworkSize, "head_hidden", 0, "a number above zero"),
        *((NetworkSize, "head_members", value, "0, or at least 2 for a standard error, are") for value in (1, -1)),
        (RewardConfig, "bins", 1, "at least 2 is"), (RewardConfig, "hidden", 0, "a number above zero"),
    ],
)  # fmt: skip
def test_numbers_that_would_break_later(config: Callable[..., Any], name: str, value: float, needed: str) -> None:
    assert refusal(config, **{name: value}).startswith(f"{name} is {value!r}; {needed}")


def test_numbers_at_the_edge_are_taken() -> None:
    LoopConfig(1, warmup=1.0, weight_decay=0.0, betas=(0.0, 0.999))
    DINOConfig(decay=0.0, commitment=0.0)
    OccupancyTraining(n=1, futures=1, refill=1, top_k=1, ema=0.0, feature_dropout=1.0, feature_noise=0.0)
    NetworkSize(n_layer=1, n_head=1, width=1, head_hidden=1, head_members=2)
    NetworkSize(head_members=0)
    OccupancyConfig(1, 1, n_layer=1, n_head=1, width=1)
    RewardConfig(hidden=1, bins=2)
    assert refusal(NetworkSize, n_head=3) == "width 128 is not a multiple of n_head 3."


@pytest.mark.parametrize("gamma", [1.0, 1, -0.1, float("nan"), float("inf"), "0.9", None, True])
def test_gamma_outside(gamma: Any) -> None:
    with pytest.raises(VOCError, match=r"^gamma is .*; a discount in \[0, 1\) is needed\.$"):
        check_gamma(gamma)


def test_gamma_inside() -> None:
    for gamma in (0, 0.0, 0.5, 0.999, np.float64(0.9)):
        assert check_gamma(gamma) == gamma
        assert type(check_gamma(gamma)) is float


def test_small_checks() -> None:
    assert check_choice("b", ["c", "b"], "letter") == "b"
    with pytest.raises(VOCError, match=r"^Unknown letter 'a'; accepted: b, c\.$"):
        check_choice("a", ["c", "b"], "letter")
    check_positive(1e-9, "x")
    with pytest.raises(VOCError, match="x is 0;"):
        check_positive(0, "x")
    check_observations(np.zeros((2, 9, 4, 4), np.uint8), (9, 4, 4))
    with pytest.raises(VOCError, match=r"shape \(9, 4, 4\); \(batch, 9, 4, 4\) is needed"):
        check_observations(np.zeros((9, 4, 4), np.uint8), (9, 4, 4))
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        check_observations(np.zeros((2, 9, 4, 4), np.float32), (9, 4, 4))
    with pytest.raises(VOCError, match="dtype list; uint8"):
        check_observations([1], (9, 4, 4))
