"""Modules that see continuous features in standard deviations of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SeesFeatures(nn.Module):
    """Holds mean and spread of the features of the training data, which its subclasses read standardised."""

    feature_mean: Tensor
    feature_std: Tensor

    def hold_features(self, size: int) -> None:
        """Make room for mean and spread of ``size`` features; until ``fit_features`` they are 0 and 1."""
        self.register_buffer("feature_mean", torch.zeros(size))
        self.register_buffer("feature_std", torch.ones(size))

    def fit_features(self, features: Tensor) -> None:
        """Take mean and spread of float (N, F)."""
        self.feature_mean.copy_(features.float().mean(0))
        self.feature_std.copy_(features.float().std(0).clamp(min=1e-4))

    def standard(self, features: Tensor) -> Tensor:
        """Features (B, F) in standard deviations from the mean, float32."""
        return (features.float() - self.feature_mean) / self.feature_std
