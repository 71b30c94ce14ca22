"""A decoder-only transformer."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from train.chunked_loss import Head, TokenLoss
from train.models import ModelError


class GPT(nn.Module):
    """Rotary positions, pre-norm, no biases, no dropout, the embedding used again as the last
    layer.

    tokens (samples, T) -> logits (samples, T, vocabulary). With `documents` (samples, T), a number
    for the document that each token belongs to, no token sees another document. `width` is a
    multiple of 2 * heads. With `loss`, its sum in place of the logits.
    """

    def __init__(self, vocabulary: int, layers: int = 4, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ModelError(
                f"model.args: width={width} is no multiple of 2 * heads={2 * heads}: rotary "
                "positions turn pairs. Set: "
                f"model.args.width={2 * heads * max(1, round(width / (2 * heads)))}"
            )
        self.pairs = width // heads // 2
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        for name, parameter in self.named_parameters():
            # what is added to the residual stream starts smaller, as in GPT-2
            if parameter.dim() == 2:
                added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if added else 0.02)

    def forward(
        self, tokens: Tensor, documents: Tensor | None = None, loss: TokenLoss | None = None
    ) -> Tensor:
        mask = None if documents is None else same_document(documents)
        x = self.embedding(tokens)
        turns = rotations(tokens.shape[1], self.pairs, x)
        for block in self.blocks:
            x = block(x, turns, mask)
        if loss is not None:
            return loss(self.norm(x), Head(self.embedding.weight))
        return linear(self.norm(x), self.embedding.weight)


class Block(nn.Module):
    """Attention, then a feed-forward network of four times the width; each adds to the stream."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        split = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        # each (samples, heads, T, width of a head)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = turn(query, turns), turn(key, turns)
        seen = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.feed_forward_norm(x))))


def rotations(length: int, half: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position and pair: (T, half). Source: RoFormer, Su et al., 2021,
    2104.09864.

    Computed in each forward pass: a buffer would be cast with the model, and broadcast over the
    ranks.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.arange(half, device=like.device, dtype=wide)
    positions = torch.arange(length, device=like.device, dtype=wide)
    angles = positions[:, None] * 10_000.0 ** (-pairs / half)
    return angles.cos(), angles.sin()


def turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x[i], x[i + half]) by the angle of their position."""
    (cos, sin), (first, second) = turns, x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def same_document(documents: Tensor) -> Tensor:
    """(samples, 1, T, T): whether a token may see another, an earlier one of its own document."""
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()
