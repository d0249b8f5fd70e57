"""What the training stages of a run are asked to do, and in what it differs from what they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voc_rl.checkpoints import as_json
from voc_rl.data import Episodes
from voc_rl.data.mark import data_mark
from voc_rl.errors import few
from voc_rl.precision import precision
from voc_rl.runs import MODEL, RunFolder
from voc_rl.training import VOCConfig, settings_marks, training_settings

REPLACE = "--force replaces it, or give another --out"
NETWORKS = ("network", "occupancy", "reward")  # settings of training by stages that its quantizer does not share
COMMANDS = {"quantizer": "train-quantizer", "report": "evaluate"}  # of stages whose command has another name


def command_of(stage: str) -> str:
    """The command that does a stage."""
    return f"voc-rl {COMMANDS.get(stage, stage)}"


@dataclass(frozen=True)
class Asked:
    """What is asked of the stages ``quantizer`` and ``train``.

    settings: stage -> settings, JSON-ready, as config.json keeps them. marks: stage -> fingerprint of these and of the
    data.
    """

    settings: dict[str, dict[str, Any]]
    marks: dict[str, str]

    @classmethod
    def of(
        cls, data: Sequence[str], dataset: Episodes, held_out: float, config: VOCConfig, weights: str | None = None
    ) -> Asked:
        """``data``: where ``dataset`` is; its content counts, not its places. ``weights``: a hash of those of a
        quantizer that is taken instead of training one."""
        mark, whole = data_mark(dataset), training_settings(config)
        base, trained = settings_marks(mark, dataset.stack, config, held_out, weights)
        shared = {
            "data": list(data), "data_mark": mark, "stack": dataset.stack, "held_out": held_out,
            "precision": precision(), "quantizer_weights": weights,
        }  # fmt: skip
        own = {name: whole[name] for name in ("quantizer", "quantizer_config", "joint")}
        if weights is None or config.joint is not None:
            own |= {"seed": config.seed, **whole["quantizer_training"]}
        else:
            del whole["quantizer_training"]  # nothing is trained by it
        return cls(
            {"quantizer": {**shared, **own}, "train": {**shared, **whole}},
            # in joint training the quantizer comes out of the training of all
            {"quantizer": base if config.joint is None else trained, "train": trained},
        )

    def refusal(self, run: RunFolder, stage: str, forced: bool = False) -> str:
        """An error message if ``stage``, or a stage it builds on, was finished with other settings or by another
        version; "" if the command may run. ``forced`` exempts ``stage`` itself."""
        finished = [name for name in self.settings if run.settings(name) is not None]
        by_stages = self.settings["train"]["joint"] is None
        source = [] if self._left_alone(run) else finished[:1]  # what the quantizer came out of
        needed = {"quantizer": source, "tokenize": source, "train": finished, "evaluate": finished}.get(stage, [])
        replaced = {"quantizer": source, "train": ["train"] if by_stages else finished}.get(stage, [])
        for name in needed:
            own = name in replaced
            if own and (forced or self._outlived(run, name)):
                continue
            anew = f"do it anew by {command_of(name if by_stages else 'train')}, in another --out to keep what is there"
            if found := differences(run.settings(name) or {}, self.settings[name]):
                advice = REPLACE if own else f"give the same, or {anew}{self._other_discount(run)}"
                return _finished_otherwise(run, name, found, advice)
            if name == ("quantizer" if by_stages else "train") and run.outdated(name, self.marks[name]):
                return f"{run.path}: {name} was finished by another version of voc_rl; {REPLACE if own else anew}."
        return ""

    def _other_discount(self, run: RunFolder) -> str:
        """What else answers where another discount is asked for, in words."""
        trained, asked = ((run.settings("train") or {}).get("occupancy", {}), self.settings["train"]["occupancy"])
        before, now = trained.get("gamma"), asked.get("gamma")
        if before is None or now is None or before == now:
            return ""
        sampled = f"; in Python VOC.value(obs, gamma={now}, estimator='sample') asks this one" if now > before else ""
        return f" (a network trained with --gammas answers for a range of discounts{sampled})"

    def _outlived(self, run: RunFolder, stage: str) -> bool:
        """Whether it trained networks on a quantizer that is made anew, or was since: nothing is lost in these."""
        if stage != "train" or (run.settings("quantizer") is None and not self._left_alone(run)):
            return False
        trained = self.settings["train"]["quantizer_weights"] is None
        alone = NETWORKS if trained else (*NETWORKS, "seed")  # which one that was trained before does not share either
        shared = {name: value for name, value in self.settings["train"].items() if name not in alone}
        return bool(differences(run.settings("train") or {}, shared))

    def _left_alone(self, run: RunFolder) -> bool:
        """Whether networks by stages are there without their quantizer: a forced one began and was interrupted."""
        before = run.settings("train")
        if before is None or run.settings("quantizer") is not None:
            return False
        return before.get("joint") is None and self.settings["train"]["joint"] is None


def other_evaluation(run: RunFolder, settings: Mapping[str, Any]) -> str:
    """Why the scores that are there are not those of an evaluation with ``settings``; else ""."""
    scored = (run.path / "metrics.json").exists()
    found = differences(run.settings("evaluate") or {}, settings) if scored else []
    return _finished_otherwise(run, "evaluate", found, REPLACE) if found else ""


def _finished_otherwise(run: RunFolder, stage: str, found: list[str], advice: str) -> str:
    return f"{run.path}: {stage} is finished with other settings ({few(found)}); {advice}."


def made_elsewhere(run: RunFolder) -> str:
    """Why the model in a folder is not one to write over: none of its commands made it; else ""."""
    there = [name for name in ("voc.json", "quantizer.json") if (run.path / name).exists()]
    if not there or run.began(*MODEL):
        return ""
    return (
        f"{run.path} holds a model that no command made ({there[0]}, as of VOC.save), and training would write over "
        "it; give another --out."
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what settings differ from those of a finished stage, in words; the place of the same data does not count."""
    plain = as_json(now)  # as they were stored
    known = [name for name in plain if name in before and name != "data"]
    return [words for name in known for words in _differences(name, before[name], plain[name])]


def _differences(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [words for key in keys for words in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    if name == "data_mark" and before != now:
        return ["the data are others, have changed, or were marked by another version of voc_rl"]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
