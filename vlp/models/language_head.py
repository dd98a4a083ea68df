"""The language head: vocabulary logits of the decoder's states, and LM's loss without ever holding all of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config import TextTowerConfig
from vlp.models.initialise import initialise
from vlp.models.packed import times
from vlp.precision import product_dtype

NOT_COUNTED = -100  # the target of a word that is padding or given
LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


class LanguageHead(nn.Module):
    """Hidden states to vocabulary logits, tied to the word embeddings (BERT's prediction head)."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.product = F.linear  # `pack_linears` puts a faster one here
        initialise(self, config.width)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """hidden [..., width], words [vocabulary, width] (the word embeddings) -> logits [..., vocabulary]."""
        return self.product(self._transformed(hidden), words, self.bias)

    def loss(self, hidden: Tensor, words: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Summed cross-entropy with label smoothing (0.1 in BLIP; Szegedy et al. 2016, section 7), float32 scalar.

        Args:
            hidden: [rows, width].
            words: [vocabulary, width], the word embeddings.
            targets: int64 [rows]; rows whose target is `NOT_COUNTED` add nothing.
            smoothing: the share of the target that is spread over the vocabulary.
        """
        return _ChunkedLoss.apply(self._transformed(hidden), words, self.bias, targets, smoothing)

    def _transformed(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(hidden)))


class _ChunkedLoss(torch.autograd.Function):
    """The loss chunk by chunk, each with its gradients at once: what is kept for the backward pass are these, which
    are no larger than states and weights, and not the logits, which are."""

    @staticmethod
    def forward(context: Any, states: Tensor, words: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        dtype = product_dtype(states)
        rows, weight = states.to(dtype), words.to(dtype)
        total = torch.zeros((), device=states.device)
        trained = any(context.needs_input_grad[:3])
        for_rows = torch.empty_like(rows) if trained else None
        for_words, for_bias = (torch.zeros(one.shape, device=one.device) if trained else None for one in (words, bias))
        step = max(1, LOGITS_AT_ONCE // len(words))
        for start in range(0, len(rows), step):
            some, target = rows[start : start + step], targets[start : start + step]
            counted, target = (target != NOT_COUNTED)[:, None], target.clamp(min=0)[:, None]  # [some, 1]
            logits = times(some, weight.T).float() + bias.float()  # [some, vocabulary]
            sums = logits.logsumexp(dim=1, keepdim=True)
            right = (1 - smoothing) * logits.gather(1, target) + smoothing * logits.mean(dim=1, keepdim=True)
            total += ((sums - right) * counted).sum()
            if trained:
                gradient = logits.sub_(sums).exp_().sub_(smoothing / len(words))
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
                gradient.mul_(counted)
                for_bias += gradient.sum(dim=0)
                gradient = gradient.to(dtype)
                for_rows[start : start + step] = times(gradient, weight)
                for_words += times(gradient.T, some)
        if trained:
            context.save_for_backward(for_rows, for_words, for_bias)
            context.dtypes = [one.dtype for one in (states, words, bias)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        made = zip(context.saved_tensors, context.dtypes, strict=True)
        return (*((one * gradient).to(dtype) for one, dtype in made), None, None)
