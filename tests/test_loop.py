"""The training loop: schedule, weight decay, resume bit for bit, and what it refuses."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import episodes_of, ring, walks
from interrupted import interrupted_at
from torch import Tensor, nn

from voc_rl.checkpoints import load_torch_file, save_training_state
from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, Descent, LoopConfig, Trainee, make_optimizer, optimise, schedule, step_seed
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining, OccupancyTransformer, ValueHead, train_occupancy
from voc_rl.occupancy.goals import BatchReturns, Returns
from voc_rl.occupancy.training import OccupancyTrainee


class Line(Trainee):
    """Fits y = 3 x - 1, with noise from the step's generator; remembers the steps it was asked for."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.steps: list[int] = []
        self.after: list[int] = []

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps.append(step)
        x = torch.randn(16, 1, generator=generator)
        return (x @ self.weight + self.bias - (3 * x - 1)).square().mean(), {"twice": torch.tensor(2.0 * step)}

    def after_step(self, step: int) -> None:
        self.after.append(step)

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "bias": self.bias.detach()}

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
            self.bias.copy_(state["bias"])


def test_schedule_values() -> None:
    config = LoopConfig(steps=110, warmup=10 / 110)
    for step, share in [
        (0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (35, 0.5 * (1 + math.cos(math.pi / 4))), (60, 0.5), (110, 0.0),
    ]:  # fmt: skip
        assert schedule(step, config) == pytest.approx(share, abs=1e-12)
    assert schedule(0, LoopConfig(steps=1)) == 1.0  # never a step of rate zero at the start


def test_step_seeds() -> None:
    seeds = {step_seed(seed, step) for seed in range(30) for step in range(200)}
    assert len(seeds) == 6000
    assert all(0 <= s < 2**63 for s in seeds)
    assert step_seed(3, 5) == step_seed(3, 5)


def test_weight_decay_on_two_axes_or_more() -> None:
    model, stacked = nn.Linear(3, 2), nn.Parameter(torch.zeros(5, 1, 2))
    groups = make_optimizer([*model.parameters(), stacked], LoopConfig(steps=1, weight_decay=0.3)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.3), (1, 0.0)]
    assert groups[0]["params"][0] is model.weight
    assert groups[0]["params"][1] is stacked


def test_it_learns_and_logs() -> None:
    line, lines = Line(), []
    config = LoopConfig(steps=320, learning_rate=0.1, weight_decay=0.0)
    optimise(line, config, 0, "line", log=lambda stage, step, numbers: lines.append((stage, step, dict(numbers))))
    assert line.steps == line.after == list(range(320))
    assert [step for _, step, _ in lines] == [50, 100, 150, 200, 250, 300, 320]
    assert all(numbers["twice"] == 2 * (step - 1) for _, step, numbers in lines)
    assert lines[-1][2]["loss"] < 1e-2 * lines[0][2]["loss"] or lines[-1][2]["loss"] < 1e-3
    assert float(line.weight.detach()) == pytest.approx(3, abs=0.05)
    assert float(line.bias.detach()) == pytest.approx(-1, abs=0.05)


def test_the_rate_follows_the_schedule_and_gradients_are_clipped() -> None:
    """The first step of Adam has the size of its rate, whatever the gradient."""
    line = Line()
    config = LoopConfig(steps=10, learning_rate=0.5, warmup=0.5, weight_decay=0.0)
    Descent(line, config, 0).step(0)
    assert line.weight.detach().abs().item() == pytest.approx(0.5 * schedule(0, config), rel=1e-4)
    assert line.weight.grad is not None
    assert line.bias.grad is not None
    norm = math.hypot(line.weight.grad.item(), line.bias.grad.item())
    assert norm == pytest.approx(1.0, rel=1e-4)  # was above 6


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    config = LoopConfig(steps=60, learning_rate=0.05)
    whole, stopped, resumed = Line(), Line(), Line()
    optimise(whole, config, 7, "line")
    checkpoints = Checkpoints(tmp_path / "state.pt", "a", every=10)
    interrupted_at(37, Descent(stopped, config, 7), checkpoints)
    assert stopped.steps == list(range(37))
    optimise(resumed, config, 7, "line", checkpoints=checkpoints)
    assert resumed.steps == list(range(30, 60))  # from the last checkpoint
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    again = Line()
    optimise(again, config, 7, "line", checkpoints=checkpoints)
    assert again.steps == []  # nothing left to do, and the result is there
    assert torch.equal(again.weight, whole.weight)
    other = Line()
    optimise(other, config, 8, "line")
    assert not torch.equal(other.weight, whole.weight)


