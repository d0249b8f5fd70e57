"""Off-policy evaluation: what policies are worth that did not make the data, and which of them is worth more."""

from voc_rl.ope.chains import PolicyChains, StitchingConfig, state_features
from voc_rl.ope.config import EvaluationConfig
from voc_rl.ope.error import ErrorParts
from voc_rl.ope.estimate import PolicyDifference, PolicyEstimate
from voc_rl.ope.evaluation import evaluate_policy
from voc_rl.ope.evaluator import PolicyEvaluator

__all__ = [
    "ErrorParts",
    "EvaluationConfig",
    "PolicyChains",
    "PolicyDifference",
    "PolicyEstimate",
    "PolicyEvaluator",
    "StitchingConfig",
    "evaluate_policy",
    "state_features",
]
