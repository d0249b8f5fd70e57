"""The sampler: the same numbers as the full forward pass, and frequencies equal to the probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import occupancy, ring, slow_ring
from occupancy_table import OccupancyTable, all_logits
from scipy import stats
from small import generator
from torch import Tensor

from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, compose, sample_futures
from voc_rl.occupancy.contexts import Cache, Prefix
from voc_rl.occupancy.decoding_memory import bytes_of_state
from voc_rl.occupancy.sampling import sample_codes, states_at_once, uniforms

TOKENS, CODES = 3, 5


def network(feature_dim: int = 0, seed: int = 0, tokens: int = TOKENS, codes: int = CODES) -> OccupancyTransformer:
    """A network with weights large enough that every input matters."""
    torch.manual_seed(seed)
    config = OccupancyConfig(codes, tokens, feature_dim=feature_dim, n_layer=2, n_head=2, width=16)
    model = OccupancyTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape))
    return model


def all_futures(codes: int = CODES, tokens: int = TOKENS) -> Tensor:
    """Every sequence without END, then the END sequence: (codes^tokens + 1, tokens)."""
    return torch.tensor([*itertools.product(range(codes), repeat=tokens), (codes,) * tokens])


def exact_distribution(model: OccupancyTransformer, prefix: Prefix) -> Tensor:
    """(B, sequences): END decided by the first code alone, and never in the middle."""
    futures = all_futures(model.config.codebook_size, model.config.n_tokens)
    logits = all_logits(model, prefix, futures.expand(len(prefix), -1, -1))
    logits[..., 1:, model.config.end_code] = -torch.inf
    log_p = logits.log_softmax(-1).gather(-1, futures.expand(len(prefix), -1, -1)[..., None])[..., 0]
    log_p[:, -1, 1:] = 0.0
    return log_p.sum(-1).exp()


@torch.no_grad()
def test_future_logits_equal_the_flat_forward_pass() -> None:
    model = network()
    context, futures = torch.randint(CODES, (4, TOKENS)), torch.randint(CODES, (4, 6, TOKENS))
    shared = all_logits(model, model.prefix(context), futures)
    flat = torch.cat([context[:, None].expand(4, 6, TOKENS), futures], -1).flatten(0, 1)
    plain = model(flat)[:, TOKENS - 1 : 2 * TOKENS - 1].view(4, 6, TOKENS, -1)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    assert (plain.std((0, 1)) > 1e-2).all()  # contexts and futures do change the numbers


@torch.no_grad()
@pytest.mark.parametrize("feature_dim", [0, 4])
def test_cached_decoding_equals_future_logits(feature_dim: int) -> None:
    model = network(feature_dim)
    context, futures = torch.randint(CODES, (4, TOKENS)), torch.randint(CODES, (4, 6, TOKENS))
    features = torch.randn(4, feature_dim) if feature_dim else None
    prefix = model.prefix(context, features)
    full = all_logits(model, prefix, futures)
    cache = Cache(model.config, prefix, 6)
    torch.testing.assert_close(model.logits(prefix.last)[:, None].expand(4, 6, -1), full[:, :, 0], atol=1e-5, rtol=1e-5)
    for place in range(TOKENS - 1):
        step = model.logits(model.next_hidden(prefix, futures[..., place], cache))
        torch.testing.assert_close(step, full[:, :, place + 1], atol=1e-5, rtol=1e-5)
    if not feature_dim:
        flat = torch.cat([context[:, None].expand(4, 6, TOKENS), futures], -1).flatten(0, 1)
        torch.testing.assert_close(step.flatten(0, 1), model(flat)[:, -2], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_network_is_causal() -> None:
    model = network()
    ids = torch.randint(CODES, (2, 2 * TOKENS))
    before = model(ids)
    for place in range(2 * TOKENS):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % CODES
        after = model(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@torch.no_grad()
def test_features_are_shown_where_asked() -> None:
    model = network(feature_dim=4)
    model.fit_features(torch.tensor([[1.0, 2, 3, 4], [3.0, 2, 1, 0]]))
    context, features = torch.randint(CODES, (3, TOKENS)), torch.randn(3, 4)
    shown = torch.tensor([True, False, True])
    mixed = model.prefix(context, features, shown).last
    torch.testing.assert_close(mixed[shown], model.prefix(context, features).last[shown])
    torch.testing.assert_close(mixed[~shown], model.prefix(context).last[~shown])
    assert (model.prefix(context, features).last - model.prefix(context).last).abs().max() > 1e-2
    torch.testing.assert_close(model.feature_mean, torch.tensor([2.0, 2, 2, 2]))
    torch.testing.assert_close(model.feature_std, torch.tensor([2**0.5, 1e-4, 2**0.5, 8**0.5]))


@torch.no_grad()
@pytest.mark.parametrize("feature_dim", [0, 4])
def test_frequencies_equal_probabilities(feature_dim: int) -> None:
    """All 126 futures of three contexts: chi-square against the product of the softmaxes."""
    model = network(feature_dim, seed=3)
    context = torch.randint(CODES, (3, TOKENS))
    features = torch.randn(3, feature_dim) if feature_dim else None
    count = 40_000
    samples = sample_futures(model, context, features, count, generator())
    assert samples.shape == (3, count, TOKENS)
    assert samples.dtype == torch.int64
    exact = exact_distribution(model, model.prefix(context, features)).double().numpy()
    np.testing.assert_allclose(exact.sum(1), 1.0, atol=1e-5)
    for i in range(3):
        place = np.full(CODES**TOKENS, 0)
        flat = samples[i].numpy()
        ended = (flat == CODES).any(1)
        assert (flat[ended] == CODES).all()  # END fills the whole sequence
        place = flat[~ended] @ np.array([CODES**2, CODES, 1])
        found = np.append(np.bincount(place, minlength=CODES**TOKENS), ended.sum())
        common = exact[i] * count >= 5
        assert common.sum() > 20
        observed = np.append(found[common], found[~common].sum())
        expected = np.append(exact[i][common], max(exact[i][~common].sum(), 1e-9)) * count
        assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


def test_sample_codes_frequencies_and_zeros() -> None:
    p = torch.tensor([[0.0, 0.5, 0.2, 0.3, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    drawn = sample_codes(p.log(), torch.rand(2, 50_000, generator=generator()))
    first = torch.bincount(drawn[0], minlength=5).numpy()
    assert first[0] == first[4] == 0
    assert stats.chisquare(first[1:4], np.array([0.5, 0.2, 0.3]) * 50_000).pvalue > 1e-3
    assert (drawn[1] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_extreme_uniforms_never_take_an_impossible_code(uniform: float) -> None:
    logits = 3 * torch.randn(5000, 60, generator=generator())
    logits[:, [0, 17, 59]] = -torch.inf
    drawn = sample_codes(logits, torch.full((5000, 1), uniform))
    assert not torch.isin(drawn, torch.tensor([0, 17, 59])).any()


def test_top_k_keeps_the_likeliest() -> None:
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    drawn = sample_codes(p.log(), torch.rand(30_000, generator=generator()), top_k=2)
    counts = torch.bincount(drawn, minlength=4).numpy()
    assert counts[0] == counts[2] == 0
    assert stats.chisquare(counts[[1, 3]], np.array([4, 3]) / 7 * 30_000).pvalue > 1e-3
    for k in (4, 50, None):
        everything = sample_codes(p.log(), torch.rand(30_000, generator=generator()), top_k=k)
        assert (torch.bincount(everything, minlength=4) > 0).all()


@torch.no_grad()
def test_top_k_of_one_is_the_greedy_future() -> None:
    model, context = network(seed=4), torch.randint(CODES, (4, TOKENS))
    model.config = replace(model.config, top_k=1)
    futures = sample_futures(model, context, None, 3, generator())
    assert (futures == futures[:, :1]).all()
    prefix = model.prefix(context)
    logits = all_logits(model, prefix, futures)
    assert (logits[:, 0, 0].argmax(-1) == futures[:, 0, 0]).all()
    logits[..., 1:, CODES] = -torch.inf
    going = futures[:, 0, 0] != CODES
    assert going.any()
    assert (logits[going, 0, 1:].argmax(-1) == futures[going, 0, 1:]).all()


def test_same_generator_same_futures() -> None:
    model, context = network(), torch.randint(CODES, (5, TOKENS))
    one, two, other = (sample_futures(model, context, None, 7, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_futures(model, context, None, 7, generator())
    assert torch.equal(torch.get_rng_state(), before)  # no global random state


@torch.no_grad()
@pytest.mark.parametrize("new_gamma", [None, 0.9])
def test_common_random_numbers_make_futures_a_function_of_the_context(new_gamma: float | None) -> None:
    """Alone, in a batch and in a batch that is cut up, a context has the same futures; samples of it differ."""
    model, context = network(seed=5), torch.randint(CODES, (6, TOKENS))

    def drawn(some: Tensor) -> Tensor:
        if new_gamma is not None:
            return compose(model, some, None, 9, 0.5, new_gamma, generator(), common=True)
        return sample_futures(model, some, None, 9, generator(), noise=uniforms(model, 1, 9, generator()))

    together = drawn(context)
    assert torch.equal(torch.cat([drawn(context[i : i + 1]) for i in range(6)]), together)
    model.memory = 2 * bytes_of_state(model.config, 9, torch.float32)
    assert torch.equal(drawn(context), together)
    assert len(together[0].unique(dim=0)) > 1
    same = drawn(context[:1].expand(3, -1))
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])


@torch.no_grad()
@pytest.mark.parametrize("states", [1, 2, 3, 5, 100])
def test_a_budget_of_memory_cuts_states_and_keeps_their_order(states: int) -> None:
    model = network(feature_dim=4)
    context, features = torch.randint(CODES, (7, TOKENS)), torch.randn(7, 4)
    noise = uniforms(model, 7, 4, generator())
    together = sample_futures(model, context, features, 4, generator(), noise)
    model.memory = states * bytes_of_state(model.config, 4, torch.float32)
    assert states_at_once(model, 7, 4) == {1: 1, 2: 2, 3: 3, 5: 4, 100: 7}[states]  # parts of equal size
    assert torch.equal(sample_futures(model, context, features, 4, generator(), noise), together)
    assert torch.equal(sample_futures(model, context, features, 4, generator()), together)  # the same numbers are drawn
    one = bytes_of_state(model.config, 4, torch.float32)
    model.memory = one - 1
    words = f"^The budget of {one - 1:,} bytes for .* with 4 samples, which takes {one:,} bytes; raise it, or draw"
    with pytest.raises(VOCError, match=words):
        sample_futures(model, context, features, 4, generator())


def test_the_budget_is_what_decoding_takes() -> None:
    config = OccupancyConfig(1024, 75, n_layer=4, n_head=8, width=768)
    caches = 100 * 4 * 75 * 768 * 2 * 2  # keys and values of 100 futures in bfloat16
    assert caches < bytes_of_state(config, 100, torch.bfloat16) < 1.2 * caches


def with_end(P: np.ndarray) -> np.ndarray:
    """The ring, but from state 3 the walk ends with probability .3: (states, states + 1)."""
    Q = np.append(P, np.zeros((len(P), 1)), 1)
    Q[3] *= 0.7
    Q[3, -1] = 0.3
    return Q


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("chain", [lambda P: P, with_end])
@pytest.mark.parametrize(("gamma", "new_gamma"), [(0.5, 0.9), (0.8, 0.95), (0.0, 0.7), (0.9, 0.9)])
def test_composition_is_exact(
    gamma: float, new_gamma: float, chain: Callable[[np.ndarray], np.ndarray], common: bool
) -> None:
    """Hops of the exact occupancy at gamma give the exact occupancy at gamma'."""
    Q = chain(ring())
    square = Q if Q.shape[1] == len(Q) else np.vstack([Q, np.eye(len(Q) + 1)[-1]])
    model = OccupancyTable(occupancy(square, gamma)[None, : len(Q)]).network
    count = 20_000
    futures = compose(model, torch.arange(len(Q))[:, None], None, count, gamma, new_gamma, generator(), common)
    assert futures.shape == (len(Q), count, 1)
    exact = occupancy(square, new_gamma)[: len(Q)]
    for state in range(len(Q)):
        found = np.bincount(futures[state, :, 0].numpy(), minlength=len(square))
        assert found[exact[state] == 0].sum() == 0
        possible = exact[state] > 0
        assert stats.chisquare(found[possible], exact[state][possible] * count).pvalue > 1e-4


