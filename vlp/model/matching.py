"""Match images and texts in pairs, by ITC and by ITM."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlp.data.images import ImageLike, as_list
from vlp.errors import UserError
from vlp.model.video import encode_all
from vlp.models.cpu.linear import constant_weights

if TYPE_CHECKING:
    from vlp.model.model import Model


class Match(NamedTuple):
    """How well texts match images, float32 [texts] each: the cosine of the embeddings, and the ITM probability."""

    itc: Tensor
    itm: Tensor


@constant_weights()
def match_images(
    model: "Model",
    images: ImageLike | Sequence[ImageLike],
    texts: str | Sequence[str],
    batch_size: int,
    frames: int,
) -> Match:
    """How well each text matches its image; see `Model.match`."""
    images = as_list(images)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) == 1:
        texts = texts * len(images)
    if len(images) != len(texts) and (len(images) != 1 or not texts):
        raise UserError(f"match needs as many images as texts, or one of them: {len(images)} and {len(texts)}.")
    found = Match(torch.empty(len(texts)), torch.empty(len(texts)))
    for one in encode_all(model, images, range(len(images)), frames, batch_size):
        rows = range(len(texts)) if len(images) == 1 else one.rows
        made = model.match_tokens(one.tokens, [texts[row] for row in rows], None, 4 * batch_size, one.frames)
        found.itc[list(rows)], found.itm[list(rows)] = made
    return found
