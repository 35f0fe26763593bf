"""Attention of new tokens to the keys and values of a plan (`core/cache.py`).

Shapes are in the letters of `core/model.py`: B rows, T new tokens, S tokens present, H heads, Dh head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.core.cache import Plan, causal_mask


def attend(q: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float) -> Tensor:
    """q: [B, H, T, Dh], keys and values: [B, H, S, Dh] -> [B, T, H * Dh]"""
    rows, heads, tokens, width = q.shape
    if not plan.pieces:
        attended = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=plan.mask, is_causal=plan.causal, scale=scale
        )
        return attended.transpose(1, 2).reshape(rows, tokens, heads * width)
    pieces, start = [], 0
    for mask in plan.pieces:
        length, seen = mask.shape
        piece = F.scaled_dot_product_attention(
            q.narrow(2, start, length),
            keys.narrow(2, 0, seen),
            values.narrow(2, 0, seen),
            attn_mask=mask,
            scale=scale,
        )
        pieces.append(piece.transpose(1, 2))
        start += length
    return torch.cat(pieces, dim=1).view(rows, tokens, heads * width)


def attention_weights(q: Tensor, keys: Tensor, plan: Plan, scale: float) -> Tensor:
    """The softmax of the scaled scores, [B, H, T, S]: what the fused kernel does not hand out."""
    scores = q @ keys.transpose(-1, -2) * scale
    mask = plan.mask
    if plan.causal:
        mask = causal_mask(q.shape[2], 0, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)
