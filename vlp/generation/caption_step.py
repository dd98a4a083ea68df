"""One decoding step of a BLIP model: the logits of the next token, from the image memory and a self-attention cache."""

from torch import Tensor

from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory, SelfAttentionCache


class CaptionStepper:
    """The `Stepper` of a BLIP model: decodes against images that were projected once."""

    def __init__(self, blip: Blip, memory: ImageMemory, max_length: int):
        """Start with an empty cache.

        Args:
            memory: the image memory for the decoder; one image for each group of rows.
            max_length: tokens that the cache has room for, the prompt's included.
        """
        self.blip = blip
        self.memory = memory
        self.cache = SelfAttentionCache(blip.config.text_tower.layers, max_length)

    def step(self, new: Tensor) -> Tensor:
        """New tokens int64 [rows, new] -> logits [rows, vocabulary] of each row's next token."""
        hidden = self.blip.text_tower.decode(new, None, self.memory, cache=self.cache)  # [rows, new, width]
        return self.blip.word_logits(hidden[:, -1])

    def select(self, rows: Tensor, groups: Tensor | None) -> None:
        """Keep `rows` of the cache, in this order, and the images of `groups` (None: all)."""
        self.cache.select(rows)
        if groups is not None:
            self.memory = self.memory.select(groups)
