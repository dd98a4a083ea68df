"""The language head: vocabulary logits of the decoder's states, and LM's loss without holding all of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlp.config import TextTowerConfig
from vlp.models.initialise import initialise

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
        states = self._transformed(hidden)
        step = max(1, LOGITS_AT_ONCE // len(words))
        if len(states) <= step:
            return self._loss(states, words, targets, smoothing)
        # Chunk by chunk, whose logits are made again in the backward pass: 0.2% of the products of a ViT-B/16's step.
        total = torch.zeros((), device=states.device)
        for chunk in zip(states.split(step), targets.split(step), strict=True):
            arguments = (chunk[0], words, chunk[1], smoothing)
            total = total + checkpoint(self._loss, *arguments, use_reentrant=False, preserve_rng_state=False)
        return total

    def _loss(self, states: Tensor, words: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        logits = self.product(states, words, self.bias).float()  # [rows, vocabulary]
        return F.cross_entropy(logits, targets, ignore_index=NOT_COUNTED, reduction="sum", label_smoothing=smoothing)

    def _transformed(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(hidden)))
