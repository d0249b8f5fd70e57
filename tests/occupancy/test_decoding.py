"""The decoder with static shapes: the same futures as the plain sampler, whatever it decoded before."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import torch
from small import generator
from test_sampling import CODES, TOKENS, network

from voc_rl.occupancy import uniforms
from voc_rl.occupancy.contexts import Cache
from voc_rl.occupancy.decoding import _DECODERS, Decoder, kept_decoder
from voc_rl.occupancy.kernels import TorchKernels
from voc_rl.occupancy.sampling import sample_plainly


@torch.no_grad()
@pytest.mark.parametrize(("ends", "top_k"), [(True, None), (False, None), (True, 3)])
def test_the_same_futures_as_the_plain_sampler(ends: bool, top_k: int | None) -> None:
    model = network(seed=4)
    object.__setattr__(model.config, "ends", ends)
    object.__setattr__(model.config, "top_k", top_k)
    decode = Decoder(model, 6, 40, torch.float32, TorchKernels())
    for count, seed in ((6, 0), (4, 1), (6, 2)):
        prefix = model.prefix(torch.randint(CODES, (count, TOKENS)))
        noise = uniforms(model, count, 40, generator(seed))
        plain = sample_plainly(model, prefix, noise)
        assert torch.equal(decode(prefix, noise), plain)
        assert bool((plain == CODES).any()) == ends
    for parameter in model.parameters():  # as training moves a target network
        parameter.mul_(1.5)
    prefix = model.prefix(torch.randint(CODES, (6, TOKENS)))
    assert torch.equal(decode(prefix, noise), sample_plainly(model, prefix, noise))


@torch.no_grad()
def test_the_same_hidden_numbers_as_the_networks_own() -> None:
    model, futures = network(seed=2, tokens=20), torch.randint(CODES, (3, 7, 20))
    prefix = model.prefix(torch.randint(CODES, (3, 20)))
    cache, decode = Cache(model.config, prefix, 7), Decoder(model, 3, 7, torch.float32, TorchKernels())
    decode(prefix, uniforms(model, 3, 7, generator()))  # reads the context
    for place in range(19):
        own = model.next_hidden(prefix, futures[..., place], cache)
        found = decode._hidden(futures[..., place].flatten(), place).view_as(own)
        torch.testing.assert_close(found, own, atol=2e-6, rtol=2e-6)


class Captured:
    """A CUDA graph that was never captured."""

    def replay(self) -> None:
        raise RuntimeError("replay without a preceding successful capture")


@torch.no_grad()
def test_without_a_graph_decoding_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refuse(graph: Captured, device: torch.device) -> Iterator[None]:
        raise RuntimeError("CUDA out of memory\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr("voc_rl.occupancy.decoding.capture", refuse)
    model = network()
    decode, noise = Decoder(model, 2, 9, torch.float32, TorchKernels()), uniforms(model, 2, 9, generator())
    decode._captures = True
    prefix = model.prefix(torch.randint(CODES, (2, TOKENS)))
    expected = sample_plainly(model, prefix, noise)
    assert torch.equal(decode(prefix, noise), expected)
    with pytest.warns(
        UserWarning, match=r"^No CUDA graph of sampling \(CUDA out of memory\); it runs slower without\.$"
    ):
        assert torch.equal(decode(prefix, noise), expected)
    for _ in range(2):  # and no second warning, which would be an error here
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(decode(prefix, noise), expected)


def test_threads_take_turns_at_a_decoder() -> None:
    model = network()
    wide, noise = torch.randint(CODES, (2, 64, TOKENS)), uniforms(model, 64, 30, generator())
    decode, wrong = kept_decoder(model, 64, 30, torch.float32), [0, 0]
    with torch.no_grad():
        prefixes = [model.prefix(context) for context in wide]
        expected = [sample_plainly(model, prefix, noise) for prefix in prefixes]
    assert not torch.equal(*expected)

    def work(i: int) -> None:
        for _ in range(40):
            wrong[i] += int(not torch.equal(decode(prefixes[i], noise), expected[i]))

    threads = [Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0]


@torch.no_grad()
def test_copies_of_weights_that_moved_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where all weights are copies: after .to(cpu) and back, and training."""

    def copied(self: Decoder, parameter: torch.Tensor, dtype: torch.dtype, turn: bool = False) -> torch.Tensor:
        copy = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        self._pairs.append((copy, parameter))
        return copy.T if turn else copy

    monkeypatch.setattr(Decoder, "_kept", copied)
    model = network()
    decode, noise = Decoder(model, 4, 30, torch.float32, TorchKernels()), uniforms(model, 4, 30, generator())
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.mul_(1.5)
    prefix = model.prefix(torch.randint(CODES, (4, TOKENS)))
    assert torch.equal(decode(prefix, noise), sample_plainly(model, prefix, noise))


