"""A training step in parts and as a graph: the same gradients and weights as the whole batch, computed as it comes.

Without a GPU a recording of the step's operations (``make_fx``) stands in for a CUDA graph. Like a graph it repeats
operations with the numbers and tensors that it was recorded with, but for inputs and weights, which it reads again; so
a step whose loss depended on anything else would go astray. tests/occupancy/test_cuda.py holds the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from interrupted import interrupted_at
from test_loop import Line, assert_same, chain_data, everything, training
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from voc_rl import graphs
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, Descent, LoopConfig, optimise
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining, OccupancyTransformer, ValueHead
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.precision import generator_on


def trainee(config: OccupancyTraining, dropout: float = 0.0) -> OccupancyTrainee:
    torch.manual_seed(0)
    network = OccupancyConfig(
        4, 2, feature_dim=3, null_context=True, n_layer=2, n_head=2, width=16, dropout=dropout
    )  # fmt: skip
    return OccupancyTrainee(
        OccupancyTransformer(network), ValueHead(16, 3, hidden=8, members=3), *chain_data(), config, 5
    )  # fmt: skip


def in_parts(config: OccupancyTraining, parts: int) -> OccupancyTraining:
    return replace(config, loop=replace(config.loop, accumulate=parts))


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of another size round differently in bfloat16."""
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: False)


def gradients(own: OccupancyTrainee, parts: int) -> list[Tensor]:
    descent = Descent(own, in_parts(own.config, parts).loop, 5)
    own.after_step = lambda step: None  # type: ignore[method-assign]
    descent.optimizer.step = lambda: None  # type: ignore[method-assign]
    descent.step(3 * own.config.refill)
    return [p.grad for p in own.parameters() if p.grad is not None]


def test_gradients_of_parts_are_those_of_the_whole_batch() -> None:
    config = replace(training(), loop=LoopConfig(steps=60, batch_size=24, clip=1e6))
    whole = gradients(trainee(config), 1)
    assert max(float(grad.abs().max()) for grad in whole) > 1e-3
    for parts in (2, 3, 24):
        for one, other in zip(gradients(trainee(config), parts), whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)


def test_weights_after_training_in_parts_and_a_resume(tmp_path: Path) -> None:
    config = training(30)
    whole, other, seen = trainee(config), trainee(in_parts(config, 4)), []
    optimise(whole, config.loop, 5, "occupancy", log=lambda stage, step, numbers: seen.append(numbers))
    kept = Checkpoints(tmp_path / "state.pt", "a", every=7)
    loop = in_parts(config, 4).loop
    interrupted_at(16, Descent(trainee(in_parts(config, 4)), loop, 5), kept)
    optimise(
        other, loop, 5, "occupancy", checkpoints=kept, log=lambda stage, step, numbers: seen.append(numbers)
    )  # fmt: skip
    found, expected = everything(other.model, other.head), everything(whole.model, whole.head)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=2e-3, msg=name)
    assert seen[1] == pytest.approx(seen[0], rel=1e-3)  # loss, cross entropy and head: means of the parts'


def test_batches_without_equal_parts_are_refused() -> None:
    with pytest.raises(VOCError, match="accumulate"):
        LoopConfig(steps=5, accumulate=0)
    config = training()
    message = r"^A batch of 16 rows cannot be computed in 3 equal parts by 1 process\(es\); a multiple of 3 is needed"
    with pytest.raises(VOCError, match=message):
        Descent(trainee(config), in_parts(config, 3).loop, 0)
    with pytest.raises(VOCError, match=r"^accumulate is 2, but of the networks here only the occupancy network's"):
        Descent(Line(), LoopConfig(steps=5, accumulate=2), 0)


