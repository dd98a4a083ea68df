"""The two sides of a retrieval test, images or videos and texts: encoded, ranked by ITC and re-ranked by ITM.

Every step is a stage of `predict`, so that it is spread over processes and resumed. Re-ranking encodes the images once
more instead of keeping their tokens, so that memory holds one batch.
"""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlp.errors import UserError, WorkError
from vlp.evaluation.predict import Predictions, predict_items
from vlp.evaluation.ranking import Ranking, queries_at_once, rank_candidates
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model

TEXTS_AT_ONCE = 256  # texts that are matched with one image in one call

Row = dict[str, Any]


@dataclass
class EncodedBatch:
    """Encoded images or videos.

    Attributes:
        ids: JSON values that tell the items of all batches apart, unlike keys, which several shards may share.
        keys: of the samples, for people.
        captions: all captions of each item.
        tokens: [items, tokens, width] on the model's device.
        vectors: float32 [items, embed_dim] on the CPU.
    """

    ids: list[Any]
    keys: list[str]
    captions: list[list[str]]
    tokens: Tensor
    vectors: Tensor


# Encodes all items and calls a function on each batch: (function, name of the stage) -> its rows in the data's order.
Source = Callable[[Callable[[EncodedBatch], list[Row]], str], Predictions]


@dataclass
class Gallery:
    """The images (or videos) and texts of a retrieval test.

    Attributes:
        ids, keys: of each image.
        image_vectors: float32 [images, embed_dim].
        texts: the distinct captions.
        text_vectors: float32 [texts, embed_dim].
        relevant: int64 [pairs, 2], pairs (image, text) such that the text is a caption of the image, sorted.
        weights: int64 [texts], the number of captions with this text.
        skipped: the numbers of skipped samples by reason.
    """

    ids: list[Any]
    keys: list[str]
    image_vectors: Tensor
    texts: list[str]
    text_vectors: Tensor
    relevant: Tensor
    weights: Tensor
    skipped: dict[str, int]


def collect_gallery(model: Model, source: Source, settings: EvaluationSettings) -> Gallery:
    """Encode the images and the distinct captions.

    Raises:
        UserError: no image has a caption.
    """

    def encode(batch: EncodedBatch) -> list[Row]:
        captions = [[text for text in map(model.tokenizer.form.clean, texts) if text] for texts in batch.captions]
        rows = zip(batch.ids, batch.keys, captions, batch.vectors, strict=True)
        return [{"id": one, "key": key, "captions": texts, "vector": pack(vector)} for one, key, texts, vector in rows]

    found = source(encode, "encode images")
    captions = [row["captions"] for row in found.rows]
    if not any(captions):
        raise UserError("Retrieval needs images with captions; these shards contain none.")
    counts = Counter(text for texts in captions for text in texts)
    place = {text: number for number, text in enumerate(counts)}
    texts = list(place)
    pairs = [(image, number) for image, own in enumerate(captions) for number in sorted({place[text] for text in own})]
    return Gallery(
        [row["id"] for row in found.rows],
        [row["key"] for row in found.rows],
        torch.stack([unpack(row["vector"], torch.float32) for row in found.rows]),
        texts,
        embed_texts(model, texts, settings),
        torch.tensor(pairs),
        torch.tensor(list(counts.values())),
        found.skipped,
    )


def embed_texts(model: Model, texts: Sequence[str], settings: EvaluationSettings) -> Tensor:
    """Unit vectors float32 [texts, embed_dim], computed by all processes together."""

    def embed(some: Sequence[str]) -> list[Row]:
        return [{"vector": pack(vector)} for vector in model.embed_texts(some, batch_size=len(some))]

    many = replace(settings, limit=None, batch_size=4 * settings.batch_size)
    rows = predict_items(texts, many, embed, "encode texts", {}).rows
    return torch.stack([unpack(row["vector"], torch.float32) for row in rows])


def rank_both_ways(model: Model, gallery: Gallery, k: int, settings: EvaluationSettings) -> tuple[Ranking, Ranking]:
    """Rank the texts for each image and the images for each text by cosine, with the k best of each."""
    images, texts = gallery.image_vectors.to(model.device), gallery.text_vectors.to(model.device)
    by_text = gallery.relevant.flip(1)
    by_text = by_text[by_text[:, 0].argsort(stable=True)]
    return (
        _rank(images, texts, gallery.relevant, k, settings, "rank texts"),
        _rank(texts, images, by_text, k, settings, "rank images"),
    )