@pytest.mark.parametrize("first", [True, False])
def test_decoders_serve_inside_and_outside_of_inference_mode(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers, copies of weights and inputs can each be of one kind."""
    monkeypatch.setattr("voc_rl.occupancy.decoding.triton_works", lambda *given: False)
    model, noise = network(), uniforms(network(), 4, 30, generator())
    context = torch.randint(CODES, (4, TOKENS))
    with torch.no_grad():
        expected = sample_plainly(model, model.prefix(context), noise)
    for inside in (first, not first, first):
        with torch.inference_mode(inside), torch.no_grad():
            prefix = model.prefix(context)
            for dtype, same in ((torch.float32, 1.0), (torch.bfloat16, 0.8)):
                futures = kept_decoder(model, 4, 30, dtype)(prefix, noise)
                assert not futures.is_inference()
                assert (futures == expected).float().mean() >= same
    assert len(_DECODERS[model]) == 2


class Event:
    """One of a GPU, which says what was asked of it."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __getattr__(self, name: str) -> Any:
        return lambda: self.asked.append(name)


@torch.no_grad()
def test_streams_take_turns_at_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for what was asked before, and who lets go of a decoder, for all of it."""
    model, asked = network(), list[str]()
    decode, noise = kept_decoder(model, 2, 9, torch.float32), uniforms(model, 2, 9, generator())
    decode._done = Event(asked)  # type: ignore[assignment]
    prefix = model.prefix(torch.randint(CODES, (2, TOKENS)))
    monkeypatch.setattr(decode, "_write", lambda: asked.append("write"))
    decode(prefix, noise)
    assert asked == ["wait", "write", "record"]

    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decode, "_write", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        decode(prefix, noise)
    assert asked[3:] == ["wait", "record"]
    kept_decoder(model.to("meta"), 2, 9, torch.float32)
    assert asked[5:] == ["synchronize"]


INTERPRETED = """
import torch
from voc_rl.occupancy.kernels import TorchKernels
from voc_rl.occupancy.decoding_triton import TritonKernels
torch.manual_seed(0)
plain, kernels = TorchKernels(), TritonKernels()
for B, M, heads, P, d, T, place in ((2, 5, 2, 7, 12, 9, 0), (1, 19, 3, 130, 24, 9, 8)):
    qkv, keys, values = (torch.randn(shape) for shape in ((B * M, 3 * heads * d), *[(B, heads, P, d)] * 2))
    cache = [torch.randn(1, B * M, heads, T, d) for _ in "kv"]
    other = [part.clone() for part in cache]
    expected = plain.attend(qkv, keys, values, cache, place)
    torch.testing.assert_close(kernels.attend(qkv, keys, values, other, place), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(one, two) for one, two in zip(cache, other))
x, y, bias, norm = torch.randn(7, 24), torch.randn(7, 24), torch.randn(24), (torch.randn(24), torch.randn(24))
grown = x.clone()
expected = plain.add_norm(x, y, bias, norm)
torch.testing.assert_close(kernels.add_norm(grown, y, bias, norm), expected, atol=1e-5, rtol=1e-5)
assert torch.equal(grown, x)
logits, noise, before = torch.randn(200, 64), torch.rand(200), torch.randint(0, 41, (200,))
noise[:3], before[4], logits[0, :5] = 0, 40, -torch.inf
chosen = kernels.choose(logits, 40, noise, before)
assert torch.equal(chosen, plain.choose(logits, 40, noise, before))
assert chosen[4] == 40
"""


def test_gpu_kernels_in_the_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton")
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env={"TRITON_INTERPRET": "1"})
