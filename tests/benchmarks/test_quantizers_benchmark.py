"""The quantizers' benchmark on the square's world: cells, resume, numbers that are known, table, picture, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import walks
from worlds import CELLS, drift, loop, one_sentence, picture

from voc_rl.benchmarks import probes, quantizers
from voc_rl.benchmarks.quantizers import Args, Bench, Scale
from voc_rl.benchmarks.quantizers_table import FRAMES
from voc_rl.benchmarks.results import hardware
from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID
from voc_rl.errors import VOCError
from voc_rl.training import VOCConfig

SIDE, ROWS, EPISODES = 24, 30, 10
TASKS = ("walker-walk", "cheetah-run")
SIZES: dict[str, dict[str, Any]] = {
    "vqvae": {"n_tokens": 2, "levels": (4, 3), "components": 8, "hidden": 32, "decoder_width": 8, "patch": 6},
    "vqgan": {
        "channels": 4, "multipliers": (1, 1, 2), "residual_blocks": 1, "attention_levels": (2,), "latent_channels": 8,
        "codebook_size": 8, "code_dim": 4, "side": 24,
    },
    "dino": {
        "width": 24, "depth": 1, "heads": 2, "patch": 12, "side": 24, "codebook_size": 8, "code_dim": 4,
        "features": True, "decoder_width": 8, "teacher_width": 32, "teacher_steps": 4,
    },
}  # fmt: skip
SIZES["musik"] = {**SIZES["vqvae"], "negatives": 8, "energy_hidden": 16, "horizon": 3}


def collect_square(folder: Path, task: str, policy: Any, episodes: int, seed: int, *, max_episode_steps: int) -> None:
    """Walks of the square: the state is where it is, and whether it moved; the action says whether it will."""
    spec = DataSpec(task=task, size=SIDE, render="fast", action_repeat=1, max_episode_steps=max_episode_steps)
    for i, cell in enumerate(walks(drift(), episodes, max_episode_steps + 1, seed)):
        step_type = np.full(len(cell), MID, np.uint8)
        step_type[0], step_type[-1] = FIRST, LAST
        moved = np.append(0, np.diff(cell) != 0).astype(np.float32)
        episode = Episode(
            frames=picture(cell, SIDE), action=(2 * moved - 1)[:, None] * (step_type > 0)[:, None],
            reward=np.where(step_type > 0, cell == CELLS - 1, 0).astype(np.float32),
            discount=np.ones(len(cell), np.float32), step_type=step_type,
            state=np.column_stack([np.eye(CELLS)[cell], moved]).astype(np.float32),
        )  # fmt: skip
        write_episode(Path(folder) / f"episode_{i:06d}.hdf5", episode, spec)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def sized(size: str, name: str) -> VOCConfig:
        assert size == "tiny"
        return VOCConfig(name, SIZES[name], loop(100 if name == "vqvae" else 4, batch_size=32))

    monkeypatch.setattr(quantizers, "collect", collect_square)
    monkeypatch.setattr(quantizers, "load_policy", lambda name: None)
    monkeypatch.setattr(quantizers, "sized", sized)
    monkeypatch.setattr(quantizers, "SCALES", {
        "smoke": Scale(EPISODES, ROWS - 1, None, 4, 0.01), "cpu": Scale(EPISODES, ROWS, 2, 4, 0.01),
    })  # fmt: skip
    monkeypatch.setattr(probes, "POSITIONS", dict.fromkeys(TASKS, CELLS))
    return {"scale": "smoke", "out": tmp_path / "out", "results": tmp_path / "results"}


def test_all_quantizers_on_both_tasks(arguments: dict[str, Any], tmp_path: Path) -> None:
    results = quantizers.main(Args(**arguments))
    assert json.loads((tmp_path / "results/quantizers.json").read_text())["tasks"] == results["tasks"]
    text = (tmp_path / "results/quantizers.md").read_text()
    assert 5000 < (tmp_path / "results/quantizers.png").stat().st_size < 300_000
    test = Bench(quantizers.SCALES["smoke"], tmp_path / "out").episodes("walker-walk")[1]
    for task in TASKS:
        rows = results["tasks"][task]
        assert list(rows) == ["vqvae", "vqgan", "dino", "musik", FRAMES]
        numbers = {name: row["mean"] for name, row in rows.items()}
        tokens = {"vqvae": (2, 12), "musik": (2, 12), "vqgan": (3 * 36, 8), "dino": (3 * 4, 8)}
        for name, (n_tokens, codebook_size) in tokens.items():
            own = numbers[name]
            assert (own["n_tokens"], own["codebook_size"], own["stack"]) == (n_tokens, codebook_size, 3)
            assert own["bits"] == pytest.approx(n_tokens * np.log2(codebook_size))
            assert own["tokens_per_second"] == pytest.approx(n_tokens * own["stacks_per_second"])
            assert 1 <= own["perplexity"] <= own["pooled_perplexity"] + 1e-6 <= codebook_size + 1e-5
            assert own["train_ratio"] == pytest.approx(own["train_cpu_seconds"] / numbers["vqvae"]["train_cpu_seconds"])
            assert f"| `{name}` | {n_tokens} (" in text
        # where the square is, and so the reward, is linear in the pictures; the trained codes hold it
        assert numbers[FRAMES]["features.position"] == pytest.approx(1, abs=1e-3)
        assert numbers[FRAMES]["features.reward"] == pytest.approx(1, abs=1e-3)
        assert numbers["vqvae"]["features.position"] > 0.99
        assert numbers["vqvae"]["psnr"] > numbers[FRAMES]["psnr"] + 0.5
        assert numbers["vqvae"]["codes.reward"] > 0.5
        assert "features.position" not in numbers["vqgan"]
    mean_picture = 10 * np.log10(255**2 / np.mean((test.frames(np.arange(len(test))) - _mean_frame(tmp_path)) ** 2))
    assert results["tasks"]["walker-walk"][FRAMES]["mean"]["psnr"] == pytest.approx(mean_picture, abs=0.05)


def _mean_frame(tmp_path: Path) -> np.ndarray:
    training = Bench(quantizers.SCALES["smoke"], tmp_path / "out").episodes("walker-walk")[0]
    assert len(training.starts) == 0.8 * EPISODES
    return training.frames(np.arange(len(training))).astype(float).mean(0).round()


def test_finished_cells_are_kept_and_others_done_anew(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some: dict[str, Any] = {**arguments, "tasks": TASKS[:1], "quantizers": ("musik",)}
    first = quantizers.main(Args(**some, seeds=(0,)))
    said = f"--scale smoke --tasks {TASKS[0]} --quantizers musik"
    assert first["command"] == f"python -m voc_rl.benchmarks.quantizers {said}"
    lines = (tmp_path / "out/cells.jsonl").read_text()
    trained = []
    train = quantizers.train_quantizer

    def counted(quantizer: Any, *rest: Any, **options: Any) -> Any:
        trained.append(quantizer.name)
        return train(quantizer, *rest, **options)

    monkeypatch.setattr(quantizers, "train_quantizer", counted)
    assert quantizers.main(Args(**some, seeds=(0,))) == first
    assert trained == []
    (tmp_path / "out/cells.jsonl").write_text(lines := lines.replace(hardware(), "another machine"))
    assert quantizers.main(Args(**some, seeds=(0,)))["hardware"] == "another machine"  # the one that measured
    both = quantizers.main(Args(**some, seeds=(1,)))["tasks"][TASKS[0]]["musik"]
    assert (trained, both["seeds"]) == (["musik"], [0, 1])  # the table shows all that is finished
    assert (tmp_path / "out/cells.jsonl").read_text().startswith(lines)
    # another size is another cell, and of the old ones nothing is shown
    sized = quantizers.sized
    monkeypatch.setattr(quantizers, "sized", lambda size, name: replace(sized(size, name), quantizer_training=loop(2)))
    changed = quantizers.main(Args(**some, seeds=(0,)))["tasks"][TASKS[0]]["musik"]
    assert (trained, changed["seeds"]) == (["musik", "musik"], [0])


def test_a_scale_with_few_steps_trains_few(arguments: dict[str, Any]) -> None:
    config = quantizers.config_of("dino", 2, seed=3)
    assert (config.quantizer_training.steps, config.quantizer_config["teacher_steps"], config.seed) == (2, 2, 3)
    assert SIZES["dino"]["teacher_steps"] == 4  # the size itself is as it was
    whole = quantizers.config_of("dino", None)
    assert (whole.quantizer_training.steps, whole.quantizer_config["teacher_steps"]) == (4, 4)


def test_speed_is_what_an_encoder_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(100) * 0.5)  # half a CPU second between looks at the clock
    monkeypatch.setattr(quantizers.time, "process_time", lambda: next(clock))

    class Counting(torch.nn.Linear):
        calls = 0

        def encode(self, obs: torch.Tensor) -> None:
            self.calls += 1

    encoder = Counting(1, 1)
    speed = quantizers.encoding_speed(encoder, torch.zeros(10, 9, 4, 4), 2.0)  # type: ignore[arg-type]
    assert encoder.calls == 1 + 3  # the first is not counted
    assert speed == 30 / 2.0


def test_refusals(arguments: dict[str, Any], tmp_path: Path) -> None:
    for changed, words in (
        ({"scale": "gpu"}, "Unknown scale 'gpu'"), ({"tasks": ("square",)}, "Unknown task 'square'"),
        ({"quantizers": ("vqvae", "gan")}, "Unknown quantizer 'gan'"), ({"seeds": ()}, "number of seeds is 0"),
        ({"tasks": ()}, "number of tasks is 0"),
    ):  # fmt: skip
        with pytest.raises(VOCError) as caught:
            quantizers.main(Args(**{**arguments, **changed}))
        assert words in str(caught.value)
        assert one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()
    quantizers.main(Args(**arguments, tasks=TASKS[:1], quantizers=()))
    with pytest.raises(VOCError) as caught:
        quantizers.main(Args(**{**arguments, "scale": "cpu"}))
    assert str(caught.value) == f"{tmp_path / 'out'} was made with other settings (scale); choose another --out."
    assert len(Episodes.open(tmp_path / "out/data/walker-walk").starts) == EPISODES
