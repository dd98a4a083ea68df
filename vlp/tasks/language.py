"""LM, the loss of predicting a caption token by token from its image; shared by pretraining and captioning."""

import torch
from torch import Tensor

from vlp.data.batch import Batch
from vlp.distributed import all_sum, world_size
from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory
from vlp.models.padding import true_places


def caption_loss(
    model: Blip, batch: Batch, memory: ImageMemory, dec_id: int, smoothing: float, prompt_length: int = 0
) -> Tensor:
    """The LM loss (paper, section 3.2): the mean over the tokens of all processes is the mean of the returned values.

    Args:
        batch: the first token of each caption is replaced by [DEC].
        memory: the image memory of the batch, for decoding.
        smoothing: label smoothing.
        prompt_length: how many tokens after the first one are given and not predicted.
    """
    ids, mask = batch.text_ids.clone(), batch.text_mask
    ids[:, 0] = dec_id
    tokens = batch.tokens(last=ids.shape[1] - 1)
    # [texts, tokens - 1, width]
    hidden = model.text_tower.decode(ids[:, :-1], mask[:, :-1], memory, batch.image_index, count=tokens)
    counted = mask[:, 1:].clone()
    counted[:, :prompt_length] = False
    words = all_sum(counted.sum().float()).clamp(min=1)
    # The vocabulary is large, so logits are computed only for the words that count.
    predicted = batch.tokens(first=1 + prompt_length)
    places = true_places(counted.flatten(), int(counted.sum()) if predicted is None else predicted)
    total = model.word_loss(hidden.flatten(0, 1)[places], ids[:, 1:].flatten()[places], smoothing)
    return total * world_size() / words


def freeze(modules: list[torch.nn.Module]) -> None:
    """Freeze modules that a task never runs. DDP requires a gradient for every trained weight."""
    for module in modules:
        module.requires_grad_(False)
