"""What a block computes between its products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small import generator

from voc_rl.occupancy.blocks import gelu


def test_gelu_is_gpt2s_and_in_bfloat16_as_near_to_it_as_pytorchs() -> None:
    x = 2 * torch.randn(1 << 18, generator=generator(), dtype=torch.float64)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(gelu(x.float()).double(), expected, atol=1e-6, rtol=1e-5)
    low = x.bfloat16()
    found, plain = (F.mse_loss(y.double(), expected).sqrt() for y in (gelu(low), F.gelu(low, approximate="tanh")))
    assert found < 1.01 * plain < 0.01  # both by what bfloat16 rounds
    assert (gelu(low).double() - F.gelu(low.double(), approximate="tanh")).abs().max() < 5e-4 + 2**-8 * x.abs().max()
