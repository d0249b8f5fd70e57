"""The command ``voc-rl ope``: what policies are worth on logged episodes."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from voc_rl.cli.stages import prepare
from voc_rl.errors import VOCError, check_positive, check_seed, few


@dataclass(frozen=True)
class Ope:
    """What policies are worth on logged episodes: values with intervals, best first."""

    data: tuple[str, ...]
    """Paths, or FORMAT:PLACE with voc, vd4rl, d4rl or minari; the episodes of several follow one another. D4RL's states
    are drawn into --out."""
    policy: tuple[str, ...]
    """Policies: a shipped actor, an actor's .safetensors, a SAC .zip of Stable-Baselines3 (one that learned under
    VecNormalize: by module:callable), the folder of a saved OfflineAgent, or module:callable (which runs that module's
    code)."""
    gamma: float = 0.95
    """Discount of the values, in [0, 1)."""
    estimator: Literal["stitch", "corrected", "head", "sample", "density"] = "stitch"
    """stitch: chains of logged rows; corrected: also a critic; head, sample, density: also a network for
    all the policies. Each needs a quantizer, which is trained where --quantizer names none."""
    reward: str | None = None
    """module:callable that takes the episodes and returns rewards (N,) on arrival at their rows (runs that module's
    code); default: the logged ones. Not for head."""
    deterministic: bool = False
    """Without the policies' noise."""
    starts: int = 0
    """Average over this many rows from all over the episodes; 0: over the first rows of the episodes."""
    quantizer: Path | None = None
    """A run folder whose quantizer sees the frames; default: one is trained on the data."""
    stack: int | None = None
    """Frames of an observation; default: those that the quantizer sees, or 3."""
    features: Literal["frames", "state"] = "frames"
    """What rows are compared by: what a quantizer says of frames, or the states, which need neither a quantizer nor
    frames (stitch and corrected alone)."""
    out: Path | None = None
    """Folder for ope.json (with what was asked, in which versions), its report ope.html, and checkpoints, from which an
    interrupted command goes on, and others use what they share with it; a run folder will do."""
    force: bool = False
    """Replace results in --out that were asked for otherwise."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained."""
    threads: int | None = None

    def run(self) -> None:
        from voc_rl.agents import Deterministic, callable_of, policy_of
        from voc_rl.checkpoints import hold_folder

        check_seed(self.seed)
        prepare(self.threads)
        policies = {name: policy_of(name) for name in self.policy}
        if self.deterministic:
            policies = {f"{name}, deterministic": Deterministic(policy) for name, policy in policies.items()}
        reward_fn = None if self.reward is None else callable_of(self.reward)
        # before hours of training, not after them
        with nullcontext() if self.out is None else hold_folder(self.out, "folder of results"):
            if self.out is not None and not self.force:
                self._check_results(self.out / "ope.json")
            self._evaluate(policies, reward_fn)

    def _asked(self) -> dict[str, Any]:
        """What decides the results, JSON-ready."""
        options = {name: str(own) if isinstance(own, Path) else own for name, own in asdict(self).items()}
        return {name: own for name, own in options.items() if name != "force"}

    def _check_results(self, path: Path) -> None:
        """Refuse to replace results of another question."""
        from voc_rl.checkpoints import as_json, read_json

        if not path.exists():
            return
        before, now = read_json(path, "results of policies").get("asked", {}), as_json(self._asked())
        decide = [name for name in now if name in before and name not in ("out", "device", "threads")]
        names = [name for name in decide if before[name] != now[name]]
        if names:
            found = few([f"{name} was {before[name]!r} and is {now[name]!r}" for name in names])
            raise VOCError(f"{path} answers another question ({found}); give another --out, or --force to replace it.")

    def _evaluate(self, policies: dict[str, Any], reward_fn: Any) -> None:
        import numpy as np

        from voc_rl.checkpoints import write_json
        from voc_rl.data import going_rows
        from voc_rl.model_files import check_spec_of
        from voc_rl.ope import EvaluationConfig, evaluate_policy
        from voc_rl.ope.estimate import against_best, format_estimates
        from voc_rl.precision import choose_device, precision
        from voc_rl.quantizers import load_quantizer
        from voc_rl.reports.ope_report import write_ope_report
        from voc_rl.runs import versions
        from voc_rl.training import VOCConfig

        quantizer = None if self.quantizer is None else load_quantizer(self.quantizer)
        dataset, features = self._opened(quantizer)
        starts = None
        if self.starts:
            check_positive(self.starts, "starts")
            rows = going_rows(dataset)
            starts = rows[np.linspace(0, len(rows) - 1, self.starts).round().astype(int)]
        if self.quantizer is not None:
            check_spec_of(self.quantizer, dataset.spec)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=__name__)  # the table ends with them
            estimates = evaluate_policy(
                dataset, policies, self.gamma, self.estimator, starts=starts, reward_fn=reward_fn, quantizer=quantizer,
                config=EvaluationConfig(voc=VOCConfig(seed=self.seed)), features=features,
                device=choose_device(self.device), checkpoints=None if self.out is None else self.out / "checkpoints",
                progress=True,
            )  # fmt: skip
        if self.out is not None:  # before anything is printed: minutes of work outlive a reader that is gone
            found = {
                "estimates": [estimate.as_dict() for estimate in estimates],
                "against_best": [difference.as_dict() for difference in against_best(estimates)],
            }
            made = {"asked": self._asked(), "precision": precision(), "versions": versions()}
            write_json(self.out / "ope.json", {**made, **found})
            asked = "" if self.reward is None else f", rewards of {self.reward}"
            write_ope_report(self.out / "ope.html", estimates, f"{', '.join(self.data)}: {dataset!r}{asked}")
        print(format_estimates(estimates))

    def _opened(self, quantizer: Any) -> tuple[Any, Any]:
        """The data, and the features that rows are compared by in place of a quantizer's (None: by those)."""
        from voc_rl.conversion import open_with_frames
        from voc_rl.data import load_dataset
        from voc_rl.frame_memory import hold_frames
        from voc_rl.ope import state_features
        from voc_rl.quantizers.base import frames_in_stack

        seen = None if quantizer is None else frames_in_stack(quantizer.observation_shape)
        stack = (seen or 3) if self.stack is None else self.stack
        if stack != (seen or stack):
            raise VOCError(
                f"--stack is {stack}, and the quantizer of {self.quantizer} sees {seen} frames; leave it out."
            )
        if self.features == "state":
            dataset = load_dataset(self.data, stack=stack)
            return dataset, state_features(dataset)
        dataset = open_with_frames(self.data, None if self.out is None else self.out / "drawn", stack)
        hold_frames(dataset, print)
        return dataset, None
