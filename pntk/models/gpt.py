"""Decoder-only language model."""

import torch
from torch import Tensor, nn

from pntk.errors import DataError
from pntk.models.transformer import Block


class GPT(nn.Module):
    """Causal transformer that predicts the next token at each position.

    Args:
        vocab_size: Number of tokens.
        context: Longest sequence.
        dim: Width of the residual stream, a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads of each block.
        tie_weights: Let ``head.weight`` be ``tok_emb.weight``, one parameter used twice.

    Raises:
        ConfigError: ``dim`` is no multiple of ``heads``.

    Source:
        Radford et al. (2019), "Language models are unsupervised multitask learners". Tying:
        Press and Wolf (2017), "Using the output embedding to improve language models".

    Example:
        >>> import torch
        >>> model = GPT(vocab_size=50, context=8, dim=16, depth=1, heads=2)
        >>> model(torch.zeros(5, 8, dtype=torch.long)).shape
        torch.Size([5, 8, 50])
    """

    def __init__(
        self,
        vocab_size: int,
        context: int = 128,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        self.context = context
        self.tok_emb = nn.Embedding(vocab_size, dim)
        self.pos_emb = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        # The default unit variance would give tied logits a standard deviation of sqrt(dim).
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb.weight, std=0.02)
        if tie_weights:
            self.head.weight = self.tok_emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [b, t] to next-token logits [b, t, vocab_size].

        Raises:
            DataError: t is above ``context``.
        """
        length = ids.shape[1]
        if length > self.context:
            raise DataError(
                f"the sequence has {length} tokens, but the context is {self.context}: "
                f"cut it to {self.context}, or build the model with context={length}"
            )
        positions = torch.arange(length, device=ids.device)[None]  # [1, t]
        x = self.blocks(self.tok_emb(ids) + self.pos_emb(positions))
        logits: Tensor = self.head(self.norm(x))
        return logits
