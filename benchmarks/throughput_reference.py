"""The public code's way with Hugging Face's GPT-2: one ``generate`` call per sample, training targets for everybody."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voc_rl.occupancy import OccupancyConfig, OccupancyTransformer


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("The reference is Hugging Face's GPT-2: pip install 'voc_rl[benchmarks]'.") from error
    transformers.logging.set_verbosity_error()
    return transformers


class Reference:
    """A GPT-2 with random weights of the sizes of ``config``, in float32 as the public code runs it.

    Dropout only in training: .2, in attention .1, as the public code has it.
    """

    def __init__(self, config: OccupancyConfig, device: torch.device) -> None:
        transformers = _transformers()
        gpt2 = transformers.GPT2Config(
            vocab_size=config.codebook_size, n_positions=2 * config.n_tokens, n_layer=config.n_layer,
            n_head=config.n_head, n_embd=config.width, bos_token_id=0, eos_token_id=None, pad_token_id=None,
            resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.1,
        )  # fmt: skip
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.model = transformers.GPT2LMHeadModel(gpt2).eval().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.1)

    def in_bfloat16(self) -> Reference:
        """The same network to sample from, its weights in bfloat16."""
        low = copy.copy(self)
        low.model = copy.deepcopy(self.model).to(torch.bfloat16)
        return low

    def ours(self, folder: Path) -> OccupancyTransformer:
        """Our network with the same weights, through the file that the public code would have saved."""
        path = folder / "gpt2.pt"
        torch.save(self.model.state_dict(), path)
        # of all codes, as our own models sample; the reference takes the 50 likeliest, as the public code does
        model = OccupancyTransformer.from_published(path, self.config.n_head, self.config.n_tokens, top_k=None)
        return model.to(self.device)

    @torch.no_grad()
    def sample(self, context: Tensor, codes: int | None = None) -> Tensor:
        """One future of each context int64 (B, n_tokens): (B, codes or n_tokens), the 50 likeliest codes at each place
        (Hugging Face's default)."""
        new = codes or self.config.n_tokens
        whole = self.model.generate(
            context, attention_mask=torch.ones_like(context), max_new_tokens=new, min_new_tokens=new, do_sample=True,
            top_k=50, pad_token_id=0,
        )  # fmt: skip
        return whole[:, context.shape[1] :]

    def step(self, context: Tensor, following: Tensor, gamma: float) -> Tensor:
        """One training step: sampled futures of what follows for the whole batch, of which 1 - gamma are thrown away;
        loss on all codes, context's too. Returns the loss."""
        sampled = self.sample(following)
        real = torch.rand(len(context), 1, device=context.device) < 1 - gamma
        ids = torch.cat([context, torch.where(real, following, sampled)], 1)
        self.model.train()
        loss = self.model(ids, labels=ids).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.eval()
        return loss.detach()
