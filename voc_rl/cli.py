"""The command ``voc-rl``: parses, calls, prints."""

from __future__ import annotations

import io
import json
import os
import select
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from voc_rl import __version__
from voc_rl.cli_data import Convert, Data, Info, Validate
from voc_rl.cli_stages import Evaluate, Tokenize, Train, TrainQuantizer, prepare
from voc_rl.errors import VOCError, check_positive, check_seed, few

PURPOSE = "Video occupancy models: values of states and of policies from logged pixels."
STDOUT = 1  # the descriptor of what is printed


@dataclass(frozen=True)
class Demo:
    """From pixels to values on a real task: collect, train, compare with the truth and baselines, report."""

    task: str = "walker-walk"
    """walker-walk or cheetah-run."""
    quantizer: str = "vqvae"
    """vqvae (few joint tokens), musik (the same, of what actions change), dino or vqgan (a token per patch)."""
    out: Path | None = None
    """Run folder, where an interrupted demo goes on; default: runs/demo, for another task or quantizer
    runs/demo_cheetah-run, runs/demo_musik and so on."""
    seed: int = 0
    threads: int | None = None
    """Threads for the arithmetic; default: OMP_NUM_THREADS, or the cores that are free now, at most 4."""
    processes: int = 2
    """Processes that collect."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    episodes: int = 80
    episode_steps: int = 250
    force: bool = False
    """Do every stage anew."""

    def run(self) -> None:
        from voc_rl.benchmarks.demo import DemoConfig, run_demo
        from voc_rl.precision import choose_device
        from voc_rl.sizes import sized

        voc = sized("tiny", self.quantizer, seed=self.seed)
        config = DemoConfig(task=self.task, episodes=self.episodes, episode_steps=self.episode_steps, voc=voc)
        own = [name for name, usual in ((self.task, Demo.task), (self.quantizer, Demo.quantizer)) if name != usual]
        out = self.out or Path("runs", "_".join(["demo", *own]))
        device = choose_device(self.device)
        prepare(self.threads)
        run_demo(config, out, processes=self.processes, device=device, force=self.force)


@dataclass(frozen=True)
class Collect:
    """Collect pixel episodes with a shipped policy or an actor file."""

    task: str
    """A dm_control task, such as walker-walk."""
    policy: str
    """A shipped policy, such as walker-walk/step_60000, or the path of an actor's .safetensors."""
    out: Path
    """Folder for the episodes; those that are there are kept."""
    episodes: int = 80
    max_episode_steps: int | None = None
    """Agent steps per episode; default: the task's own limit."""
    action_repeat: int = 2
    size: int = 84
    """Height and width of the frames, in pixels."""
    render: Literal["fast", "faithful"] = "fast"
    sigma: float = 0.0
    """Standard deviation of Gaussian noise around the policy's mean; 0 keeps the policy's own noise."""
    epsilon: float = 0.0
    """Share of uniformly random actions; needs --sigma."""
    seed: int = 0
    processes: int = 2
    force: bool = False
    """Delete the episodes of the folder first, once nothing can refuse the collection any more."""

    def run(self) -> None:
        from voc_rl.agents import NoisyPolicy, load_policy
        from voc_rl.envs import collect

        if self.epsilon and not self.sigma:
            raise VOCError("--epsilon needs --sigma: random actions join Gaussian ones around the policy's mean.")
        policy: Any = load_policy(self.policy)
        if self.sigma:
            policy = NoisyPolicy(policy, self.sigma, self.epsilon)
        count = collect(
            self.out, self.task, policy, self.episodes, self.seed, max_episode_steps=self.max_episode_steps,
            size=self.size, action_repeat=self.action_repeat, render=self.render, processes=self.processes,
            force=self.force,
        )  # fmt: skip
        print(f"collect: {count} new episodes, {self.episodes - count} were there already: {self.out}")


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
    """Folder for ope.json (with what was asked, in which versions) and its report ope.html; a run folder will do."""
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
        from voc_rl.checkpoints import read_json

        if not path.exists():
            return
        before, now = read_json(path, "results of policies").get("asked", {}), json.loads(json.dumps(self._asked()))
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
        from voc_rl.precision import choose_device
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
                device=choose_device(self.device), progress=True,
            )  # fmt: skip
        if self.out is not None:  # before anything is printed: minutes of work outlive a reader that is gone
            found = {
                "estimates": [estimate.as_dict() for estimate in estimates],
                "against_best": [difference.as_dict() for difference in against_best(estimates)],
            }
            write_json(self.out / "ope.json", {"asked": self._asked(), "versions": versions(), **found})
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


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[TrainQuantizer, tyro.conf.subcommand("train-quantizer")]
    | Annotated[Tokenize, tyro.conf.subcommand("tokenize")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Ope, tyro.conf.subcommand("ope")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``voc-rl``. Bad input prints one sentence and exits with code 2."""
    for name in ("stdout", "stderr"):  # closed by who called: then there is nobody to read
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # results are not lost to a γ that this terminal cannot show
            stream.reconfigure(errors="replace")
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"voc-rl {__version__}")
        return
    command = tyro.cli(Command, prog="voc-rl", args=arguments, description=PURPOSE)
    try:
        command.run()
        sys.stdout.flush()  # here, where a reader that is gone can be met
    except VOCError as error:
        print(f"voc-rl: {error}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        print(f"voc-rl: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"voc-rl: interrupted; {_what_goes_on(command)}.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        sys.exit(141)  # as a command that SIGPIPE ends


def _what_goes_on(command: Any) -> str:
    """What to say to somebody who interrupted a command."""
    wanted = command.command if isinstance(command, Data) else command
    if isinstance(wanted, (Ope, Info, Validate)) or (isinstance(wanted, Convert) and wanted.to != "voc"):
        return "it keeps no checkpoints, so the same command starts again"
    forced = getattr(getattr(command, "settings", command), "force", False)
    return f"the same command{' without --force' if forced else ''} goes on from the last checkpoint"


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more (``voc-rl ... | head``); it is thrown away then."""
    printed = select.poll()
    printed.register(STDOUT, 0)
    gone = any(event & select.POLLERR for _, event in printed.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else Python complains when it ends
    return gone


if __name__ == "__main__":
    main()
