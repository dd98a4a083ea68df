"""The language head: vocabulary logits of the decoder's states, tied to the word embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import TextTowerConfig
from vlp.losses.language import language_loss
from vlp.models.initialise import initialise


class LanguageHead(nn.Module):
    """BERT's prediction head: a dense layer, GELU and LayerNorm, then the product with the word embeddings."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        initialise(self, config.width)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """hidden [..., width], words [vocabulary, width] (the word embeddings) -> logits [..., vocabulary]."""
        return self.logits(self._transformed(hidden), words)

    def loss(
        self, hidden: Tensor, words: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None = None
    ) -> Tensor:
        """`language_loss` of hidden [rows, width] against targets int64 [rows]; `words` as in `forward`."""
        states = self._transformed(hidden)
        return language_loss(states, targets, lambda some: self.logits(some, words), len(words), smoothing, weights)

    def logits(self, states: Tensor, words: Tensor) -> Tensor:
        """The product alone: transformed states [..., width] -> logits [..., vocabulary]."""
        return F.linear(states, words, self.bias)

    def _transformed(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(hidden)))
