"""The estimators of policies' values, and what each of them can answer."""

from __future__ import annotations

from typing import Literal

from voc_rl.errors import VOCError
from voc_rl.ope.model import base_or_refuse
from voc_rl.training import NetworkSize

PolicyEstimator = Literal["stitch", "corrected", "head", "sample", "mve", "density"]
ESTIMATORS: tuple[PolicyEstimator, ...] = ("stitch", "corrected", "head", "sample", "mve", "density")
WITH_CRITIC = ("corrected", "head")  # behind which a fitted critic stands
WITHOUT_NETWORK = ("stitch", "corrected")


def check_answers(
    estimator: PolicyEstimator, size: NetworkSize, *,
    gamma: float, own: float, gammas: tuple[float, float] | None, other: bool, frames: bool,
) -> None:  # fmt: skip
    """Refuse what an estimator cannot answer, before anything is trained for it.

    gamma: the discount that is asked; own: the evaluator's; gammas: the range that its network learns, if it does.
    other: other rewards than the data's are asked for. frames: rows are compared by what a quantizer says of frames.
    """
    if not frames and estimator not in WITHOUT_NETWORK:
        raise VOCError(
            f"estimator={estimator!r} needs a network of frames, and features were given in their place; use "
            "'stitch' or 'corrected', or leave features out."
        )
    if estimator == "head" and (other or gamma != own):
        raise VOCError(
            f"estimator='head' knows the data's reward at gamma {own:g} only; use 'corrected', 'sample' or 'stitch' "
            "for others."
        )
    if estimator == "head" and not size.head_members:
        raise VOCError(
            "The network has no value head (head_members is 0, or gammas are learned); use 'corrected', 'sample' or "
            "'stitch'."
        )
    if estimator == "density" and not size.null_context:
        raise VOCError(
            "estimator='density' needs a network with null_context; set it in the config's voc.network, or use "
            "'sample' or 'stitch'."
        )
    if estimator in ("sample", "mve", "density"):
        base_or_refuse(gammas or (own, own), gamma, hops=estimator != "density")