class Wide(Line):
    """Another width than the line's, which PyTorch notices."""

    def load_state(self, state: dict[str, Any]) -> None:
        nn.Linear(2, 1).load_state_dict(state)


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    optimise(Line(), LoopConfig(steps=5), 0, "line", checkpoints=Checkpoints(path, "a"))
    with pytest.raises(VOCError, match=r"state\.pt was written by a run with other settings or data; delete it to"):
        optimise(Line(), LoopConfig(steps=5), 0, "line", checkpoints=Checkpoints(path, "b"))
    with pytest.raises(VOCError, match=r"state\.pt was written by a run with other settings or data; delete it to"):
        optimise(Wide(), LoopConfig(steps=5), 0, "line", checkpoints=Checkpoints(path, "a"))
    save_training_state(path, {"other": 1})
    with pytest.raises(VOCError, match="other settings or data"):
        optimise(Line(), LoopConfig(steps=5), 0, "line", checkpoints=Checkpoints(path, "a"))
    path.write_bytes(b"half")
    with pytest.raises(VOCError, match=r"state\.pt"):
        optimise(Line(), LoopConfig(steps=5), 0, "line", checkpoints=Checkpoints(path, "a"))


class Diverging(Line):
    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, numbers = super().loss(step, generator)
        return loss * (float("nan") if step >= 20 else 1.0), numbers


def test_divergence_is_said() -> None:
    with pytest.raises(
        VOCError, match=r"^Training of the line diverged at step 50: .*'loss': nan.*lower the learning rate"
    ):
        optimise(Diverging(), LoopConfig(steps=100), 0, "line")


def test_divergence_spares_the_last_good_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "state.pt", "a", every=7)
    with pytest.raises(VOCError, match=r"^Training of the line diverged at step 21: .*'loss': nan"):
        optimise(Diverging(), LoopConfig(steps=100), 0, "line", checkpoints=checkpoints)
    assert load_torch_file(checkpoints.path)["step"] == 14


# --- the occupancy network: bootstrapped targets, dropout, features, head


