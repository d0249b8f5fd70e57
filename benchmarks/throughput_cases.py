"""What is timed against the reference: sampling and a training step, alternating, at the sizes of our networks."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voc_rl.benchmarks import throughput_machine as machine
from voc_rl.benchmarks.throughput_reference import Reference
from voc_rl.data import DataSpec, Episodes
from voc_rl.data.hdf5 import FIRST, LAST, MID, Shard
from voc_rl.loop import Descent, LoopConfig
from voc_rl.occupancy import OccupancyConfig, OccupancyTraining, OccupancyTransformer, sample_futures
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.precision import autocast, generator_on
from voc_rl.runs import peak_memory_bytes, reset_peak_memory

# codes, tokens of an observation, layers, heads, width: the networks of ``voc_rl.sizes`` and the paper's
SIZES = {
    "paper": OccupancyConfig(1024, 75, n_layer=4, n_head=8, width=768, ends=False),
    "small": OccupancyConfig(240, 16, n_layer=4, n_head=8, width=256, ends=False),
    "tiny": OccupancyConfig(240, 8, n_layer=2, n_head=4, width=128, ends=False),
}
GAMMA, BATCH = 0.8, 32  # of the paper
REFILL = 8  # steps whose bootstrapped targets are sampled at once, our default


@dataclass(frozen=True)
class Rounds:
    """How often and how much is timed.

    states, samples: of the sampler. rounds: alternations. calls: ``generate`` calls of a round, from which the seconds
    of ``samples`` calls are scaled. steps: our training steps of a round, a multiple of ``REFILL``; the reference takes
    one.
    """

    states: int = 32
    samples: int = 100
    rounds: int = 3
    calls: int = 1
    steps: int = REFILL


class Case:
    """One size on one device: the reference, our network with its weights, and contexts."""

    def __init__(self, size: str, device: torch.device, rounds: Rounds) -> None:
        self.size, self.device, self.rounds = size, device, rounds
        self.config = SIZES[size]
        self.reference = Reference(self.config, device)
        with tempfile.TemporaryDirectory() as folder:
            self.model = self.reference.ours(Path(folder))
        self.generator = generator_on(device, 0)

    def contexts(self, count: int) -> torch.Tensor:
        shape = (count, self.config.n_tokens)
        return torch.randint(self.config.codebook_size, shape, generator=self.generator, device=self.device)

    def ours(self, states: int, samples: int) -> Callable[[], object]:
        context = self.contexts(states)

        def work() -> object:
            with autocast(self.model):
                return sample_futures(self.model, context, None, samples, self.generator)

        return work

    def fastest_threads(self, most: int) -> int:
        """The thread count, up to ``most``, at which a ``generate`` call of a few codes is fastest."""
        context, counts = self.contexts(self.rounds.states), [n for n in (1, 2, 4, 8, 16) if n <= most] or [1]
        found, codes = {}, min(4, self.config.n_tokens)
        for count in counts:
            torch.set_num_threads(count)
            found[count] = machine.fastest(lambda: self.reference.sample(context, codes), self.device, 2)
        best = min(found, key=lambda count: found[count])
        torch.set_num_threads(best)
        return best

    def sampling(self, rates: dict[str, float]) -> dict[str, Any]:
        """Both samplers alternating; the reference's seconds scaled from ``calls`` to ``samples`` calls."""
        rounds, device = self.rounds, self.device
        context, own = self.contexts(rounds.states), self.ours(rounds.states, rounds.samples)
        self.reference.sample(context, 2)
        for _ in range(3 if device.type == "cuda" else 0):  # kernels are compiled, and the graph is captured
            own()
        reference, ours, peaks = [], [], []
        for _ in range(rounds.rounds):
            _reset(device)
            ours.append(machine.seconds(own, device))
            peaks.append(_peak(device))
            one = machine.seconds(lambda: [self.reference.sample(context) for _ in range(rounds.calls)], device)
            reference.append(one / rounds.calls * rounds.samples)
        low = self._low(context) if machine.multiplies_in_bfloat16(device) else {}
        flops = machine.sampling_flops(self.config, rounds.states, rounds.samples)
        needed = machine.sampling_bytes(self.config, rounds.states, rounds.samples)
        bound = max(flops / rates["matmul_flops"], needed / rates["copy_bytes"])
        median = float(np.median(ours))
        return {
            "states": rounds.states, "samples": rounds.samples,
            "sampler_seconds": machine.spread(ours), "reference_seconds": machine.spread(reference),
            "reference_calls_timed": rounds.calls * rounds.rounds, **low,
            "sampler_speedup": float(np.median(reference)) / median,
            "values_per_second": rounds.states / median,
            "sampler_flops": flops, "sampler_bytes": needed,
            "sampler_flops_per_second": flops / median, "sampler_bytes_per_second": needed / median,
            "sampler_roofline": bound / median,
            "sampler_bound": "products" if bound == flops / rates["matmul_flops"] else "memory",
            "peak_memory_bytes": peaks[0],  # later a process on a CPU still holds what the reference took
        }  # fmt: skip

    def _low(self, context: torch.Tensor) -> dict[str, float]:
        """The reference in bfloat16, as the public code does not run it but anybody would try to: by autocast, which
        casts weights before every product, and with its weights cast once."""
        cast = self.reference.in_bfloat16()
        with autocast(self.reference.model):
            one = machine.fastest(lambda: self.reference.sample(context), self.device, 2)
        other = machine.fastest(lambda: cast.sample(context), self.device, 2)
        samples = self.rounds.samples
        return {"reference_bfloat16_seconds": one * samples, "reference_bfloat16_weights_seconds": other * samples}

    def training(self, rates: dict[str, float]) -> dict[str, Any]:
        """A training step of both, alternating: the same batch, discount and one-step targets, sampling included."""
        rounds, device = self.rounds, self.device
        steps, context, following = self._steps(), self.contexts(BATCH), self.contexts(BATCH)
        reference, ours, without = [], [], []
        if cuda := device.type == "cuda":
            plain = self._steps(graphs=False)
        for _ in range(3 if cuda else 0):
            steps(rounds.steps)
            plain(rounds.steps)
            self.reference.step(context, following, GAMMA)
        peaks = []
        for _ in range(rounds.rounds):
            _reset(device)
            ours.append(machine.seconds(lambda: steps(rounds.steps), device) / rounds.steps)
            peaks.append(_peak(device))
            reference.append(machine.seconds(lambda: self.reference.step(context, following, GAMMA), device))
            if cuda:
                without.append(machine.seconds(lambda: plain(rounds.steps), device) / rounds.steps)
        first, *others = (machine.seconds(lambda: steps(1), device) for _ in range(REFILL))
        median, flops = float(np.median(ours)), machine.training_flops(self.config, BATCH, GAMMA)
        return {
            "training_batch": BATCH, "training_gamma": GAMMA,
            "training_seconds": machine.spread(ours), "reference_training_seconds": machine.spread(reference),
            "training_speedup": float(np.median(reference)) / median,
            "training_flops": flops, "training_roofline": flops / rates["matmul_flops"] / median,
            "training_peak_memory_bytes": peaks[0],
            "training_seconds_between_refills": machine.spread(others),
            "refill_seconds": first - float(np.median(others)),
            **({"training_seconds_without_graph": machine.spread(without)} if without else {}),
        }  # fmt: skip

    def scaling(self, what: str, value: int) -> dict[str, Any]:
        """Seconds of our sampler with another number of ``samples``, ``states``, ``tokens`` or ``width``."""
        states = value if what == "states" else self.rounds.states
        samples = value if what == "samples" else self.rounds.samples
        longer = replace(SIZES[self.size], n_tokens=value) if what == "tokens" else SIZES[self.size]
        config = replace(longer, width=value) if what == "width" else longer
        if config != self.config:
            self.config, self.model = config, OccupancyTransformer(config).eval().to(self.device)
        work = self.ours(states, samples)
        for _ in range(2 if self.device.type == "cuda" else 0):  # kernels are compiled, and the graph is captured
            work()
        spent = machine.seconds(work, self.device)
        return {"what": what, "value": value, "seconds": spent, "threads": torch.get_num_threads()}

    def _training(self) -> OccupancyTraining:
        loop = LoopConfig(steps=1000, batch_size=BATCH, learning_rate=3e-4, weight_decay=0.1)
        return OccupancyTraining(gamma=GAMMA, n=1, futures=1, refill=REFILL, loop=loop)

    def _steps(self, graphs: bool = True) -> Callable[[int], None]:
        """Takes so many training steps more, with a network of its own."""
        dataset, model, taken = made_up_episodes(20, 50), copy.deepcopy(self.model), itertools.count()
        codes = self.contexts(len(dataset)).to(torch.int16)
        trainee = OccupancyTrainee(model, None, dataset, codes, None, self._training(), 0)
        descent = Descent(trainee, self._training().loop, 0, graphs)

        def steps(count: int) -> None:
            for _ in range(count):
                descent.step(next(taken))

        return steps


def made_up_episodes(episodes: int, rows: int) -> Episodes:
    """Episodes in memory, of rewards of zero; their frames cannot be read."""
    count = episodes * rows
    step_type = np.tile(np.r_[FIRST, np.full(rows - 2, MID), LAST].astype(np.uint8), episodes)
    arrays = {
        "action": np.zeros((count, 1), np.float32), "reward": np.zeros(count, np.float32),
        "discount": np.ones(count, np.float32), "step_type": step_type,
    }  # fmt: skip
    return Episodes([Shard(Path("memory"), count, (3, 2, 2), arrays, DataSpec())], stack=1)


def _reset(device: torch.device) -> None:
    reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Largest memory since the reset: of the device, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
