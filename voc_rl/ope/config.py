"""How policies are evaluated: ``EvaluationConfig``."""

from __future__ import annotations

from dataclasses import dataclass, field

from voc_rl.errors import check_count, check_samples
from voc_rl.occupancy import PolicyTraining
from voc_rl.ope.chains import StitchingConfig
from voc_rl.training import VOCConfig
from voc_rl.values import FQEConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """How policies are evaluated.

    stitching: of the chains. samples: futures per start, for ``sample`` and ``mve``. density_rows: rows that
    ``density`` weighs. critic: of the chains' jumps. training: of the policies' network, in place of ``voc.occupancy``.
    voc: quantizer, sizes of the network, reward head, seed; without ``head_members``, ``head`` cannot be asked.
    """

    stitching: StitchingConfig = field(default_factory=StitchingConfig)
    samples: int = 64
    density_rows: int = 2000
    critic: FQEConfig = field(default_factory=FQEConfig)
    training: PolicyTraining = field(default_factory=PolicyTraining)
    voc: VOCConfig = field(default_factory=VOCConfig)

    def __post_init__(self) -> None:
        check_samples(self.samples)
        check_count(self.density_rows, "density_rows")
