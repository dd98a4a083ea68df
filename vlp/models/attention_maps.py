"""Attention weights of a network and the gradients of a score with respect to them.

Fast attention never forms its weights. Forward hooks keep its inputs and its output O = A V instead. The weights A
follow from queries and keys, and their gradient dA = dO V^T follows from that of the output. So every kernel stays in
use, and layers without a hook cost nothing more.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory
from vlp.models.text_layers import Layer


@dataclass
class AttentionCall:
    """Inputs and output of one call of an attention, as in `vlp.models.text_layers.Attention`."""

    query: Tensor  # [batch, heads, queries, head_dim]
    key: Tensor  # [batch, heads, keys, head_dim]
    value: Tensor
    bias: Tensor | None
    output: Tensor  # [batch, heads, queries, head_dim]

    def weights(self) -> Tensor:
        """softmax(query key^T / sqrt(head_dim) + bias): float32 [batch, heads, queries, keys]."""
        query, key = self.query.detach().float(), self.key.detach().float()
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return (scores if self.bias is None else scores + self.bias).softmax(dim=-1)

    def weight_gradients(self, gradient: Tensor) -> Tensor:
        """From the gradient of the output, [batch, heads, queries, head_dim], that of `weights`."""
        return gradient.float() @ self.value.detach().float().transpose(-1, -2)


@contextmanager
def watching(attentions: Sequence[nn.Module]) -> Iterator[list[list[AttentionCall]]]:
    """Keep the calls of attentions in the block; yields a list for each. Compiled layers run uncompiled."""
    calls: list[list[AttentionCall]] = [[] for _ in attentions]

    def keep(number: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            query, key, value, bias = inputs
            if torch.is_grad_enabled() and not output.requires_grad:  # all weights are frozen
                output.requires_grad_()
            calls[number].append(AttentionCall(query, key, value, bias, output))

        return hook

    handles = [one.register_forward_hook(keep(number)) for number, one in enumerate(attentions)]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled layer would not call the hooks
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def match_gradcam(
    blip: Blip,
    ids: Tensor,
    mask: Tensor,
    memory: ImageMemory,
    layers: Sequence[int],
    image_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grad-CAM of the ITM logit of "match" on cross-attention (ALBEF, Li et al. 2021, section 4.4).

    A text's logit depends only on its own attention, so all texts of a call share one backward pass.

    Args:
        ids, mask, memory, image_index: as in `Blip.match_logits`; the network is in evaluation mode.
        layers: numbers of layers of the text tower, from 0.

    Returns:
        The logits [texts, 2], and the weights times their gradients, with negative values cut to 0: float32
        [layers, texts, heads, tokens, image tokens].
    """
    stack = cast(Sequence[Layer], blip.text_tower.layers)
    attentions = [stack[number].cross_attention.side("encoder").attention for number in layers]
    with torch.enable_grad(), watching(attentions) as calls:
        logits = blip.match_logits(ids, mask, memory, image_index)
        watched = [one[0] for one in calls]
        gradients = torch.autograd.grad(logits[:, 1].sum(), [one.output for one in watched])
    parts = []
    for call, gradient in zip(watched, gradients, strict=True):
        relevance = (call.weights() * call.weight_gradients(gradient)).clamp(min=0)
        # All texts of an image form one row of queries: [images, heads, texts per image x tokens, image tokens].
        relevance = relevance.unflatten(2, (-1, ids.shape[1])).transpose(1, 2)
        parts.append(relevance.flatten(0, 1))  # [texts, heads, tokens, image tokens]
    return logits.detach(), torch.stack(parts)
