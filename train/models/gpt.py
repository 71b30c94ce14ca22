"""A decoder-only transformer."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from train.chunked_loss import Head, TokenLoss
from train.models import ModelError


class GPT(nn.Module):
    """Rotary positions, pre-norm, no biases, no dropout, the embedding tied to the last layer.

    tokens (samples, T) -> logits (samples, T, vocabulary). `width` is a multiple of 2 * heads.
    `documents` (samples, T): the number of each token's document; no token sees another one. With
    `loss`, its sum in place of the logits.
    """

    def __init__(self, vocabulary: int, layers: int = 4, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        if width % (2 * heads):
            nearest = 2 * heads * max(1, round(width / (2 * heads)))
            raise ModelError(
                f"model.args: width={width} is no multiple of 2 * heads={2 * heads}: rotary "
                f"positions rotate pairs. Set: model.args.width={nearest}"
            )
        self.pairs = width // heads // 2
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        # As in GPT-2: what is added to the residual stream, 2 * layers times, starts smaller.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_added = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * layers) if is_added else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(
        self, tokens: Tensor, documents: Tensor | None = None, loss: TokenLoss | None = None
    ) -> Tensor:
        # Once for all blocks, as the angles: they depend on the position and the document alone.
        mask = None if documents is None else same_document(documents)
        x = self.embedding(tokens)
        angles = rotations(tokens.shape[1], self.pairs, x)
        for block in self.blocks:
            x = block(x, angles, mask)
        # In here and not in the task, so that DDP, FSDP2, autocast and compile see the last layer
        # used where they expect it (memory.chunked_loss).
        if loss is not None:
            return loss(self.norm(x), Head(self.embedding.weight))
        return linear(self.norm(x), self.embedding.weight)


class Block(nn.Module):
    """Attention, then a feed-forward network of four times the width, each with a residual."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.feed_forward_norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        split = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        # each (samples, heads, T, width of a head)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        # With a mask is_causal has to be false, else torch raises: the mask of documents is causal
        # itself.
        attended = scaled_dot_product_attention(
            rotate(query, angles),
            rotate(key, angles),
            value,
            attn_mask=mask,
            is_causal=mask is None,
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.feed_forward_norm(x))))


def rotations(length: int, pairs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of each position and pair: (T, pairs).

    Source: RoFormer, Su et al. 2021, arXiv:2104.09864. Computed in each forward pass: a buffer
    would be cast with the model, and broadcast over the ranks.
    """
    # At least float32: bf16 holds whole numbers up to 256 only, so later positions would get the
    # angle of another one.
    wide = torch.promote_types(like.dtype, torch.float32)
    pair = torch.arange(pairs, device=like.device, dtype=wide)
    position = torch.arange(length, device=like.device, dtype=wide)
    angles = position[:, None] * 10_000.0 ** (-pair / pairs)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x[i], x[i + pairs]) by the angle of their position; `angles`: rotations."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    # Computed in the type of the angles, float32 or wider. Attention takes query, key and value in
    # one type, so the result goes back to that of x.
    rotated = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return rotated.to(x.dtype)


def same_document(documents: Tensor) -> Tensor:
    """(samples, 1, T, T): whether a token may see another, an earlier one of its own document."""
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()
