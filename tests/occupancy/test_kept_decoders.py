"""Decoders that are kept: which ones, how long, and how many bytes they and what they do take."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import generator
from test_sampling import CODES, TOKENS, network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voc_rl.model_files import Parts
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, sample_futures, uniforms
from voc_rl.occupancy.decoding import _DECODERS, KEPT, decoder, kept_decoder
from voc_rl.occupancy.decoding_memory import bytes_of_state, fitting, room
from voc_rl.occupancy.discounts import draw_gammas
from voc_rl.occupancy.sampling import sample_plainly


def test_decoders_are_kept_and_shared_by_nearly_equal_numbers_of_states() -> None:
    model = network()
    one = kept_decoder(model, 201, 1, torch.float32)
    assert kept_decoder(model, 256, 1, torch.float32) is one
    assert one.states == 256
    assert [room(states, 1) for states in (1, 7, 8, 17, 33, 512)] == [1, 8, 8, 32, 64, 512]
    assert [room(states, 10) for states in (32, 33, 60, 64, 65)] == [32, 36, 60, 64, 72]  # many: an eighth at most
    for samples in (1, 10, 700):
        for most in (1, 5, 7, 15, 16, 17, 51, 63, 64, 300, 512, 1000, 1023):
            states = fitting(most, samples)
            assert room(states, samples) <= most
            assert all(room(more, samples) > most for more in range(states + 1, most + 1))
    assert fitting(10**12, 1) > 0.87 * 10**12  # at once, however much fits into a GPU


@torch.no_grad()
def test_parameters_that_were_replaced_are_read() -> None:
    model, noise = network(), uniforms(network(), 4, 30, generator())
    one = kept_decoder(model, 4, 30, torch.float32)
    model.load_state_dict({name: 1.5 * own for name, own in model.state_dict().items()}, assign=True)
    prefix = model.prefix(torch.randint(CODES, (4, TOKENS)))
    decode = kept_decoder(model, 4, 30, torch.float32)
    assert torch.equal(decode(prefix, noise), sample_plainly(model, prefix, noise))
    assert (one(prefix, noise) == sample_plainly(model, prefix, noise)).float().mean() < 0.7
    assert list(_DECODERS[model].values()) == [decode]
    model.blocks[1].mlp[0].weight = torch.nn.Parameter(torch.zeros_like(model.blocks[1].mlp[0].weight))
    assert kept_decoder(model, 4, 30, torch.float32) is not decode


def test_a_network_that_leaves_the_gpu_takes_its_decoders_along() -> None:
    asked: list[str] = []
    for leave in (lambda model: decoder(model, 1, 9, torch.float32), lambda model: voc_of(model).to("cpu")):
        model = network()
        one = kept_decoder(model, 2, 9, torch.float32)
        one._done = SimpleNamespace(synchronize=lambda: asked.append("waited"))  # type: ignore[assignment]
        leave(model)
        assert model not in _DECODERS
    assert asked == ["waited", "waited"]


def voc_of(occupancy: OccupancyTransformer) -> Any:
    """The networks of a VOC, with this one alone in it."""
    parts: Any = Parts.__new__(Parts)
    parts.occupancy, parts.quantizer, parts.reward_head, parts.value_head = occupancy, None, None, None
    return parts


def test_decoders_are_kept_where_the_network_is() -> None:
    model = network()
    one = kept_decoder(model, 4, 1, torch.float32)
    model.to("meta")
    other = kept_decoder(model, 4, 1, torch.float32)
    assert (one.last.device.type, other.last.device.type) == ("cpu", "meta")
    assert list(_DECODERS[model].values()) == [other]


def test_decoders_that_were_used_last_are_kept_as_far_as_memory_allows() -> None:
    model = network()
    made = [kept_decoder(model, 1, samples, torch.float32) for samples in range(1, KEPT + 1)]
    assert kept_decoder(model, 1, 1, torch.float32) is made[0]
    kept_decoder(model, 1, KEPT + 1, torch.float32)
    assert kept_decoder(model, 1, 1, torch.float32) is made[0]
    assert kept_decoder(model, 1, 2, torch.float32) is not made[1]  # it was used longest ago
    model = network()
    model.memory = 3 * bytes_of_state(model.config, 300, torch.float32) // 2
    for states, kept in ((1, [1]), (2, [1, 2]), (1, [2, 1]), (3, [3])):  # as much as two that sampling would make
        kept_decoder(model, states, 300, torch.float32)
        assert [each.states for each in _DECODERS[model].values()] == kept


def test_all_networks_on_a_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network used longest ago lets go first, of what it used longest ago; one with a larger budget gets it."""
    one, other, third = network(), network(), network()
    state = bytes_of_state(one.config, 300, torch.float32)
    monkeypatch.setattr("voc_rl.occupancy.decoding.default_memory", lambda device: 5 * state // 2)  # for five of them
    monkeypatch.setattr("voc_rl.occupancy.decoding._DECODERS", kept := weakref.WeakKeyDictionary())  # no other test's

    def asked(model: OccupancyTransformer, states: int) -> list[list[int]]:
        kept_decoder(model, states, 300, torch.float32)
        return [[each.states for each in kept.get(each, {}).values()] for each in (one, other, third)]

    assert asked(one, 2) == [[2], [], []]
    assert asked(one, 1) == [[2, 1], [], []]
    assert asked(other, 2) == [[2, 1], [2], []]
    assert asked(third, 1) == [[1], [2], [1]]
    assert asked(one, 1) == [[1], [2], [1]]
    assert asked(third, 2) == [[1], [], [1, 2]]
    third.memory = 3 * state
    assert asked(third, 3) == [[], [], [1, 2, 3]]


def test_the_ladder_of_discounts_finds_its_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """``climb`` decodes for all targets that bootstrap, and again for those that go on."""
    made: list[int] = []

    def make(model: OccupancyTransformer, states: int, *rest: object) -> Any:
        made.append(states)
        return SimpleNamespace(bytes=0, fits=lambda model: True, finish=lambda: None)

    monkeypatch.setattr("voc_rl.occupancy.decoding.Decoder", make)
    rng, model, asked = np.random.default_rng(0), network(), 0
    for _ in range(200):
        gamma = np.repeat(draw_gammas((0.5, 0.95), 1024, rng), 2)
        gamma = gamma[rng.random(2048) < gamma**80]
        below = np.maximum(2 * gamma - 1, 0.5)
        going = int((rng.random(len(gamma)) < (gamma - below) / (1 - below)).sum())
        for count in (len(gamma), going):
            if count:
                kept_decoder(model, count, 1, torch.float32)
                asked += 1
    assert asked > 350
    assert len(made) < 0.05 * asked


def test_the_targets_of_training_share_few_decoders() -> None:
    """What is drawn at a refill varies; made anew each time, decoders would cost more than what they do."""
    rng = np.random.default_rng(0)
    for rows, share in ((256, 0.8), (2048, 0.02), (1024, 0.8)):
        assert len({room(int(count), 1) for count in rng.binomial(rows, share, size=200)}) <= KEPT


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            storage = each.untyped_storage() if isinstance(each, Tensor) else None
            if storage is not None and storage._cdata not in given:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.most = max(self.most, sum(self.sizes.values()))
        return made


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("samples", [1, 30])
@pytest.mark.parametrize(
    "config",
    [
        OccupancyConfig(240, 8, n_layer=2, n_head=4, width=128),  # size tiny
        OccupancyConfig(64, 40, n_layer=4, n_head=8, width=64),  # keys and values first
        OccupancyConfig(2048, 5, n_layer=1, n_head=1, width=16, top_k=40),  # the choice of a code first
    ],
)
def test_the_budget_is_what_sampling_takes(config: OccupancyConfig, samples: int, low: bool) -> None:
    """Measured, by how much more four states take than two."""
    model, found = OccupancyTransformer(config).eval(), []
    for states in (2, 4):
        context, noise = torch.zeros(states, config.n_tokens).long(), uniforms(model, states, samples, generator())
        with torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=False), Live() as live:
            sample_futures(model, context, None, samples, generator(), noise)
        found.append(live.most)
    state = bytes_of_state(config, samples, torch.bfloat16 if low else torch.float32)
    measured = (found[1] - found[0]) / 2
    assert measured <= state < (1.3 if samples > 1 else 1.7) * measured
