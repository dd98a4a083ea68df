"""LM: the caption, word for word, given its image. Shared by pretraining and captioning."""

import torch
from torch import Tensor

from vlp.distributed import all_sum, world_size
from vlp.models.blip import Blip
from vlp.models.text_tower import ImageMemory


def caption_loss(
    model: Blip, ids: Tensor, mask: Tensor, memory: ImageMemory, dec_id: int, smoothing: float, prompt_length: int = 0
) -> Tensor:
    """LM loss (paper, section 3.2): mean over the words of all ranks, such that ranks' values average to it.

    Args:
        ids, mask: int64 and bool [batch, tokens]; the first token is replaced by [DEC].
        memory: the image memory of the batch, for decoding.
        smoothing: label smoothing.
        prompt_length: how many words after the first token are given and not predicted.
    """
    ids = ids.clone()
    ids[:, 0] = dec_id
    hidden = model.text_tower.decode(ids[:, :-1], mask[:, :-1], memory)  # [batch, tokens - 1, width]
    counted = mask[:, 1:].clone()
    counted[:, :prompt_length] = False
    words = all_sum(counted.sum().float()).clamp(min=1)
    # The vocabulary is large, so logits are computed only for the words that count.
    total = model.word_loss(hidden[counted], ids[:, 1:][counted], smoothing)
    return total * world_size() / words


def freeze(modules: list[torch.nn.Module]) -> None:
    """Take modules that a task never runs out of training, as DDP asks that every trained weight gets a gradient."""
    for module in modules:
        module.requires_grad_(False)
