"""A network that starts from a trained one: what it learned of the data's own futures serves those of policies."""

from __future__ import annotations

import torch
from torch import nn

from voc_rl.errors import VOCError
from voc_rl.occupancy.transformer import OccupancyTransformer

SIZES = ("codebook_size", "n_tokens", "feature_dim", "gammas", "n_layer", "n_head", "width")
INPUTS = ("action_dim", "policies", "null_context")  # which the trained network may lack


@torch.no_grad()
def start_from(model: OccupancyTransformer, trained: OccupancyTransformer) -> None:
    """Give a fresh ``model`` the weights of ``trained``, in place, so that it says the same of every context.

    Inputs that ``trained`` lacks (actions, policies, null context) have no effect at first: any action of any policy
    has the futures that ``trained`` knows, until ``model`` learns otherwise.

    Raises:
        VOCError: networks of different sizes, or an input of ``trained`` that ``model`` lacks or has in another size.
    """
    own, other = vars(model.config), vars(trained.config)
    wrong = [name for name in SIZES if own[name] != other[name]]
    wrong += [name for name in INPUTS if other[name] and own[name] != other[name]]
    if wrong:
        raise VOCError(
            f"A network with {_said(own, wrong)} cannot start from one with {_said(other, wrong)}; train both with the "
            "same sizes."
        )
    model.load_state_dict(trained.state_dict(), strict=False)
    if own["policies"] and not other["policies"]:
        nn.init.zeros_(model.policies.weight)
    if own["action_dim"] and not other["action_dim"]:
        for parameter in model.actions[-1].parameters():  # the layers before it stay, or nothing would be learned
            nn.init.zeros_(parameter)


def _said(config: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {config[name]}" for name in names)
