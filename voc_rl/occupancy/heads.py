"""The amortised value head: one pass instead of a hundred samples.

It regresses the n-step returns of the same windows that the occupancy network is trained on, from the last output
of the context (and its features). So it *is* an n-step critic that shares the occupancy network's trunk.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voc_rl.errors import VOCError
from voc_rl.occupancy.features import SeesFeatures


class ValueHead(SeesFeatures):
    """An ensemble of small networks: context (B, width) [, features (B, F)] -> (1 - gamma) V, (B, members).

    Each member sees every episode with its own weight (Bayesian bootstrap), so that their spread tells how much the
    value depends on which episodes were logged.
    """

    def __init__(self, width: int, feature_dim: int = 0, hidden: int = 128, members: int = 5) -> None:
        super().__init__()
        self.hidden, self.members = hidden, members
        inputs = width + feature_dim
        self.weight_1 = nn.Parameter(torch.randn(members, inputs, hidden) / inputs**0.5)
        self.bias_1 = nn.Parameter(torch.zeros(members, 1, hidden))
        self.weight_2 = nn.Parameter(torch.randn(members, hidden, hidden) / hidden**0.5)
        self.bias_2 = nn.Parameter(torch.zeros(members, 1, hidden))
        self.weight_3 = nn.Parameter(torch.zeros(members, hidden, 1))
        self.register_buffer("bias_value", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        self.bias_value: Tensor
        self.spread: Tensor
        self.hold_features(feature_dim)

    def fit_rewards(self, mean: float, unit: float) -> None:
        """Start at the mean reward, and measure errors in ``unit`` (``reward_units``).

        Errors stay near one whatever the rewards are: the trunk and the norm at which gradients are cut are shared with
        the codes, whose loss a head of huge errors would drown, and which would drown one of tiny errors.
        """
        self.bias_value.fill_(mean)
        self.spread.fill_(unit)

    def episode_weights(self, episodes: int, rng: np.random.Generator) -> Tensor:
        """Bayesian bootstrap weights float32 (episodes, members), mean one."""
        return torch.from_numpy(rng.exponential(size=(episodes, self.members)).astype(np.float32))

    def forward(self, context: Tensor, features: Tensor | None = None) -> Tensor:
        """The members' values of contexts.

        Raises:
            VOCError: no features, for a head that reads them: it never learned to do without.
        """
        x = context
        if len(self.feature_mean):
            if features is None:
                raise VOCError(
                    "This value head reads features and was given codes alone; give the features too (VOC.context "
                    "returns both), or use estimator='sample'."
                )
            x = torch.cat([context, self.standard(features).to(context.dtype)], 1)
        x = x.expand(self.members, -1, -1)  # (members, B, inputs)
        x = F.gelu(x @ self.weight_1 + self.bias_1)
        x = F.gelu(x @ self.weight_2 + self.bias_2)
        # float32: in bfloat16 the mean reward would swallow the differences between states and actions
        return (x @ self.weight_3)[..., 0].T.float() * self.spread + self.bias_value