class Recorded:
    """What ``StepGraph`` does, by a recording of a step's operations."""

    def __init__(self, loss_of: Any, parameters: list[torch.nn.Parameter], inputs: Any, scale: float) -> None:
        self.inputs, self.names = inputs.copy(), []
        self.parameters = parameters

        def step(own: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
            for place, new in zip(self.inputs.tensors(), own, strict=True):
                place.copy_(new)
            loss, numbers = loss_of(self.inputs)
            grads = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
            self.names = ["loss", *numbers]
            return [loss.detach(), *numbers.values()], list(grads)

        self.graph = make_fx(step)(inputs.tensors())

    def __call__(self, inputs: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            numbers, grads = self.graph(inputs.tensors())
            for parameter, grad in zip(self.parameters, grads, strict=True):
                if grad is not None:
                    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return dict(zip(self.names, numbers, strict=True))


@pytest.mark.parametrize(("parts", "dropout"), [(1, 0.0), (2, 0.0), (1, 0.2)])
def test_a_recorded_step_trains_as_the_step_itself(parts: int, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a refill and a refresh of the slow values (step 50)."""
    config = in_parts(training(60), parts)
    recorded, plain = (Descent(trainee(config, dropout), config.loop, 5) for _ in range(2))
    monkeypatch.setattr("voc_rl.loop.StepGraph", Recorded)
    recorded.graphs = True
    for step in range(60):
        found, expected = recorded.step(step), plain.step(step)
        assert {name: float(number) for name, number in found.items()} == pytest.approx(
            {name: float(number) for name, number in expected.items()}, rel=1e-4
        )
    assert isinstance(recorded._graph, Recorded)
    for one, other in zip(recorded.trainee.parameters(), plain.trainee.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_step_that_cannot_be_captured_is_computed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(loss_of: Any, parameters: list[Any], inputs: Any, scale: float) -> None:
        loss_of(inputs)[0].backward()  # gradients of the warm-up, which must not count
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    config = training(4)
    tried, plain = (Descent(trainee(config, 0.2), config.loop, 5) for _ in range(2))
    monkeypatch.setattr("voc_rl.loop.StepGraph", refuse)
    tried.graphs = True
    with pytest.warns(UserWarning, match=r"^No CUDA graph of the training step \(operation not permitted when stream"):
        tried.step(0)
    for step in range(1, 4):  # and no second warning, which would be an error here
        tried.step(step)
    for step in range(4):
        plain.step(step)
    assert_same(*(everything(own.trainee.model, own.trainee.head) for own in (tried, plain)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fails", ["begin", "end", ""])
def test_after_a_capture_the_thread_is_on_its_own_stream(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch leaves it on the capture's where the beginning fails, or before 2.12 the end."""
    now = ["own"]

    @contextmanager
    def graph(graph: object, stream: str, capture_error_mode: str) -> Iterator[None]:
        before, now[0] = now[0], stream
        if fails == "begin":
            raise RuntimeError(fails)
        yield
        if fails == "end":
            raise RuntimeError(fails)
        now[0] = before

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: now.__setitem__(0, stream))
    monkeypatch.setattr(graphs, "_capture_stream", lambda device: "capture")
    raised: Any = pytest.raises(RuntimeError, match=fails) if fails else nullcontext()
    with raised, graphs.capture(cast(Any, None), torch.device("cuda")):
        assert now == ["capture"]
    assert now == ["own"]


def test_a_graph_finds_gradients_that_were_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes where they were at the capture: ``module.zero_grad()`` takes them away."""

    class Played:
        def replay(self) -> None:
            for grad in found:
                grad.add_(2.0)

    @contextmanager
    def capture(graph: Played, device: torch.device) -> Iterator[None]:
        yield
        found.extend(p.grad for p in layer.parameters() if p.grad is not None)

    found: list[Tensor] = []
    side = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Played)
    monkeypatch.setattr(graphs, "capture", capture)
    layer = torch.nn.Linear(3, 1)
    inputs: Any = SimpleNamespace(copy=lambda: inputs, tensors=list)
    step = graphs.StepGraph(lambda own: (layer(torch.ones(3)).sum(), {}), list(layer.parameters()), inputs, 1.0)
    for change, expected in (
        (lambda: None, 2.0), (lambda: None, 4.0), (layer.zero_grad, 2.0),
        (lambda: setattr(layer.weight, "grad", torch.full((1, 3), 5.0)), 7.0),
    ):  # fmt: skip
        change()
        step(inputs)
        assert layer.weight.grad is found[0]
        assert layer.weight.grad.tolist() == [[expected] * 3]
    assert layer.bias.grad is found[1]
    assert layer.bias.grad.tolist() == [4.0]


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, or be as large as the batch says: reads of a number, and searches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_between_refills_nothing_is_waited_for_or_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read back, no array is brought to the device, and a step asks for as few operations, whatever the
    size of the batch."""
    counts: list[int] = []
    copied: list[Any] = []
    for batch in (16, 64):
        config = replace(training(), refill=8, loop=LoopConfig(steps=60, batch_size=batch))
        descent = Descent(trainee(config), config.loop, 5)
        descent.step(0)
        with monkeypatch.context() as patch, Waits() as waits:
            patch.setattr("voc_rl.occupancy.training.on_device", lambda *given: copied.append(given))
            patch.setattr(torch, "from_numpy", lambda *given: copied.append(given))
            for step in range(1, 8):
                descent.step(step)
        assert waits.found == []
        assert copied == []
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            descent.trainee.loss_of(descent.trainee.prepare(9, generator_on(torch.device("cpu"), 0)))  # type: ignore[attr-defined]
        counts.append(sum(event.count for event in profile.key_averages() if event.key.startswith("aten::")))
    assert counts[0] == counts[1]
