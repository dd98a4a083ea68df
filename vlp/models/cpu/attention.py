"""Scaled dot-product attention by the kernel that is faster on a CPU."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.cpu.dropout import dropout
from vlp.models.image_encoders.layers import DotProduct
from vlp.models.text_layers import Attention

MAX_PAIRS = 2**20  # of a query and a key, in one matrix of scores; a larger one would take too much memory
MANY_QUERIES = 64  # with as many, copying the transposed keys pays


def use_fused_kernel(device: torch.device, dtype: torch.dtype, queries: int, keys: int) -> bool:
    """Whether PyTorch's fused attention is the better choice for so many queries and keys.

    On a CPU in bf16 it loses to two plain matrix products, most of all for short texts and with gradients, for which
    they keep all scores. Otherwise it wins (`vlp bench attention` measures it; docs/benchmarks.md has the numbers).
    """
    keeps_too_much = queries * keys > MAX_PAIRS and torch.is_grad_enabled()
    return device.type != "cpu" or dtype != torch.bfloat16 or keeps_too_much


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropping: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(head_dim) + bias) value (Vaswani et al. 2017, equation 1), by the faster kernel.

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, heads, keys, head_dim].
        bias: added to the scores, broadcastable to [batch, heads, queries, keys]; -inf forbids a pair.
        dropping: the probability of dropping an attention weight; pass 0 outside training.

    Returns:
        [batch, heads, queries, head_dim], in the dtype of `value`.
    """
    fused = use_fused_kernel(query.device, query.dtype, query.shape[2], key.shape[2])
    return (fused_attention if fused else plain_attention)(query, key, value, bias, dropping)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropping: float) -> Tensor:
    """`attend` by PyTorch's own kernel."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropping)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropping: float) -> Tensor:
    """`attend` by two matrix products; without gradients for at most `MAX_PAIRS` pairs of an image at a time."""
    rows = max(1, MAX_PAIRS // key.shape[2])
    if query.shape[2] > rows and not torch.is_grad_enabled():
        starts = range(0, query.shape[2], rows)
        biases = [bias if bias is None or bias.shape[2] == 1 else bias[:, :, start : start + rows] for start in starts]
        parts = zip(query.split(rows, dim=2), biases, strict=True)
        return torch.cat([plain_attention(part, key, value, one, dropping) for part, one in parts], dim=2)
    # Contiguous, with the keys transposed in advance: products of views are three times as slow for many queries.
    query, value = (query * (1.0 / math.sqrt(query.shape[-1]))).contiguous(), value.contiguous()
    key = key.transpose(-1, -2)  # [batch, heads, head_dim, keys]
    scores = query @ (key.contiguous() if query.shape[2] >= MANY_QUERIES else key)  # [batch, heads, queries, keys]
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)  # computed in float32 whatever the dtype
    return dropout(weights, dropping) @ value


class CpuAttention(Attention):
    """The text tower's attention by `attend`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """As in `Attention`."""
        return attend(query, key, value, bias, self.dropout.p if self.training else 0.0)


class CpuDotProduct(DotProduct):
    """The attention of image encoders by `attend`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As in `DotProduct`."""
        return super().forward(query, key, value) if self.is_recording else attend(query, key, value)
