"""Policies improved by a VOC: evaluate a policy, weight logged actions by their advantage, clone, evaluate again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from voc_rl.agents.action_values import ROWS_AT_ONCE, ActionValues, action_training, train_action_voc
from voc_rl.agents.objectives import Cloning, advantage_weights, linear_residual, trace_advantages
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.data import Episodes, going_rows, taken_actions
from voc_rl.errors import VOCError, check_choice, check_count, check_positive
from voc_rl.model import VOC
from voc_rl.occupancy import (
    PolicyTraining,
    StitchedChain,
    find_candidates,
    policy_actions,
    stitch,
)
from voc_rl.precision import device_of
from voc_rl.quantizers import check_features
from voc_rl.training import VOCConfig
from voc_rl.training_inputs import Tokens, known_tokens

Baseline = Literal["linear", "voc"]


@dataclass(frozen=True)
class ImprovementConfig:
    """temperature: of the weights exp(A / temperature), in standard deviations of the advantage. trace, baseline: of
    ``row_weights``; trace None: ``action_weights``. draws: actions of a policy at each row, for its chain. agent: the
    clone. training, voc: of the policies' models."""

    temperature: float = 0.25
    trace: float | None = 0.95
    baseline: Baseline = "linear"
    draws: int = 4
    agent: AgentConfig = field(default_factory=AgentConfig)
    training: PolicyTraining = field(default_factory=action_training)
    voc: VOCConfig = field(default_factory=VOCConfig)

    def __post_init__(self) -> None:
        check_choice(self.baseline, ("linear", "voc"), "baseline")
        check_positive(self.temperature, "temperature")
        check_count(self.draws, "draws")


def action_weights(
    voc: VOC, dataset: Episodes, tokens: Tokens, temperature: float = ImprovementConfig.temperature
) -> np.ndarray:
    """``advantage_weights`` float32 (N,) of the logged actions, with the advantages of ``voc``'s head.

    Raises:
        VOCError: a VOC without action input or value head, or for actions of another size; tokens that are not
            those of the rows.
    """
    codes, features = _tokens_of(voc, dataset, tokens)
    size, reads = dataset.action.shape[1], voc.occupancy.config.action_dim
    if reads not in (0, size):
        raise VOCError(f"The data's actions have size {size}; this VOC reads actions of size {reads}.")
    advantages = ActionValues(voc).advantages(codes, features, torch.from_numpy(taken_actions(dataset))).numpy()
    return advantage_weights(advantages, going_rows(dataset), temperature)


def row_weights(voc: VOC, dataset: Episodes, tokens: Tokens, config: ImprovementConfig | None = None) -> np.ndarray:
    """``advantage_weights`` float32 (N,) of the logged actions, by logged rewards and the values of ``voc``'s head.

    The lambda-returns of every row (TD(lambda), with the VOC's values) less a baseline: ``linear``, their linear fit on
    the quantizer's features, or ``voc``, the VOC's value of the row. Unlike ``action_weights``, which they are where
    ``config.trace`` is None, these weights also tell what came after the action, such as which of several policies was
    acting; and the VOC needs no action input. A linear baseline knows less of the row, so that rows of good policies
    weigh more as a whole.

    Raises:
        VOCError: a VOC without value head, another ``trace`` than ``trace_advantages`` takes, or as ``action_weights``.
    """
    config = config or ImprovementConfig()
    if config.trace is None:
        return action_weights(voc, dataset, tokens, config.temperature)
    codes, features = _tokens_of(voc, dataset, tokens)
    parts, rows = torch.arange(len(codes)).split(ROWS_AT_ONCE), going_rows(dataset)
    values = np.concatenate([voc.value_of_codes(codes[some], features[some]).mean for some in parts])
    advantages = trace_advantages(dataset, values, voc.gamma, config.trace)
    if config.baseline == "linear":
        advantages = linear_residual(advantages + values, features, rows)
    return advantage_weights(advantages, rows, config.temperature)


def weighted_clone(
    voc: VOC, dataset: Episodes, tokens: Tokens, config: ImprovementConfig | None = None, seed: int = 0
) -> OfflineAgent:
    """Advantage-weighted regression (Peng et al. 2019) with ``row_weights`` of ``voc``.

    Raises:
        VOCError: as ``row_weights``.
    """
    config = config or ImprovementConfig()
    weights = row_weights(voc, dataset, tokens, config)
    size = dataset.action.shape[1]
    agent = OfflineAgent(dataset.observation_shape, size, config.agent, voc.quantizer, seed, name="voc_awr")
    return agent.learn(dataset, partial(Cloning, weights=weights), tokens)


def policy_voc(
    agent: OfflineAgent, dataset: Episodes, tokens: Tokens, voc: VOC,
    config: ImprovementConfig | None = None, seed: int = 0,
) -> VOC:  # fmt: skip
    """Evaluate: a VOC of the futures of an action, ``agent`` acting after it, on the agent's stitched chain of rows.

    ``seed``: of the chain and, in place of ``config.voc.seed``, of the networks.

    Raises:
        VOCError: tokens that are not those of the rows.
    """
    codes, features = _tokens_of(voc, dataset, tokens)
    config = config or ImprovementConfig()
    rng = np.random.default_rng([seed, 89])
    drawn = policy_actions([agent], dataset, config.draws, rng)[0]
    candidates = find_candidates(dataset, features.to(device_of(voc.occupancy)))
    chain: StitchedChain = stitch(candidates, drawn, dataset.terminal, rng)
    networks = replace(config.voc, seed=seed)
    return train_action_voc(
        dataset, config.training, networks, chain, quantizer=voc.quantizer, tokens=(codes, features)
    )


def _tokens_of(voc: VOC, dataset: Episodes, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Codes and features of the rows as tensors, features of width 0 of a quantizer that has none."""
    codes, features = known_tokens(tokens, voc.quantizer, dataset, needs_features=False)
    if voc.quantizer.feature_dim:
        check_features(voc.quantizer, (codes, features))
    return codes, torch.zeros(len(codes), 0, device=codes.device) if features is None else features
