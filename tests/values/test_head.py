"""Values by the value head: its members' spread in one pass, and what it says of sampled codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer, ValueHead
from voc_rl.occupancy.discounts import discount_condition
from voc_rl.values import by_head, tail_by_head

GAMMA = 0.8


def networks(feature_dim: int = 0, gammas: tuple[float, float] | None = None) -> tuple[OccupancyTransformer, ValueHead]:
    torch.manual_seed(0)
    model = OccupancyTransformer(OccupancyConfig(5, 2, feature_dim, gammas=gammas, n_layer=1, n_head=2, width=8))
    head = ValueHead(8, feature_dim, hidden=4, members=3)
    for parameter in (*model.parameters(), *head.parameters()):
        torch.nn.init.normal_(parameter)
    return model.eval(), head.eval()


@pytest.mark.parametrize(("feature_dim", "gammas"), [(0, None), (3, None), (3, (0.5, 0.9))])
def test_mean_and_spread_of_the_members(feature_dim: int, gammas: tuple[float, float] | None) -> None:
    model, head = networks(feature_dim, gammas)
    codes = torch.tensor([[0, 1], [4, 2], [3, 3]])
    features = torch.randn(3, feature_dim) if feature_dim else None
    condition = discount_condition(model, GAMMA, 3)
    found = by_head(model, head, codes, features, condition, GAMMA, level=0.5)
    with torch.no_grad():
        members = 5 * head(model.prefix(codes, features, condition=condition).last, features).numpy()
    np.testing.assert_allclose(found.mean, members.mean(1), rtol=1e-4)
    spread = members.std(1, ddof=1) * (1 + 1 / members.shape[1]) ** 0.5
    np.testing.assert_allclose(found.stderr, spread, rtol=1e-4)
    assert np.ptp(found.mean) > 0.1
    np.testing.assert_allclose(found.high - found.mean, 0.816497 * found.stderr, rtol=1e-4)  # Student's, 2 degrees


@pytest.mark.parametrize(("feature_dim", "gammas"), [(0, None), (3, (0.5, 0.9))])
def test_many_states_are_asked_in_parts(
    feature_dim: int, gammas: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, head = networks(feature_dim, gammas)
    codes, features = torch.randint(5, (7, 2)), torch.randn(7, feature_dim) if feature_dim else None
    condition = discount_condition(model, GAMMA, 7)
    whole = by_head(model, head, codes, features, condition, GAMMA)
    asked: list[int] = []
    last = model.last
    monkeypatch.setattr("voc_rl.values.head.ROWS_AT_ONCE", 3)
    monkeypatch.setattr(model, "last", lambda context, *rest: (asked.append(len(context)), last(context, *rest))[1])
    parts = by_head(model, head, codes, features, condition, GAMMA)
    assert asked == [3, 3, 1]
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.stderr, whole.stderr, rtol=1e-4)


def test_tails_are_values_of_codes_without_features() -> None:
    model, head = networks(gammas=(0.5, 0.9))
    codes = torch.tensor([[0, 1], [4, 2], [3, 3]])
    condition = discount_condition(model, 0.9, 3)
    tail = tail_by_head(model, head, 0.95)
    assert tail is not None
    with torch.no_grad():
        found = tail(codes, condition).numpy()
    # mean reward of what the head knows, for the horizon of the discount that is asked
    np.testing.assert_allclose(found, 2 * by_head(model, head, codes, None, condition, 0.9).mean, rtol=1e-4)
    assert tail_by_head(model, None, 0.95) is None
    assert tail_by_head(*networks(feature_dim=3), 0.95) is None
