"""The commands ``voc-rl train-quantizer``, ``tokenize``, ``train`` and ``evaluate``: the stages of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from voc_rl.errors import VOCError, check_positive


def prepare(threads: int | None) -> None:
    """Choose the number of threads, and keep freed memory for reuse."""
    import torch

    from voc_rl.precision import free_cores, keep_freed_memory

    if threads is not None:
        check_positive(threads, "threads")
    keep_freed_memory()
    torch.set_num_threads(threads or free_cores())


@dataclass(frozen=True)
class Settings:
    """What the stages of one run share; give the same words to each of them."""

    data: tuple[str, ...]
    """Paths, or FORMAT:PLACE with voc, vd4rl, d4rl or minari; the episodes of several follow one another. D4RL's states
    are drawn into the run folder."""
    out: Path
    """Run folder."""
    gamma: float = 0.9
    """Discount of the values, in [0, 1)."""
    gammas: tuple[float, float] | None = None
    """Smallest and largest discount of a network that answers for all between; gamma is the one that is scored."""
    n: int | None = None
    """Real steps per target; default 4 / (1 - gamma), of the largest discount; 1 is the paper's one-step target."""
    size: str = "tiny"
    """tiny, small or paper: the network, its tokens and how long it trains. The paper's own 75 tokens are those of
    --quantizer vqgan."""
    recipe: str = "voc"
    """voc, or paper: trained and sampled as the paper's public code ran, defects included, as a baseline."""
    quantizer: str = "vqvae"
    """vqvae (few joint tokens), musik (the same, of what actions change), dino or vqgan (a token per patch); or the
    folder of a trained one, of a run or of voc_rl.quantizers.save_quantizer, which is taken as it is."""
    stack: int | None = None
    """Frames of an observation; default 3, or what the quantizer of a folder reads."""
    held_out: float = 0.2
    """Share of the episodes that is never trained on."""
    seed: int = 0
    threads: int | None = None
    """Threads for the arithmetic; default: OMP_NUM_THREADS, or the cores that are free now, at most 4."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    force: bool = False
    """Do this stage anew."""
    joint: bool = False
    """Train quantizer and occupancy network at once, from pixels, instead of one after the other."""
    quantizer_steps: int | None = None
    """Optimiser steps; default by size."""
    steps: int | None = None
    """Optimiser steps of the occupancy network; default by size."""
    reward_steps: int | None = None
    """Optimiser steps of each of the reward head's two networks; default 800."""

    def pipeline(self, run: Any, stage: str, device: Any) -> Any:

        from voc_rl.joint import JointTraining
        from voc_rl.pipeline import Pipeline
        from voc_rl.quantizers import QUANTIZERS
        from voc_rl.sizes import sized, with_recipe

        given = None if self.quantizer in QUANTIZERS else self._given()
        config = sized(
            self.size, self.quantizer if given is None else given.name, gamma=self.gamma, gammas=self.gammas,
            n=self.n, steps=self.steps, quantizer_steps=self.quantizer_steps, reward_steps=self.reward_steps,
            seed=self.seed,
        )  # fmt: skip
        stack = 3
        if given is not None:
            config, stack = replace(config, quantizer_config=asdict(given.config)), given.observation_shape[0] // 3
        recipe: Any = self.recipe  # with_recipe checks it
        config = replace(config, joint=JointTraining() if self.joint else None)
        config = with_recipe(config, recipe)
        force = frozenset({stage, *({"report"} if stage == "evaluate" else ())} if self.force else ())
        say = print if run.writes else lambda line: None
        return Pipeline(
            run, self.data, config, self.held_out, say, progress=True, force=force, stage=stage, device=device,
            stack=stack if self.stack is None else self.stack,
            quantizer=None if given is None else Path(self.quantizer),
        )  # fmt: skip

    def _given(self) -> Any:
        """The quantizer of a folder, to know what it is."""
        from voc_rl.quantizers import QUANTIZERS, load_quantizer

        if not (Path(self.quantizer) / "quantizer.json").exists():
            known = ", ".join(sorted(QUANTIZERS))
            raise VOCError(
                f"Unknown quantizer {self.quantizer!r}; accepted: {known}, or the folder of a trained one, with its "
                "quantizer.json."
            )
        return load_quantizer(Path(self.quantizer))

    def do(self, stage: str, work: Any, listener: Any = None) -> None:
        from voc_rl.distributed import join
        from voc_rl.precision import choose_device, device_name
        from voc_rl.runs import RunFolder

        prepare(self.threads)
        device = join(choose_device(self.device))
        with RunFolder(self.out, device_name(device)) as run:
            pipeline = self.pipeline(run, stage, device)
            if listener is not None and run.writes:
                asked = pipeline.asked
                run.listeners.append(listener(asked.marks["train"], asked.settings["train"], self.force))
            work(pipeline)


@dataclass(frozen=True)
class TrainQuantizer:
    """Train the quantizer on the frames of a dataset."""

    settings: tyro.conf.OmitArgPrefixes[Settings]

    def run(self) -> None:
        if self.settings.joint:
            raise VOCError("Joint training has no stage for the quantizer alone; use voc-rl train --joint.")
        from voc_rl.quantizers import QUANTIZERS

        place = self.settings.quantizer
        if place not in QUANTIZERS and (Path(place) / "quantizer.json").exists() and not self.settings.force:
            raise VOCError(
                f"The quantizer of {place} is trained; go on by tokenize or train, or replace another one in "
                f"{self.settings.out} by --force."
            )
        self.settings.do("quantizer", lambda pipeline: pipeline.train_quantizer())


@dataclass(frozen=True)
class Tokenize:
    """Turn every frame of a dataset into codes."""

    settings: tyro.conf.OmitArgPrefixes[Settings]

    def run(self) -> None:
        self.settings.do("tokenize", lambda pipeline: pipeline.tokenize())


@dataclass(frozen=True)
class Train:
    """Train the occupancy network, the value head and the reward head; with --joint the quantizer too."""

    settings: tyro.conf.OmitArgPrefixes[Settings]
    wandb: Literal["online", "offline"] | None = None
    """Also log to Weights & Biases; offline needs no account."""

    def run(self) -> None:
        listener = None
        if self.wandb is not None:
            from voc_rl.wandb_log import wandb_listener

            listener = partial(wandb_listener, self.wandb, self.settings.out)

        def work(pipeline: Any) -> None:
            pipeline.train()
            pipeline.tokenize()  # in joint training it comes last

        self.settings.do("train", work, listener)


@dataclass(frozen=True)
class Evaluate:
    """Score the values of held-out states against their true returns; writes metrics.json and report.html."""

    settings: tyro.conf.OmitArgPrefixes[Settings]
    samples: int = 100
    """Futures per state."""
    max_states: int = 600

    def run(self) -> None:
        from voc_rl.reports.run_report import report_evaluation
        from voc_rl.reports.table import format_table

        def work(pipeline: Any) -> None:
            metrics = pipeline.evaluate(self.samples, self.max_states)
            report_evaluation(pipeline, metrics, self.samples, self.max_states)
            if pipeline.run.writes:
                print(format_table(metrics))
                if (report := pipeline.run.path / "report.html").exists():
                    print(f"Report: {report}")

        self.settings.do("evaluate", work)