def test_composition_goes_on_for_as_many_hops_as_are_wanted() -> None:
    """A slow drift from .5 to .99: every third future lies more than 50 hops ahead."""
    exact, count = occupancy(slow_ring(), 0.99), 6000
    model, context = OccupancyTable(occupancy(slow_ring(), 0.5)[None]).network, torch.tensor([[0], [7]])
    futures = compose(model, context, None, count, 0.5, 0.99, generator(1))
    for state, found in zip((0, 7), futures[..., 0].numpy(), strict=True):
        assert stats.chisquare(np.bincount(found, minlength=12), exact[state] * count).pvalue > 1e-3
    assert exact[0].min() * count > 50
    with pytest.raises(VOCError, match=r"gamma 0.999 .* gamma 0.8 would take 200 hops on average, and some over 1000"):
        compose(model, context, None, count, 0.8, 0.999, generator())
    for wrong, said in (
        (0.4, r"for gamma 0\.5; it can answer for larger ones, not for 0\.4"),
        (1.0, "new_gamma is 1.0"),
    ):
        with pytest.raises(VOCError, match=said):
            compose(model, context, None, count, 0.5, wrong, generator())


def test_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(VOCError, match="width 10 is not a multiple of n_head 4"):
        OccupancyConfig(5, 1, width=10)
