"""The occupancy network: how it is built, trained and sampled."""

from voc_rl.occupancy.heads import ValueHead
from voc_rl.occupancy.sampling import compose, sample_futures, uniforms
from voc_rl.occupancy.targets import Targets, default_n, draw_targets, n_step_returns
from voc_rl.occupancy.training import OccupancyTraining, train_occupancy
from voc_rl.occupancy.transformer import OccupancyConfig, OccupancyTransformer

__all__ = [
    "OccupancyConfig",
    "OccupancyTraining",
    "OccupancyTransformer",
    "Targets",
    "ValueHead",
    "compose",
    "default_n",
    "draw_targets",
    "n_step_returns",
    "sample_futures",
    "train_occupancy",
    "uniforms",
]
