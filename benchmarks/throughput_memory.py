"""How much memory of the host training on 300,000 rows takes: each stage in a process of its own, at its peak.

The frames have their real size and lie in HDF5 files, one for each of 600 episodes; a few episodes are written, the
others are links to them, which costs the reader the same. Stages take a few steps or rows: what they hold does not grow
with them. Codes and features of all rows, which tokenising would leave, are drawn instead.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voc_rl.benchmarks.throughput_storage import write_smooth_episodes
from voc_rl.data import Episodes
from voc_rl.quantizers import tokenize, train_quantizer
from voc_rl.runs import peak_memory_bytes
from voc_rl.sizes import sized
from voc_rl.training import fresh_quantizer, train

EPISODES, ROWS, WRITTEN = 600, 500, 4
STEPS, TOKENISED, STATES, SAMPLES = 20, 5000, 10_000, 20


def memory(
    say: Callable[[str], None], episodes: int = EPISODES, rows: int = ROWS, steps: int = STEPS, states: int = STATES
) -> dict[str, Any]:
    """Peak bytes of a process that has only imported and opened the data, and of those that train.

    steps: of each training. states: whose values are asked for then.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_smooth_episodes(Path(folder), WRITTEN, rows)
        for i in range(WRITTEN, episodes):
            os.link(Path(folder) / f"episode_{i % WRITTEN:06d}.hdf5", Path(folder) / f"episode_{i:06d}.hdf5")
        peaks = {}
        for stage in STAGES:
            with context.Pool(1) as pool:
                peaks[stage] = pool.apply(_peak, (stage, folder, steps, states))
            say(f"memory: {stage} {peaks[stage] / 1e9:.2f} GB")
    return {"rows": episodes * rows, "frames_bytes": episodes * rows * 3 * 84 * 84, "peak_bytes": peaks}


def _peak(stage: str, folder: str, steps: int, states: int) -> int:
    torch.set_num_threads(1)
    STAGES[stage](Episodes.open(Path(folder)), steps, states)
    return peak_memory_bytes()


def _opening(dataset: Episodes, steps: int, states: int) -> None:
    """Nothing beyond what was opened."""


def _quantizer(dataset: Episodes, steps: int, states: int) -> None:
    config = sized("tiny", "vqvae")
    quantizer = fresh_quantizer(dataset, config)
    quantizer = train_quantizer(quantizer, dataset, replace(config.quantizer_training, steps=steps))
    rng = np.random.default_rng(0)
    tokenize(quantizer, dataset, rng.choice(len(dataset), min(TOKENISED, len(dataset)), replace=False))


def _train(dataset: Episodes, steps: int, states: int) -> None:
    """Occupancy network, value head and reward head, then values of many states."""
    config = sized("tiny", "vqvae")
    loop, reward = replace(config.occupancy.loop, steps=steps), replace(config.reward.loop, steps=steps)
    config = replace(
        config, occupancy=replace(config.occupancy, loop=loop), reward=replace(config.reward, loop=reward)
    )  # fmt: skip
    quantizer, gen = fresh_quantizer(dataset, config).eval(), torch.Generator().manual_seed(0)
    codes = torch.randint(quantizer.codebook_size, (len(dataset), quantizer.n_tokens), generator=gen).to(torch.int16)
    features = torch.randn(len(dataset), quantizer.feature_dim, generator=gen).half()
    voc = train(dataset, config, quantizer=quantizer, tokens=(codes, features))
    some = torch.randint(len(dataset), (states,), generator=gen)
    voc.value_of_codes(codes[some], features[some], estimator="sample", samples=SAMPLES)


STAGES = {"opening": _opening, "quantizer": _quantizer, "training": _train}
