"""Retrieval: recall at 1, 5 and 10 and the mean and median rank, image to text and text to image."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from vlp.data.batch import EvaluationBatch
from vlp.data.importers.clip_benchmark import refuse_raw_captions
from vlp.evaluation.gallery import (
    EncodedBatch,
    Gallery,
    Row,
    Source,
    collect_gallery,
    match_best,
    rank_both_ways,
)
from vlp.evaluation.metrics import recall_at_k
from vlp.evaluation.predict import Predictions, predict
from vlp.evaluation.ranking import Ranking, rescored
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.constant_weights import constant_weights

KS = (1, 5, 10)
RERANK = 256  # BLIP's k for COCO's 5,000 images; it uses 128 for Flickr30k's 1,000
SHOWN = 10  # candidates of each query in the predictions


@constant_weights()
def evaluate_retrieval(
    model: Model,
    shards: str | list[str],
    rerank: int | None = None,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Recall at 1, 5 and 10 (0 to 1) and ranks (from 1) of the best relevant candidate, in both directions.

    All captions of an image are relevant to it. Identical texts are one candidate, which is relevant to every image
    that has it as a caption, and each of them is one query. Ties count against the relevant candidate.

    Args:
        rerank: re-rank this many of the best candidates by ITM, for every image and for every text; all of them where
            there are fewer; 0 disables. None: `RERANK`, or 0 for a model without ITM.

    Returns:
        `itc_i2t_r1` ... `itc_t2i_median_rank` by ITC alone, and `i2t_r1` ... `t2i_median_rank` after re-ranking by ITM
        logit + cosine (BLIP's rule); without re-ranking the two are equal. Also `images` and `texts`, their numbers,
        and `captions`. The predictions hold the ten best candidates of each image and of each distinct text.

    Raises:
        UserError: the shards contain no image with a caption, a model without ITM is to re-rank, or the shards are of
            CLIP_benchmark and not imported.
    """
    rerank = model.rerank_count(rerank, RERANK)
    refuse_raw_captions(shards)

    def source(make: Callable[[EncodedBatch], list[Row]], stage: str) -> Predictions:
        def encode(batch: EvaluationBatch) -> list[Row]:
            tokens = model.encode_images(batch.images)
            ids = [f"{batch.number}/{place}" for place in range(len(batch.keys))]
            return make(EncodedBatch(ids, batch.keys, batch.captions, tokens, model.embed_tokens(tokens)))

        return predict(shards, model.image_size, settings, encode, stage, need_text=True)

    metrics, predictions = score_retrieval(model, source, rerank, settings)
    return Results("retrieval", dataset_name(shards), metrics, predictions)


def score_retrieval(
    model: Model, source: Source, rerank: int, settings: EvaluationSettings
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and predictions of `evaluate_retrieval` for any source of encoded items."""
    gallery = collect_gallery(model, source, settings)
    by_itc = final = rank_both_ways(model, gallery, max(rerank, SHOWN), settings)
    if rerank > 0:
        for_images, for_texts = by_itc
        best = for_images.best[:, :rerank], for_texts.best[:, :rerank]
        image_scores, text_scores = match_best(model, source, gallery, *best)
        final = rescored(for_images, image_scores), rescored(for_texts, text_scores)
    metrics = rank_metrics(gallery, *final)
    metrics |= {f"itc_{name}": value for name, value in rank_metrics(gallery, *by_itc).items()}
    counts = {"images": len(gallery.keys), "texts": len(gallery.texts), "captions": int(gallery.weights.sum())}
    return {**metrics, **counts, **skipped_metrics(gallery.skipped)}, _predictions(gallery, *final)


def rank_metrics(gallery: Gallery, for_images: Ranking, for_texts: Ranking) -> dict[str, float]:
    """Recall and ranks in both directions; a text counts as often as it is a caption."""
    text_ranks = for_texts.ranks.repeat_interleave(gallery.weights)
    results = {}
    for way, ranks in (("i2t", for_images.ranks), ("t2i", text_ranks)):
        results |= {f"{way}_r{k}": recall_at_k(ranks, k) for k in KS}
        results[f"{way}_mean_rank"] = ranks.double().mean().item() + 1
        results[f"{way}_median_rank"] = float(np.median(ranks.numpy())) + 1
    return results


def _predictions(gallery: Gallery, for_images: Ranking, for_texts: Ranking) -> list[dict[str, Any]]:
    """A row for each image, then for each distinct text."""
    first_image = {text: image for image, text in gallery.relevant.flip(0).tolist()}  # the first one is set last

    def row(key: str, query: dict[str, str], ranking: Ranking, number: int, candidates: str, names: list[str]) -> dict:
        shown: list[Tensor] = [values[number, :SHOWN] for values in (ranking.best, ranking.scores, ranking.found)]
        best = [
            {candidates: names[one], "score": round(score, 4), "right": right}
            for one, score, right in zip(*(values.tolist() for values in shown), strict=True)
        ]
        rank = int(ranking.ranks[number])
        return {"key": key, **query, "rank": rank + 1, "right": rank == 0, "best": best}

    rows = [
        row(key, {"query": "image"}, for_images, number, "text", gallery.texts)
        for number, key in enumerate(gallery.keys)
    ]
    return rows + [
        row(gallery.keys[first_image[number]], {"query": "text", "text": text}, for_texts, number, "key", gallery.keys)
        for number, text in enumerate(gallery.texts)
    ]
