"""On a GPU: the sampler's graphs and kernels, training and values say what they say on a CPU. Skipped without one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from chains import episodes_of, ring, walks
from scipy import stats
from test_sampling import CODES, TOKENS, exact_distribution, network
from torch import Tensor

from voc_rl.loop import Descent, LoopConfig
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining, OccupancyTransformer, ValueHead, sample_futures
from voc_rl.occupancy.decoding import Decoder
from voc_rl.occupancy.goals import BatchReturns, Returns
from voc_rl.occupancy.kernels import TorchKernels
from voc_rl.occupancy.sampling import sample_plainly, uniforms
from voc_rl.occupancy.targets import Targets, draw_targets
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.precision import autocast, generator_on, seeded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@torch.no_grad()
@pytest.mark.parametrize("low", [False, True])
def test_frequencies_equal_probabilities(low: bool) -> None:
    """All 126 futures of three contexts, by the first call, the captured one and a replay: chi-square."""
    model = network(seed=3).to(CUDA)
    context = torch.randint(CODES, (3, TOKENS), device=CUDA)
    exact = exact_distribution(model.cpu(), model.prefix(context.cpu())).double().numpy()
    model.to(CUDA)
    count, gen = 20_000, generator_on(CUDA, 0)
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            samples = sample_futures(model, context, None, count, gen).cpu().numpy()
        for i, flat in enumerate(samples):
            ended = (flat == CODES).any(1)
            assert (flat[ended] == CODES).all()
            place = flat[~ended] @ np.array([CODES**2, CODES, 1])
            found = np.append(np.bincount(place, minlength=CODES**TOKENS), ended.sum())
            common = exact[i] * count >= 5
            observed = np.append(found[common], found[~common].sum())
            expected = np.append(exact[i][common], max(exact[i][~common].sum(), 1e-9)) * count
            if low:  # bfloat16 rounds probabilities by a percent
                assert 0.5 * np.abs(observed - expected).sum() / count < 0.03
            else:
                assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-4


def paper_like(seed: int = 0) -> OccupancyTransformer:
    torch.manual_seed(seed)
    return OccupancyTransformer(OccupancyConfig(1024, 12, n_layer=2, n_head=8, width=768)).eval().to(CUDA)


@torch.no_grad()
def test_kernels_agree_with_plain_sampling_at_the_papers_width() -> None:
    model, gen = paper_like(), generator_on(CUDA, 0)
    context = torch.randint(1024, (5, 12), device=CUDA)
    noise = uniforms(model, 5, 37, gen)
    with autocast(model):
        prefix = model.prefix(context)
        plain = sample_plainly(model, prefix, noise)
    from voc_rl.occupancy.decoding_triton import TritonKernels

    for kernels in (TorchKernels(), TritonKernels()):
        decode = Decoder(model, 5, 37, torch.bfloat16, kernels)
        drawn = [decode(prefix, noise) for _ in range(3)]
        assert torch.equal(drawn[0], drawn[1])  # the graph does what was done without it
        assert torch.equal(drawn[0], drawn[2])
        agree = (drawn[0] == plain).float().mean((0, 1))
        assert agree[0] > 0.99
        assert agree[1] > 0.9
    different = decode(prefix, uniforms(model, 5, 37, gen))
    assert (different != drawn[0]).float().mean() > 0.5  # new noise is seen by a replay
    for parameter in model.parameters():
        parameter.mul_(1.2)
    with autocast(model):
        moved = sample_plainly(model, prefix, noise)
    agree = (decode(prefix, noise) == moved).float().mean((0, 1))  # and new weights
    assert agree[1] > 0.9


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 1, 7])
def test_attention_kernel(place: int) -> None:
    from voc_rl.occupancy.decoding_triton import TritonKernels

    torch.manual_seed(0)
    B, M, heads, P, d, T = 3, 21, 8, 75, 96, 12
    qkv = torch.randn(B * M, 3 * heads * d, device=CUDA, dtype=torch.bfloat16)
    keys, values = (torch.randn(B, heads, P, d, device=CUDA, dtype=torch.bfloat16) for _ in "kv")
    one = [torch.randn(1, B * M, heads, T, d, device=CUDA, dtype=torch.bfloat16) for _ in "kv"]
    two = [part.clone() for part in one]
    expected = TorchKernels().attend(qkv, keys, values, (one[0], one[1]), place)
    found = TritonKernels().attend(qkv, keys, values, (two[0], two[1]), place)
    torch.testing.assert_close(found.float(), expected.float(), atol=3e-2, rtol=3e-2)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_activation_is_the_one_with_tanh() -> None:
    from voc_rl.occupancy.decoding_triton import TritonKernels

    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, device=CUDA).bfloat16() for shape in ((640, 768), (768, 3072), (3072,)))
    plain, found = (kernels.widen(x, weight, bias).float() for kernels in (TorchKernels(), TritonKernels()))
    torch.testing.assert_close(found, plain, atol=0.2, rtol=2e-2)
    small = (torch.randn(16, 768, device=CUDA) / 28).bfloat16()
    exact = torch.nn.functional.gelu((small.double() @ weight.double() + bias.double()), approximate="tanh")
    assert (TritonKernels().widen(small, weight, bias).double() - exact).abs().mean() < 4e-3


def trainee(device: torch.device, count: int = 20, rows: int = 30, end: bool = True) -> OccupancyTrainee:
    states = walks(ring(), count, rows)
    dataset = episodes_of([np.r_[0.0, w[1:] / 10] for w in states], [end] * count)
    codes = torch.from_numpy(np.stack([states.ravel() // 4, states.ravel() % 4], 1)).to(torch.int16)
    features = torch.randn(len(codes), 3, generator=torch.Generator().manual_seed(0)).half()
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(4, 2, feature_dim=3, n_layer=2, n_head=2, width=16))
    config = OccupancyTraining(gamma=0.5, n=60, feature_noise=0.0, loop=LoopConfig(steps=400, batch_size=64))
    head = ValueHead(16, 3, hidden=8, members=3)
    return OccupancyTrainee(model.to(device), head.to(device), dataset, codes, features, config, 0)


def gradients(own: OccupancyTrainee, gen: torch.Generator) -> list[Tensor]:
    loss, _ = own.loss_of(own.prepare(0, gen))
    loss.backward()
    return [parameter.grad.cpu() for parameter in own.parameters() if parameter.grad is not None]


def test_a_training_step_has_the_gradients_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One generator of the CPU for both, float32; all targets real or END: samples are drawn where the network is."""
    off, drawn = torch.autocast("cpu", enabled=False), []
    monkeypatch.setattr("voc_rl.occupancy.training.autocast", lambda network: off)

    def draw(*given: Any) -> Targets:
        drawn.append(draw_targets(*given))
        return drawn[-1]

    monkeypatch.setattr("voc_rl.occupancy.training.draw_targets", draw)
    here, there = (gradients(trainee(device), torch.Generator().manual_seed(1)) for device in (CPU, CUDA))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-3)
    assert [int((targets.bootstrap >= 0).sum()) for targets in drawn] == [0, 0]


