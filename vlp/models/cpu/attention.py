"""Scaled dot-product attention, by the kernel that is fastest on the device at hand."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.cpu.dropout import dropout

MOST = 2**20  # pairs of a query and a key; a matrix of more scores would take too much memory
MANY = 64  # queries; from here on turning the keys pays


def use_fused_kernel(device: torch.device, dtype: torch.dtype, queries: int, keys: int) -> bool:
    """Whether PyTorch's fused attention is the better choice for so many queries and keys.

    On a CPU in bf16 it loses to two plain matrix products, most of all for short texts and where gradients follow;
    elsewhere it wins (`vlp bench attention` measures it, docs/benchmarks.md shows it).
    """
    return device.type != "cpu" or dtype != torch.bfloat16 or queries * keys > MOST


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropping: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(head_dim) + bias) value (Vaswani et al. 2017, equation 1).

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, heads, keys, head_dim].
        bias: added to the scores, broadcastable to [batch, heads, queries, keys]; -inf forbids a pair.
        dropping: probability of dropping an attention weight; pass 0 outside training.

    Returns:
        [batch, heads, queries, head_dim], in the dtype of `value`.
    """
    fused = use_fused_kernel(query.device, query.dtype, query.shape[2], key.shape[2])
    return (fused_attention if fused else plain_attention)(query, key, value, bias, dropping)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropping: float) -> Tensor:
    """`attend` by PyTorch's own kernel."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropping)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropping: float) -> Tensor:
    """`attend` by two matrix products."""
    # In one piece each, keys already turned: the product of views is three times as slow where queries are many.
    query, value = (query * (1.0 / math.sqrt(query.shape[-1]))).contiguous(), value.contiguous()
    key = key.transpose(-1, -2)  # [batch, heads, head_dim, keys]
    scores = query @ (key.contiguous() if query.shape[2] >= MANY else key)  # [batch, heads, queries, keys]
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)  # computed in float32 whatever goes in and comes out
    return dropout(weights, dropping) @ value
