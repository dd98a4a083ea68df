"""LM: cross-entropy over the vocabulary with label smoothing, without holding the logits of all words at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NOT_COUNTED = -100  # the target of a row that adds nothing to the loss
LOGITS_AT_ONCE = 2**25  # 128 MiB in float32
GPU_LOGITS_AT_ONCE = 2**28  # few pieces: a GPU waits for the host that starts their many short kernels


def language_loss(
    states: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    vocabulary: int,
    smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy with label smoothing (0.1 in BLIP; Szegedy et al. 2016, section 7), float32 scalar.

    Args:
        states: [rows, width].
        targets: int64 [rows]; rows whose target is `NOT_COUNTED` add nothing.
        logits: states [n, width] -> logits [n, vocabulary].
        vocabulary: the number of words.
        smoothing: the share of the target that is spread over the vocabulary.
        weights: float [rows] without gradient, of each row's loss; None: 1.
    """

    def loss(some: Tensor, right: Tensor, weight: Tensor | None) -> Tensor:
        scores = logits(some).float()  # [n, vocabulary]
        kind = "sum" if weight is None else "none"
        losses = F.cross_entropy(scores, right, ignore_index=NOT_COUNTED, reduction=kind, label_smoothing=smoothing)
        return losses if weight is None else (losses * weight).sum()

    step = max(1, (GPU_LOGITS_AT_ONCE if states.device.type == "cuda" else LOGITS_AT_ONCE) // vocabulary)
    if len(states) <= step:
        return loss(states, targets, weights)
    # The backward pass computes the logits of each chunk again: 0.2% of the products of a ViT-B/16's training step.
    total = torch.zeros((), device=states.device)
    parts = [None] * -(-len(states) // step) if weights is None else weights.split(step)
    for chunk in zip(states.split(step), targets.split(step), parts, strict=True):
        total = total + checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False)
    return total
