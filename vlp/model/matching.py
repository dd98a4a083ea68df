"""Match images and texts in pairs, by ITC and by ITM."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlp.data.images import ImageLike, as_list
from vlp.errors import UserError
from vlp.model.video import encode_all
from vlp.models.constant_weights import constant_weights

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


@constant_weights()
def match_tokens(
    model: "Model", image_tokens: Tensor, texts: Sequence[str], image_index: Tensor | None, batch_size: int, frames: int
) -> Match:
    """How well texts match encoded images; each image's memory is projected once.

    Args:
        image_tokens: [images, tokens, width].
        image_index: int64 [texts], the image of each text; None if all images have equally many texts, and the
            texts are in the order of the images.
        frames: of each item, if the tokens are those of videos.

    Raises:
        UserError: the number of texts is not a multiple of the number of images, and there is no `image_index`.
    """
    images = len(image_tokens)
    # In a single batch, texts in the order of their images need no index, which would copy the memory per text.
    in_order = images == 1 or (image_index is None and len(texts) <= batch_size)
    if image_index is None:
        image_index = torch.arange(images).repeat_interleave(len(texts) // max(images, 1))
    if len(image_index) != len(texts):
        raise UserError(f"{len(texts)} texts cannot be divided evenly among {images} images.")
    memory = model.project(image_tokens)
    itm = [torch.empty(0)]
    for start in range(0, len(texts), batch_size):
        ids, mask = model.text_ids(texts[start : start + batch_size], "[ENC]")
        here = None if in_order else image_index[start : start + batch_size].to(model.device)
        itm.append(model.match_logits(ids, mask, memory, here).softmax(dim=-1)[:, 1])
    vectors = model.embed_tokens(image_tokens, frames)[image_index.cpu()]  # [texts, embed_dim]
    return Match((vectors * model.embed_texts(texts)).sum(dim=-1), torch.cat(itm))
