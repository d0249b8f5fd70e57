"""The commands ``voc-rl demo`` and ``collect``: pixels of a real task, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voc_rl.cli.stages import prepare
from voc_rl.errors import VOCError


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
