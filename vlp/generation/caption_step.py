"""What `generate` asks of a network: the decoder's next words, step by step, from the image memory and a cache."""

from torch import Tensor

from vlp.generation.decode import CaptionStepper
from vlp.models.blip import Blip
from vlp.models.text_tower import ImageMemory, SelfAttentionCache


def caption_stepper(blip: Blip, memory: ImageMemory, max_length: int) -> CaptionStepper:
    """What `generate` needs of a network: its decoder against images that were projected once, for the decoder."""
    past = SelfAttentionCache(blip.config.text_tower.layers, max_length)

    def step(new: Tensor) -> Tensor:
        hidden = blip.text_tower.decode(new, None, memory, cache=past)  # [rows, new, width]
        return blip.word_logits(hidden[:, -1])

    def select(rows: Tensor, groups: Tensor | None) -> None:
        nonlocal memory
        past.select(rows)
        if groups is not None:
            memory = memory.select(groups)

    return CaptionStepper(step, select)
