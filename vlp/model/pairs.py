"""Whether sentences are true of pairs of images, by a model that was finetuned for NLVR2."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlp.data.images import ImageLike
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import require

if TYPE_CHECKING:
    from vlp.model.model import Model

SENTENCE_TOKENS = 64  # longer sentences are cut; BLIP takes 40 words


@constant_weights()
def compare_images(
    model: "Model",
    left: Sequence[ImageLike],
    right: Sequence[ImageLike],
    sentences: str | Sequence[str],
    batch_size: int = 32,
) -> Tensor:
    """The probabilities, float32 [sentences], that sentences are true of pairs of images (paper, section 5.4).

    Args:
        left, right: equally many images, which are paired in order.
        sentences: one for each pair; or one for all pairs, or several for a single pair.

    Raises:
        UserError: the model was not finetuned for NLVR2, the numbers differ, or an image is unreadable.
    """
    require(model.config, "nlvr2", "compare images")
    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    if len(left) != len(right):
        raise UserError(f"compare needs as many left as right images, not {len(left)} and {len(right)}.")
    left, right = list(left), list(right)
    if len(left) == 1:
        left, right = left * len(sentences), right * len(sentences)
    if len(sentences) == 1:
        sentences = sentences * len(left)
    if len(sentences) != len(left):
        raise UserError(
            f"compare needs a sentence for each pair, or one of either, not {len(sentences)} and {len(left)}."
        )
    parts = [torch.empty(0)]
    for start in range(0, len(sentences), batch_size):
        here = slice(start, start + batch_size)
        images = torch.stack([model.load_images(left[here]), model.load_images(right[here])], dim=1)
        parts.append(pair_probabilities(model, images, sentences[here]))
    return torch.cat(parts)


def pair_probabilities(model: "Model", images: Tensor, sentences: Sequence[str]) -> Tensor:
    """The probability, float32 [pairs], that each sentence is true of its pair of images [pairs, 2, 3, size, size]."""
    most = min(SENTENCE_TOKENS, model.config.text_tower.positions // 8 * 8)
    ids, mask = model.tokenizer.encode([clean_caption(one) for one in sentences], most, first="[ENC]")
    with model.inference():
        memory = model.blip.pair_memory(images.to(model.device))
        logits = model.blip.pair_logits(ids.to(model.device), mask.to(model.device), memory)
    return logits.float().softmax(dim=-1)[:, 1].cpu()