def test_training_goes_down_and_resumes(tmp_path: object) -> None:
    own = trainee(CUDA)
    config = OccupancyTraining(gamma=0.9, n=1, refill=4, loop=LoopConfig(steps=60, batch_size=64))
    own = OccupancyTrainee(own.model, own.head, own.dataset, own.codes, own.features, config, 0)
    descent = Descent(own, config.loop, 0)
    losses = [float(descent.step(step)["loss"]) for step in range(20)]
    state = deepcopy(descent.state())
    losses += [float(descent.step(step)["loss"]) for step in range(20, 60)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    descent.load_state(state)
    again = [float(descent.step(step)["loss"]) for step in range(20, 30)]
    np.testing.assert_allclose(again, losses[20:30], rtol=2e-2)


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_as_a_graph_trains_as_the_step_itself(parts: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, past refills and, where slow values are kept, past their renewal; the graph was really captured."""
    off = torch.autocast("cuda", enabled=False)
    monkeypatch.setattr("voc_rl.occupancy.training.autocast", lambda network: off)
    made = []
    for graphs in (True, False):
        first = trainee(CUDA) if n == 1 else trainee(CUDA, 4, 600, end=False)
        loop = LoopConfig(steps=60, batch_size=64, accumulate=parts)
        config = OccupancyTraining(gamma=0.9, n=n, refill=2, loop=loop)
        own = OccupancyTrainee(first.model, first.head, first.dataset, first.codes, first.features, config, 0)
        assert isinstance(own.goals, BatchReturns if n == 1 else Returns)
        made.append(Descent(own, loop, 0, graphs=graphs))
    for step in range(60):
        found, expected = ({k: float(v) for k, v in descent.step(step).items()} for descent in made)
        assert found == pytest.approx(expected, rel=2e-2 if step > 30 else 1e-3)  # sums in another order
    assert made[0]._graph is not None
    assert made[1]._graph is None
    if n > 1:
        assert own.goals is not None
        assert float(own.goals.values.std(0).min()) > 0
    state = deepcopy(made[0].state())
    here = {k: float(v) for k, v in made[0].step(58).items()}
    made[0].load_state(state)  # weights are put back where they are, so the graph still sees them
    assert {k: float(v) for k, v in made[0].step(58).items()} == pytest.approx(here, rel=1e-3)


def test_dropout_in_a_graph_is_drawn_anew_at_each_step() -> None:
    first = trainee(CUDA)
    model = OccupancyTransformer(OccupancyConfig(4, 2, n_layer=2, n_head=2, width=16, dropout=0.5)).to(CUDA)
    loop = LoopConfig(steps=10, batch_size=64, learning_rate=1e-9)
    own = OccupancyTrainee(model, None, first.dataset, first.codes, None, OccupancyTraining(gamma=0.0, loop=loop), 0)
    descent = Descent(own, loop, 0)
    losses = [float(descent.step(step)["loss"]) for step in (0, 1, 2, 0)]
    assert descent._graph is not None
    assert len(set(losses[:3])) == 3
    assert losses[3] == pytest.approx(losses[0], rel=1e-3)  # and alike at the same step
    eager = Descent(own, loop, 0, graphs=False)
    assert float(eager.step(0)["loss"]) == pytest.approx(losses[0], rel=1e-2)


def test_seeded_leaves_no_trace_on_the_gpu() -> None:
    torch.cuda.manual_seed(1)
    expected = torch.rand(3, device=CUDA)
    torch.cuda.manual_seed(1)
    with seeded(CPU, 5):
        torch.rand(2)
    with seeded(CUDA, 5):
        inside = torch.rand(2, device=CUDA)
    assert torch.equal(torch.rand(3, device=CUDA), expected)
    with seeded(CUDA, 5):
        assert torch.equal(torch.rand(2, device=CUDA), inside)


def test_between_refills_the_gpu_is_not_waited_for() -> None:
    for graphs in (True, False):
        first = trainee(CUDA)
        config = OccupancyTraining(gamma=0.9, n=1, refill=8, loop=LoopConfig(steps=60, batch_size=64))
        own = OccupancyTrainee(first.model, first.head, first.dataset, first.codes, first.features, config, 0)
        descent = Descent(own, config.loop, 0, graphs=graphs)
        descent.step(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 8):
                descent.step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
