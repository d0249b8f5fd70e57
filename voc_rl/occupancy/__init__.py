"""The occupancy network: how it is built, trained and sampled."""

from voc_rl.occupancy.batches import without_context
from voc_rl.occupancy.contexts import Condition, OccupancyConfig
from voc_rl.occupancy.discounts import base_gamma, discount_condition
from voc_rl.occupancy.heads import ValueHead
from voc_rl.occupancy.policy_actions import policy_actions
from voc_rl.occupancy.policy_training import PolicyTraining, train_policies
from voc_rl.occupancy.sampling import (
    chance_of_another,
    compose,
    end_probability,
    hops,
    log_probabilities,
    sample_futures,
    uniforms,
)
from voc_rl.occupancy.starting import start_from
from voc_rl.occupancy.stitching import Candidates, StitchedChain, find_candidates, stitch
from voc_rl.occupancy.targets import Targets, default_n, draw_targets, n_step_returns
from voc_rl.occupancy.training import train_occupancy
from voc_rl.occupancy.training_config import OccupancyTraining
from voc_rl.occupancy.transformer import OccupancyTransformer

__all__ = [
    "Candidates",
    "Condition",
    "OccupancyConfig",
    "OccupancyTraining",
    "OccupancyTransformer",
    "PolicyTraining",
    "StitchedChain",
    "Targets",
    "ValueHead",
    "base_gamma",
    "chance_of_another",
    "compose",
    "default_n",
    "discount_condition",
    "draw_targets",
    "end_probability",
    "find_candidates",
    "hops",
    "log_probabilities",
    "n_step_returns",
    "policy_actions",
    "sample_futures",
    "start_from",
    "stitch",
    "train_occupancy",
    "train_policies",
    "uniforms",
    "without_context",
]
