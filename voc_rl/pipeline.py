"""The stages of a run, each resumable and skipped when it is done:

    train-quantizer -> tokenize -> train -> evaluate
    train -> tokenize -> evaluate                         in joint training

A stage knows by its fingerprint whether it is done: settings, data, and the weights that the stages before it left. The
weights too, because another number of threads or another device trains others from the same settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voc_rl.checkpoints import load_tensors, read_json, save_tensors, write_json
from voc_rl.configs import fingerprint
from voc_rl.conversion import open_with_frames
from voc_rl.data import Episodes, arrived_rows
from voc_rl.data.places import Places, places_of
from voc_rl.distributed import agreed, gather, ranks
from voc_rl.errors import VOCError, check_samples
from voc_rl.frame_memory import hold_frames
from voc_rl.loop import step_seed
from voc_rl.model import VOC
from voc_rl.model_files import weights_mark
from voc_rl.quantizers import Quantizer, codebook_use, load_quantizer, save_quantizer, tokenize
from voc_rl.runs import RunFolder
from voc_rl.stage_settings import Asked, command_of, made_elsewhere, other_evaluation
from voc_rl.training import VOCConfig, ready_quantizer, train
from voc_rl.training_inputs import quantizer_of
from voc_rl.values import ValueEstimate, check_known, discounted_returns, from_samples, mean_return, scores

Say = Callable[[str], None]
STATES_AT_ONCE = 64  # whose futures are drawn together, with random numbers of their own


@dataclass
class Pipeline:
    """One run on one dataset.

    Args:
        run: the run folder, already entered. data: as in ``voc_rl.data.load_dataset``; D4RL's states are drawn into the
            run folder. config: what is trained.
        held_out: share of the episodes that are never trained on. say: takes one line about what is skipped.
        force: stages that are done anew even when they are finished. device: where networks are trained and asked.
        stage: the one whose command this is: a finished one is never done anew with other settings, but for this one
            where it is forced; None: all of them may be.
        quantizer: the folder of a trained one, which is taken instead of training one; joint training starts from it.

    Raises:
        VOCError: a share or data that do not fit, or a finished stage of other settings than those that are given.
    """

    run: RunFolder
    data: Places
    config: VOCConfig
    held_out: float = 0.2
    say: Say = lambda line: None
    progress: bool = False
    force: frozenset[str] = frozenset()
    stage: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stack: int = 3
    quantizer: Path | None = None
    asked: Asked = field(init=False, repr=False)
    _places: list[str] = field(init=False, repr=False)
    _done: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise VOCError(f"held_out is {self.held_out}; a share of the episodes between 0 and 1 is needed.")
        self._places = [str(place) for place in places_of(self.data)]
        self.dataset = open_with_frames(self.data, self.run.path / "drawn", self.stack)
        hold_frames(self.dataset, self.say)
        self.training, self.test = self.dataset.split(self.held_out, np.random.default_rng([self.config.seed, 7]))
        self._given = quantizer_of(self.quantizer, self.dataset)
        weights = weights_mark(self._given) or None
        self.asked = Asked.of(self._places, self.dataset, self.held_out, self.config, weights)
        refusal = "" if self.force & {"quantizer", "train"} else made_elsewhere(self.run)
        if not refusal and self.stage is not None:
            refusal = self.asked.refusal(self.run, self.stage, self.stage in self.force)
        if agreed(bool(refusal)):
            raise VOCError(refusal)

    def mark(self, *parts: Any) -> str:
        """Fingerprint of a later stage: the trained model and ``parts``."""
        self.train()
        weights = (self._weights("quantizer"), self._weights("voc"))
        return fingerprint(self.asked.marks["train"], *weights, *self._scored.values(), *parts)

    @property
    def _scored(self) -> dict[str, float]:
        """The discount that values are scored at, where the model knows several: its training does not say which."""
        several = self.config.occupancy.gammas is not None
        return {"gamma": self.config.occupancy.gamma} if several else {}

    def _weights(self, name: str) -> str:
        """A hash of a weight file; of several processes all read the one that the first has written."""
        return hashlib.sha256((self.run.path / f"{name}.safetensors").read_bytes()).hexdigest()

    def anew(self, stage: str) -> str:
        """What to say on the command line to have a stage done anew."""
        return "--force" if self.stage in (None, stage) else f"{command_of(stage)} --force"

    def skip(self, stage: str, mark: str, made: Path | None = None) -> bool:
        """Whether a stage is done; says so. A forced one is forgotten first, as is one whose file ``made`` is gone."""
        if stage in self.force or (made is not None and agreed(not made.exists())):
            self.run.forget(stage)
            self.force = self.force - {stage}
        if self.run.finished(stage, mark):
            self.say(f"{stage}: done already, skipped ({self.anew(stage)} does it again)")
            return True
        if self.run.outdated(stage, mark):
            self.say(f"{stage}: done before, but with other data, settings or weights; done anew")
        return False

    def train_quantizer(self) -> Quantizer:
        """Train the quantizer on the training episodes, or load it; in joint training, with everything else."""
        if "quantizer" not in self._done:
            joint = self.config.joint is not None
            self._done["quantizer"] = self.train().quantizer if joint else self._train_quantizer()
        return self._done["quantizer"]

    def _train_quantizer(self) -> Quantizer:
        config, mark = self.config, self.asked.marks["quantizer"]
        if self.skip("quantizer", mark):
            return load_quantizer(self.run.path).to(self.device)
        steps = config.quantizer_training.steps
        with self.run.stage("quantizer", mark, self.asked.settings["quantizer"]):
            quantizer = ready_quantizer(
                self._given, self.training, config, self.device, log=self.run.log,
                checkpoints=self.run.checkpoints("quantizer", mark, steps, self.anew("quantizer")),
                progress=self.progress,
            )  # fmt: skip
            if self.run.writes:
                save_quantizer(quantizer, self.run.path, self.training.spec)
        return quantizer

    def tokenize(self) -> tuple[Tensor, Tensor]:
        """Codes and features of every row of the dataset, computed or loaded."""
        if "tokens" not in self._done:
            self._done["tokens"] = self._tokenize()
        return self._done["tokens"]

    def _tokenize(self) -> tuple[Tensor, Tensor]:
        path, quantizer = self.run.path / "tokens.safetensors", self.train_quantizer()
        mark = fingerprint(self.asked.marks["quantizer"], "tokens", self._weights("quantizer"))
        if not self.skip("tokenize", mark, path):
            with self.run.stage("tokenize", mark, {"data": self._places, "seed": self.config.seed}):
                codes, features = tokenize(quantizer, self.dataset)
                if self.run.writes:
                    save_tensors(path, {"codes": codes, "features": features})
        tensors = load_tensors(path, "token file")
        if len(tensors["codes"]) != len(self.dataset):
            raise VOCError(f"{path} has {len(tensors['codes'])} rows, the data {len(self.dataset)}; tokenise it again.")
        return tensors["codes"], tensors["features"]

    def tokens_of(self, part: Episodes) -> tuple[Tensor, Tensor]:
        """Codes and features of the rows of a subset of the dataset."""
        rows = torch.from_numpy(part.source_rows)
        codes, features = self.tokenize()
        return codes[rows], features[rows]

    def train(self) -> VOC:
        """Train the occupancy network, the value head and the reward head on the training episodes, or load them."""
        if "voc" not in self._done:
            self._done["voc"] = self._train()
        return self._done["voc"]

    def _train(self) -> VOC:
        mark, config = self.asked.marks["train"], self.config
        parts: dict[str, Any] = {"quantizer": self._given}
        if config.joint is None:
            parts = {"quantizer": self.train_quantizer(), "tokens": self.tokens_of(self.training)}
            mark = fingerprint(mark, self._weights("quantizer"))
        elif "quantizer" in self.run.measured("seconds"):  # training by stages has put its own quantizer here
            for stage in ("quantizer", "train"):
                self.run.forget(stage)
        if self.skip("train", mark):
            voc, gamma = VOC.load(self.run.path).to(self.device), config.occupancy.gamma
            if voc.gamma == gamma:
                return voc
            # one of several discounts, which is another than the one that was meant in training
            return VOC(voc.quantizer, voc.occupancy, voc.reward_head, voc.value_head, gamma, voc.spec)
        steps = config.occupancy.loop.steps + (0 if config.joint is None else config.quantizer_training.steps)
        with self.run.stage("train", mark, self.asked.settings["train"]):
            voc = train(
                self.training, config, **parts, device=self.device, log=self.run.log,
                checkpoints=lambda stage, built_on: self.run.checkpoints("train", mark, steps, self.anew("train")),
                progress=self.progress,
            )  # fmt: skip
            if self.run.writes:
                voc.save(self.run.path)
        return voc

    def evaluate(self, samples: int = 100, max_states: int = 600) -> dict[str, Any]:
        """Score the values of held-out states against their true returns; writes metrics.json.

        Raises:
            VOCError: no held-out state has a known return (episodes shorter than the horizon), or scores of another
                evaluation that this command would replace without being forced to.
        """
        asked = {"samples": samples, "max_states": max_states, **self._scored}
        unforced = self.stage == "evaluate" and "evaluate" not in self.force
        if agreed(bool(refusal := other_evaluation(self.run, asked) if unforced else "")):
            raise VOCError(refusal)
        _, truth, _, values = self.answers(samples, max_states)
        gamma = self.train().gamma
        path = self.run.path / "metrics.json"
        if agreed(path.exists()):  # of these estimates, with what else was scored beside them
            return read_json(path)
        methods = {name: scores(own, truth, gamma, self.r_max) for name, own in values.items()}
        metrics = self.metrics(methods, len(truth))
        if self.run.writes:
            write_json(path, metrics)
        return metrics

    def answers(
        self, samples: int, max_states: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, ValueEstimate], dict[str, np.ndarray]]:
        """Rows of the held-out states that are scored, their true returns, the model's ``estimates`` of them, and the
        values (B,) of each method: those estimates' and the best constant's."""
        rows, truth = self.test_states(max_states)  # before training: bad input is refused at once
        constant = np.full(len(truth), self.constant_value())
        estimates = self.estimates(rows, {"samples": samples, "max_states": max_states, **self._scored})
        return rows, truth, estimates, {**{name: own.mean for name, own in estimates.items()}, "constant": constant}

    def estimates(self, rows: np.ndarray, settings: dict[str, Any]) -> dict[str, ValueEstimate]:
        """Sampled values (stage ``evaluate``) and the head's of rows of the held-out episodes.

        States are sampled a few at a time, each time with random numbers of their own, so that several processes, of
        which each takes its share, find what one would.
        """
        check_samples(settings["samples"])
        voc = self.train()
        codes, features = self.tokens_of(self.test)
        codes, features = codes[torch.from_numpy(rows)], features[torch.from_numpy(rows)]

        def sampled() -> ValueEstimate:
            firsts, samples = range(0, len(rows), STATES_AT_ONCE), settings["samples"]
            own = firsts[ranks().share(len(firsts))]
            rewards = torch.zeros(len(own), STATES_AT_ONCE, samples)
            for place, first in enumerate(own):
                some = slice(first, first + STATES_AT_ONCE)
                generator = torch.Generator().manual_seed(step_seed(self.config.seed, first))
                futures = voc.futures_of_codes(codes[some], features[some], samples, generator=generator)
                rewards[place, : len(futures)] = voc.rewards(futures, features[some]).cpu()
            return from_samples(gather(rewards, len(firsts)).flatten(0, 1)[: len(rows)].numpy(), voc.gamma)

        found = {"voc": self.estimate("evaluate", settings, sampled)}
        if voc.value_head is not None:
            found["voc_head"] = voc.value_of_codes(codes, features, estimator="head")
        return found

    def estimate(self, name: str, settings: dict[str, Any], work: Callable[[], ValueEstimate]) -> ValueEstimate:
        """Do a stage whose result is a ValueEstimate, or read what it left."""
        mark = self.mark(name, settings)
        if (known := f"{name} {mark}") not in self._done:
            self._done[known] = self._estimate(name, mark, settings, work)
        return self._done[known]

    def _estimate(
        self, name: str, mark: str, settings: dict[str, Any], work: Callable[[], ValueEstimate]
    ) -> ValueEstimate:
        path = self.run.path / "estimates" / f"{name}.safetensors"
        if self.skip(name, mark, path):
            stored = {key: tensor.numpy() for key, tensor in load_tensors(path, "stored estimate").items()}
            words = read_json(path.with_suffix(".json"))
            return ValueEstimate(**stored, level=words["level"], covers=words["covers"])
        with self.run.stage(name, mark, settings, resumes=False):
            if self.run.writes:  # a kill must not leave the scores of other estimates beside the new ones
                (self.run.path / "metrics.json").unlink(missing_ok=True)
            estimate = work()
            if self.run.writes:
                arrays = {key: getattr(estimate, key) for key in ("mean", "stderr", "low", "high")}
                save_tensors(path, {key: torch.from_numpy(array) for key, array in arrays.items()})
                write_json(path.with_suffix(".json"), {"level": estimate.level, "covers": estimate.covers})
        return estimate

    @property
    def r_max(self) -> float:
        """Largest reward of a step: the largest logged one, or 1 per control step, the most that dm_control pays."""
        spec = self.dataset.spec
        suite = float(spec.action_repeat) if spec.dm_control else 0.0
        logged = self.dataset.reward[arrived_rows(self.dataset)]
        return max(suite, float(np.abs(logged).max(initial=0)), 1e-6)

    def constant_value(self) -> float:
        """Mean true return of the training states: the best constant that training data can name."""
        return mean_return(self.training, self.config.occupancy.gamma)

    def test_states(self, max_states: int) -> tuple[np.ndarray, np.ndarray]:
        """Evenly spread held-out rows with known returns, and the returns."""
        if max_states < 2:
            raise VOCError(f"max_states is {max_states}; at least 2 are needed for a score.")
        returns, known = discounted_returns(self.test, self.config.occupancy.gamma)
        check_known(known, self.config.occupancy.gamma, "held-out", least=2)
        rows = np.flatnonzero(known)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(max_states, len(rows))).round().astype(int))]
        return rows, returns[rows]

    def metrics(self, methods: dict[str, Any], states: int) -> dict[str, Any]:
        """What metrics.json holds."""
        codes = self.tokenize()[0].numpy()
        peaks = {name: int(peak) for name, peak in self.run.measured("peak_memory_bytes").items()}
        return {
            "task": self.dataset.spec.task or ", ".join(Path(place).name for place in self._places),
            "gamma": self.config.occupancy.gamma,
            "methods": methods,
            "seconds": self.run.measured("seconds"),
            "cpu_seconds": self.run.measured("cpu_seconds"),
            "peak_memory_bytes": max(peaks.values()),
            "stage_peak_memory_bytes": peaks,
            "r_max": self.r_max,
            "states": states,
            "episodes": {"training": len(self.training.starts), "held_out": len(self.test.starts)},
            "quantizer": {
                "name": self.config.quantizer,
                "tokens": codes.shape[1],
                **codebook_use(codes, self.train_quantizer().codebook_size),
            },
            "seed": self.config.seed,
        }
