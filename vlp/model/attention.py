"""Where a model looks: Grad-CAM of words, similarity of patches to a text, attention rollout of its image encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlp.data.images import ImageLike, as_list, is_video_path
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.models.attention_maps import match_gradcam
from vlp.models.image_encoders.grid import token_grid
from vlp.models.image_encoders.rollout import attention_rollout
from vlp.models.network import as_two_towers, require_network
from vlp.models.untrained import EMBEDDING, MATCHING, require_trained

if TYPE_CHECKING:
    from vlp.model.model import Model

PAIRS_AT_ONCE = 32  # of an image and a text
IMAGES_AT_ONCE = 8  # whose attention maps of all layers are in memory
DEFAULT_DEPTH = 8 / 12  # BLIP's demo takes layer 8 of 12


@dataclass
class WordMaps:
    """Grad-CAM of a text on an image. A map is float32 [rows, columns] on the grid of image tokens, from 0.

    A map's sum says how much the word's attention to the image raises the logit of "match", to first order.

    Attributes:
        text: as the model reads it.
        itm: the probability of "match".
        words: of the text; those beyond the model's limit are left out.
        maps: float32 [words, rows, columns]; the map of a word of several pieces is their mean.
        sentence: float32 [rows, columns], the mean over all pieces.
        start, end: float32 [rows, columns], those of the special tokens [ENC] and [SEP].
    """

    text: str
    itm: float
    words: list[str]
    maps: Tensor
    sentence: Tensor
    start: Tensor
    end: Tensor


@dataclass
class SimilarityMap:
    """The similarity of the patches of an image to a text.

    Attributes:
        text: as the model reads it.
        itc: cosine of image and text.
        map: float32 [rows, columns], the cosine of each image token and the text.
    """

    text: str
    itc: float
    map: Tensor


def word_maps(
    model: "Model", images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str], layer: int = 0
) -> list[WordMaps]:
    """Grad-CAM of the ITM logit of "match" on cross-attention, for each word of each text.

    As in ALBEF's and BLIP's demos: the attention weights of a layer, times the gradient of the logit with respect to
    them, negative values cut, mean over heads. The computation is in float32, or in the dtype of the weights.

    Args:
        images, texts: equally many, which are paired in order; or one image for all texts.
        layer: of the text tower, from 1; 0 means layer 8 of 12, scaled to the tower's depth.

    Raises:
        UserError: the model does not match single images and texts, the layer does not exist, the numbers differ, or
            an image is unreadable.
    """
    require_matching(model)
    number, blip = layer_number(model, layer), model.blip
    found = []
    for image_tokens, here in _pairs(model, images, texts):
        ids, mask = model.text_ids(here, "[ENC]")
        with exact(model):
            memory = blip.text_tower.project_image(image_tokens)
            logits, relevance = match_gradcam(blip, ids, mask, memory, [number])
        maps = token_grid(blip.image_encoder, relevance[0].mean(dim=1)).cpu()  # [texts, tokens, rows, columns]
        for text, row, length, logit in zip(here, maps, mask.sum(dim=1).tolist(), logits.float().cpu(), strict=True):
            found.append(_word_maps(model, text, row[:length], logit.softmax(dim=0)[1].item()))
    return found


def similarity_maps(
    model: "Model", images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]
) -> list[SimilarityMap]:
    """The cosine of each image token and a text, in the embedding space of ITC or CLIP.

    Training compares only the summary of an image with texts; the other tokens pass the same projection here.

    Args:
        images, texts: as in `word_maps`.

    Raises:
        UserError: the model's embeddings are untrained, the numbers differ, or an image is unreadable.
    """
    if model.config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {model.config.finetuned_for}, which leaves its embeddings untrained; "
            "use a pretrained model or one that was finetuned for retrieval."
        )
    require_trained(model.config, EMBEDDING, "compare patches of images with texts")
    found, network = [], as_two_towers(model.network, "compare patches of images with texts")
    for image_tokens, here in _pairs(model, images, texts):
        with exact(model):
            # Each token as an image of one token.
            vectors = network.embed_image_tokens(image_tokens.flatten(0, 1)[:, None])  # [images x tokens, embed_dim]
            vectors = vectors.unflatten(0, image_tokens.shape[:2])  # [images, tokens, embed_dim]
            embedded = network.embed_texts(*model.text_ids(here, "[CLS]"))  # [texts, embed_dim]
        cosines = (vectors * embedded[:, None]).sum(dim=-1)  # [texts, tokens]
        maps = token_grid(network.image_encoder, cosines).cpu()
        for text, row, summary in zip(here, maps, cosines[:, 0].tolist(), strict=True):
            found.append(SimilarityMap(clean_caption(text), summary, row))
    return found


def rollout_maps(model: "Model", images: ImageLike | Sequence[ImageLike]) -> Tensor:
    """The flow from each place of images to their summaries, float32 [images, rows, columns]; see `attention_rollout`.

    Raises:
        UserError: the image encoder's attention has no rollout, or an image is unreadable.
    """
    images, parts = _stills(images), []
    for first in range(0, len(images), IMAGES_AT_ONCE):
        pixels = model.load_images(images[first : first + IMAGES_AT_ONCE]).to(model.device)
        with exact(model):
            parts.append(attention_rollout(model.network.image_encoder, pixels).cpu())
    return torch.cat(parts)


def require_matching(model: "Model") -> None:
    """Check that a model matches single images with texts.

    Raises:
        UserError: it does not.
    """
    require_network(model.config, "blip", "show where words look")
    if model.config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {model.config.finetuned_for} and does not match an image with a text alone; "
            "use a pretrained model or one that was finetuned for retrieval."
        )
    require_trained(model.config, MATCHING, "show where words look")


def layer_number(model: "Model", layer: int) -> int:
    """The number from 0 of a layer of the text tower that is numbered from 1; 0 means the default.

    Raises:
        UserError: there is no such layer.
    """
    layers = model.config.text_tower.layers
    if not 0 <= layer <= layers:
        raise UserError(f"The text tower has layers 1 to {layers}; choose one of them, not {layer}.")
    return (layer or max(1, round(DEFAULT_DEPTH * layers))) - 1


@contextmanager
def exact(model: "Model") -> Iterator[None]:
    """`model.inference()` without autocast, since small gradients vanish among the rounding errors of bf16."""
    with model.inference(), torch.autocast(model.device.type, enabled=False):
        yield


def _pairs(
    model: "Model", images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str]
) -> Iterator[tuple[Tensor, list[str]]]:
    """Pairs of images and texts in batches: image tokens [images or 1, tokens, width] and texts."""
    images = _stills(images)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(images) not in (1, len(texts)):
        raise UserError(f"Attention needs as many images as texts, or one image: {len(images)} and {len(texts)}.")
    wordless = next((text for text in texts if not clean_caption(text)), None)
    if wordless is not None:
        raise UserError(f"The text {wordless!r} has no words.")
    alone = _encode(model, images) if len(images) == 1 and texts else None
    for first in range(0, len(texts), PAIRS_AT_ONCE):
        here = slice(first, first + PAIRS_AT_ONCE)
        yield _encode(model, images[here]) if alone is None else alone, texts[here]


def _stills(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    images = as_list(images)
    moving = next((image for image in images if is_video_path(image)), None)
    if moving is not None:
        raise UserError(f"{moving} is a video; attention is shown on images only.")
    return images


def _encode(model: "Model", images: Sequence[ImageLike]) -> Tensor:
    with exact(model):
        return model.network.encode_images(model.load_images(images).to(model.device))


def _word_maps(model: "Model", text: str, maps: Tensor, itm: float) -> WordMaps:
    """The maps of words, from those of tokens [tokens, rows, columns]: [ENC], pieces of words, [SEP]."""
    text, pieces = clean_caption(text), maps[1:-1]
    words = [(word, numbers) for word, numbers in model.tokenizer.words(text) if numbers and numbers[-1] < len(pieces)]
    joined = [pieces[numbers].mean(dim=0) for _, numbers in words]
    empty = maps.new_zeros(0, *maps.shape[1:])
    return WordMaps(
        text,
        itm,
        [word for word, _ in words],
        torch.stack(joined) if joined else empty,
        pieces.mean(dim=0),
        maps[0],
        maps[-1],
    )
