"""Reading contexts: less work where only the last output is asked for, and the same numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from voc_rl.errors import VOCError
from voc_rl.occupancy import Condition, OccupancyConfig, OccupancyTransformer

TOKENS, CODES = 3, 5


def network(tokens: int = TOKENS, **changed: Any) -> OccupancyTransformer:
    """A network with features and actions, and weights large enough that every input matters."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"feature_dim": 4, "action_dim": 2, "n_layer": 2, "n_head": 2, "width": 16, **changed}
    model = OccupancyTransformer(OccupancyConfig(CODES, tokens, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_output_alone_is_that_of_the_whole_prefix(layers: int) -> None:
    model = network(n_layer=layers)
    context, features, action = torch.randint(CODES, (6, TOKENS)), torch.randn(6, 4), torch.randn(6, 2)
    found, gradients = [], []
    for last in (
        lambda at: model.last(context, features, at),
        lambda at: model.prefix(context, features, condition=at).last,
    ):
        asked = action.clone().requires_grad_()
        found.append(last(Condition(asked)))
        gradients += torch.autograd.grad(found[-1].square().sum(), asked)
    assert found[0].std(0).mean() > 0.1
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_actions_share_all_places_of_the_context_but_the_last(tokens: int) -> None:
    model = network(tokens, policies=2)
    context, features, actions = torch.randint(CODES, (3, tokens)), torch.randn(3, 4), torch.randn(3, 5, 2)
    each = [model.prefix(context, features, condition=Condition(actions[:, i])) for i in range(5)]
    torch.testing.assert_close(
        model.last_of_actions(context, features, actions), torch.stack([prefix.last for prefix in each], 1)
    )
    for layer in range(model.config.n_layer):
        for one, other in itertools.pairwise(prefix.keys[layer] for prefix in each):
            torch.testing.assert_close(one[:, :, :-1], other[:, :, :-1])
            assert (one[:, :, -1] - other[:, :, -1]).abs().mean() > 0.01
    with pytest.raises(VOCError, match="size 3, but this occupancy network reads 2"):
        model.last_of_actions(context, features, torch.zeros(3, 5, 3))