def _rank(
    queries: Tensor, candidates: Tensor, relevant: Tensor, k: int, settings: EvaluationSettings, stage: str
) -> Ranking:
    """`rank_candidates`, some queries by each process. One process decides the order of equal scores for all."""

    def rank(some: Sequence[int]) -> list[Row]:
        first, last = some[0], some[-1]
        here = relevant[(relevant[:, 0] >= first) & (relevant[:, 0] <= last)] - torch.tensor([first, 0])
        found = rank_candidates(queries[first : last + 1], candidates, here, k)
        rows = zip(found.ranks.tolist(), found.best, found.scores, found.found, strict=True)
        return [
            {"rank": rank, "best": pack(best.int()), "scores": pack(scores), "found": pack(relevant)}
            for rank, best, scores, relevant in rows
        ]

    many = replace(settings, limit=None, batch_size=queries_at_once(len(candidates)))
    rows = predict_items(range(len(queries)), many, rank, stage, {"best": k}).rows

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.stack([unpack(row[name], dtype) for row in rows])

    ranks = torch.tensor([row["rank"] for row in rows])
    return Ranking(
        ranks, column("best", torch.int32).long(), column("scores", torch.float32), column("found", torch.bool)
    )


def match_best(
    model: Model, source: Source, gallery: Gallery, for_images: Tensor, for_texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Score the best candidates of all images and texts by ITM logit of "match" + cosine (BLIP's rule).

    Works image by image: an image's memory is projected once, for all texts that it is matched with in either
    direction.

    Args:
        for_images, for_texts: int64 [images, k] and [texts, k], the best candidates.

    Returns:
        Float64 scores of these shapes.

    Raises:
        WorkError: an image that was encoded before cannot be read again.
    """
    ids, mask = model.text_ids(gallery.texts, "[ENC]")
    lengths = mask.sum(dim=1).cpu()
    rows = {one: row for row, one in enumerate(gallery.ids)}
    # The positions in the flattened `for_texts` at which each image stands.
    places = for_texts.flatten().argsort(stable=True).split(for_texts.flatten().bincount(minlength=len(rows)).tolist())

    def chosen_texts(row: int) -> tuple[Tensor, Tensor]:
        """The texts that an image is matched with, sorted, and those that have it among their best."""
        asking = places[row] // for_texts.shape[1]
        return torch.cat([for_images[row], asking]).unique(), asking

    def match(row: int, tokens: Tensor) -> Tensor:
        """Scores float64 of the chosen texts with an image, whose tokens are [tokens, width]."""
        chosen, _ = chosen_texts(row)
        memory = model.project(tokens[None])
        scores = (gallery.text_vectors[chosen] @ gallery.image_vectors[row]).double()
        for part in lengths[chosen].argsort(stable=True).split(TEXTS_AT_ONCE):  # texts of similar length together
            texts = chosen[part].to(ids.device)
            longest = int(lengths[chosen[part]].max())
            scores[part] += model.match_logits(ids[texts, :longest], mask[texts, :longest], memory)[:, 1].double()
        return scores

    def match_batch(batch: EncodedBatch) -> list[Row]:
        here = [(one, tokens) for one, tokens in zip(batch.ids, batch.tokens, strict=True) if one in rows]
        return [{"id": one, "scores": pack(match(rows[one], tokens))} for one, tokens in here]

    matched = {row["id"]: row["scores"] for row in source(match_batch, "re-rank").rows}
    if missing := [key for one, key in zip(gallery.ids, gallery.keys, strict=True) if one not in matched]:
        raise WorkError(
            f"{len(missing)} images, such as {missing[0]}, were encoded but could not be read again for re-ranking; "
            "run the evaluation again."
        )
    image_scores = torch.empty(for_images.shape, dtype=torch.float64)
    text_scores = torch.empty(for_texts.shape, dtype=torch.float64)
    for row, one in enumerate(gallery.ids):
        (chosen, asking), scores = chosen_texts(row), unpack(matched[one], torch.float64)
        image_scores[row] = scores[torch.searchsorted(chosen, for_images[row])]
        text_scores.view(-1)[places[row]] = scores[torch.searchsorted(chosen, asking)]
    return image_scores, text_scores


def pack(values: Tensor) -> str:
    """The bytes of a tensor as a string for JSON."""
    return base64.b64encode(values.detach().cpu().contiguous().numpy().tobytes()).decode()


def unpack(packed: str, dtype: torch.dtype) -> Tensor:
    """The tensor [values] that `pack` made a string of."""
    return torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=dtype)
