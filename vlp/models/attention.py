"""Scaled dot-product attention, by the kernel that is fastest on the device at hand."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def use_fused_kernel(device: torch.device) -> bool:
    """Whether PyTorch's fused attention is the faster choice on `device`.

    On CPU its backward pass at the short sequences of this field loses to two plain matrix products
    (docs/benchmarks.md shows the measurement); on accelerators it wins and saves memory.
    """
    return device.type != "cpu"


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(head_dim) + bias) value (Vaswani et al. 2017, equation 1).

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, heads, keys, head_dim].
        bias: added to the scores, broadcastable to [batch, heads, queries, keys]; -inf forbids a pair.
        dropout: probability of dropping an attention weight; pass 0 outside training.

    Returns:
        [batch, heads, queries, head_dim], in the dtype of `value`.
    """
    if use_fused_kernel(query.device):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scores = (query * (1.0 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)  # [batch, heads, queries, keys]
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return weights @ value
