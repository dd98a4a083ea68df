"""LM, the loss of predicting a caption token by token from its image; shared by pretraining and captioning."""

import torch
from torch import Tensor

from vlp.data.batch import Batch
from vlp.distributed import all_sum, world_size
from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory
from vlp.models.text_rows import TextUse, true_places


def caption_use(batch: Batch, memory: ImageMemory, dec_id: int) -> TextUse:
    """What the decoder reads: all tokens of each caption but the last, the first replaced by [DEC].

    Args:
        memory: the image memory of the batch, for decoding.
    """
    ids, mask = batch.text_ids.clone(), batch.text_mask
    ids[:, 0].fill_(dec_id)
    tokens = batch.tokens(last=ids.shape[1] - 1)
    return TextUse(ids[:, :-1], mask[:, :-1], "decoder", memory, batch.image_index, count=tokens)


def caption_loss(model: Blip, batch: Batch, states: Tensor, smoothing: float, prompt_length: int = 0) -> Tensor:
    """The LM loss (paper, section 3.2): the mean over the tokens of all processes is the mean of the returned values.

    Args:
        states: of `caption_use`, [texts, tokens - 1, width].
        smoothing: label smoothing.
        prompt_length: how many tokens after the first one are given and not predicted.
    """
    counted = batch.text_mask[:, 1:].clone()
    counted[:, :prompt_length].fill_(False)
    words = all_sum(counted.sum().float()).clamp(min=1)
    # The vocabulary is large, so logits are computed only for the words that count.
    predicted = batch.tokens(first=1 + prompt_length)
    places = true_places(counted.flatten(), int(counted.sum()) if predicted is None else predicted)
    targets = batch.text_ids[:, 1:].flatten()[places]
    total = model.word_loss(states.flatten(0, 1)[places], targets, smoothing)
    return total * world_size() / words


def freeze(modules: list[torch.nn.Module]) -> None:
    """Freeze modules that a task never runs. DDP requires a gradient for every trained weight."""
    for module in modules:
        module.requires_grad_(False)