def chain_data(count: int = 20, rows: int = 30) -> tuple[Episodes, Tensor, Tensor]:
    states = walks(ring(), count, rows)
    dataset = episodes_of([np.r_[0.0, w[1:] / 10] for w in states], [i % 3 == 0 for i in range(count)])
    codes = torch.from_numpy(np.stack([states.ravel() // 4, states.ravel() % 4], 1)).to(torch.int16)
    features = torch.randn(len(codes), 3, generator=torch.Generator().manual_seed(0)).half()
    return dataset, codes, features


Range = tuple[float, float] | None


def networks(seed: int, gammas: Range = None) -> tuple[OccupancyTransformer, ValueHead]:
    torch.manual_seed(seed)
    sizes = OccupancyConfig(4, 2, feature_dim=3, gammas=gammas, n_layer=2, n_head=2, width=16, dropout=0.2)
    return OccupancyTransformer(sizes), ValueHead(16, 3, hidden=8, members=3)


def training(steps: int = 60, n: int = 1, gammas: Range = None) -> OccupancyTraining:
    loop = LoopConfig(steps=steps, batch_size=16)
    return OccupancyTraining(gamma=0.9, gammas=gammas, n=n, ema=0.9, refill=2, loop=loop)


def everything(model: OccupancyTransformer, head: ValueHead | None) -> dict[str, Tensor]:
    assert head is not None
    parts = {"model": model.state_dict(), "head": head.state_dict()}
    return {f"{part}.{name}": t.clone() for part, tensors in parts.items() for name, t in tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def setting(n: int, gammas: Range) -> tuple[tuple[Episodes, Tensor, Tensor], OccupancyTraining]:
    return chain_data() if n == 1 else chain_data(2, 400), training(n=n, gammas=gammas)


@cache
def uninterrupted(n: int, gammas: Range) -> dict[str, Tensor]:
    data, config = setting(n, gammas)
    return everything(*train_occupancy(*networks(0, gammas), *data, config, seed=5))


@pytest.mark.parametrize(
    ("stop", "n", "gammas"),
    [(31, 1, None), (44, 1, None), (44, 40, None), (57, 40, None), (31, 1, (0.5, 0.95)), (44, 1, (0.5, 0.95))],
)
def test_occupancy_training_resumes_bit_for_bit(tmp_path: Path, stop: int, n: int, gammas: Range) -> None:
    """Stopped between and at refills, and, where values are kept, before and after they were renewed (step 50)."""
    data, config = setting(n, gammas)
    checkpoints = Checkpoints(tmp_path / "state.pt", "a", every=11)
    model, head = networks(0, gammas)
    model.fit_features(data[2])
    head.fit_features(data[2])
    trainee = OccupancyTrainee(model, head, *data, config, 5)
    interrupted_at(stop, Descent(trainee, config.loop, 5), checkpoints)
    assert load_torch_file(checkpoints.path)["step"] == stop - stop % 11
    assert isinstance(trainee.goals, BatchReturns if n == 1 else Returns)
    if n > 1:
        assert (float(trainee.goals.values.std(0).min()) > 0) == (stop > 50)
    resumed = everything(*train_occupancy(*networks(9, gammas), *data, config, seed=5, checkpoints=checkpoints))
    assert_same(resumed, uninterrupted(n, gammas))


def test_one_seed_one_result() -> None:
    data, config = chain_data(), training(20)
    one = everything(*train_occupancy(*networks(0), *data, config, seed=5))
    fresh = networks(0)
    torch.manual_seed(99)  # the global state must not matter
    assert_same(one, everything(*train_occupancy(*fresh, *data, config, seed=5)))
    other = everything(*train_occupancy(*networks(0), *data, config, seed=6))
    assert not torch.equal(other["model.codes.weight"], one["model.codes.weight"])


def test_what_is_returned_is_the_slow_average() -> None:
    data = chain_data()
    config = OccupancyTraining(gamma=0.9, ema=0.5, refill=2, loop=LoopConfig(steps=3, batch_size=8))
    model, head = networks(0)
    start = model.codes.weight.detach().clone()
    seen = []
    trainee = OccupancyTrainee(model, head, *data, config, 0)
    after = trainee.after_step

    def record(step: int) -> None:
        after(step)
        seen.append(model.codes.weight.detach().clone())

    trainee.after_step = record  # type: ignore[method-assign]
    optimise(trainee, config.loop, 0, "occupancy")
    slow = start
    for step, fast in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        slow = decay * slow + (1 - decay) * fast
    torch.testing.assert_close(trainee.target.codes.weight, slow)
    assert not torch.equal(slow, seen[-1])
    assert not trainee.target.training
    assert model.training


def test_the_target_network_averages_over_the_last_twentieth_of_the_steps() -> None:
    data = chain_data()
    for steps, ema in ((100, 0.8), (700, 1 - 20 / 700), (100_000, 0.999)):
        trainee = OccupancyTrainee(*networks(0), *data, OccupancyTraining(loop=LoopConfig(steps, batch_size=8)), 0)
        assert trainee.ema == pytest.approx(ema, abs=1e-12)


def test_the_default_type_makes_no_difference() -> None:
    data, nets = chain_data(), [networks(0) for _ in range(2)]
    one = everything(*train_occupancy(*nets[0], *data, training(4), seed=5))
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(everything(*train_occupancy(*nets[1], *data, training(4), seed=5)), one)
    finally:
        torch.set_default_dtype(torch.float32)


def test_codes_of_another_dataset_are_refused() -> None:
    dataset, codes, features = chain_data()
    with pytest.raises(VOCError, match="599 rows of codes do not fit 600 rows of data"):
        train_occupancy(*networks(0), dataset, codes[1:], features[1:], training())
    with pytest.raises(VOCError, match="599 rows of features do not fit 600 rows of data; tokenise this dataset"):
        train_occupancy(*networks(0), dataset, codes, features[1:], training())
    with pytest.raises(
        VOCError, match=r"Codes have dtype float32; whole numbers are needed \(tokens are the codes, then"
    ):
        train_occupancy(*networks(0), dataset, features.float(), codes, training())
    with pytest.raises(VOCError, match=r"gamma is 1.0"):
        OccupancyTraining(gamma=1.0)
    single = episodes_of([np.zeros(1)], [False])
    with pytest.raises(VOCError, match=r"No row has a step left"):
        train_occupancy(*networks(0), single, codes[:1], None, training())
