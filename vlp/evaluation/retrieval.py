"""Retrieval: recall at 1, 5 and 10, image to text and text to image."""

from collections import Counter

import torch
from torch import Tensor

from vlp.data.bad_samples import BadSamples
from vlp.data.evaluation_loader import evaluation_batches
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.evaluation.metrics import recall_at_k
from vlp.evaluation.ranking import Gallery, rank_candidates, rerank_by_matching
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights

KS = (1, 5, 10)


@constant_weights()
def evaluate_retrieval(
    model: Model,
    shards: str | list[str],
    rerank: int = 16,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Recall at 1, 5 and 10, image to text and text to image (0 to 1).

    Identical texts are one candidate, which is relevant to every image that has it as a caption.

    Args:
        rerank: re-rank this many of the best candidates by ITM, for every image and for every text; 0 disables.
        settings: with several processes each computes everything.

    Returns:
        `itc_i2t_r1` ... `itc_t2i_r10` by ITC alone, and `i2t_r1` ... `t2i_r10` after re-ranking by ITM logit + cosine
        (BLIP's rule); without re-ranking the two are equal. Also `images` and `texts`, their numbers.

    Raises:
        UserError: the shards contain no image with a caption.
    """
    gallery, skipped = collect_gallery(model, shards, settings, keep_tokens=rerank > 0)
    text_vectors = model.embed_texts(gallery.texts, batch_size=4 * settings.batch_size)
    images, texts = gallery.image_vectors.to(model.device), text_vectors.to(model.device)
    for_images = rank_candidates(images, texts, gallery.relevant, rerank)
    by_text = gallery.relevant.flip(1)
    by_text = by_text[by_text[:, 0].argsort(stable=True)]
    for_texts = rank_candidates(texts, images, by_text, rerank)
    recalls = _recalls(for_images.ranks, for_texts.ranks, gallery)
    by_itc = {f"itc_{name}": value for name, value in recalls.items()}
    if rerank > 0:
        ranks = rerank_by_matching(model, gallery, text_vectors, for_images, for_texts, settings.progress)
        recalls = _recalls(*ranks, gallery)
    counts = {"images": len(images), "texts": len(gallery.texts), **skipped_metrics(skipped)}
    return Results("retrieval", dataset_name(shards), {**recalls, **by_itc, **counts})


def collect_gallery(
    model: Model, shards: str | list[str], settings: EvaluationSettings, keep_tokens: bool = True
) -> tuple[Gallery, Counter[str]]:
    """Encode the images of shards and collect their captions; also the skipped samples by reason.

    Images without a caption are left out and named in the log. Image tokens are stored in the precision of the
    computation, so storing them changes no score.

    Raises:
        UserError: the shards contain no image with a caption.
    """
    tokens, vectors, captions, bad = [], [], [], BadSamples(max_share=1.0)
    batches = evaluation_batches(
        shards,
        model.image_size,
        settings.batch_size,
        settings.workers,
        limit=settings.limit,
        bad=bad,
        need_text=True,
    )
    for batch in batches:
        encoded = model.encode_images(batch.images)
        vectors.append(model.embed_tokens(encoded))
        captions += [[text for text in map(clean_caption, texts) if text] for texts in batch.captions]
        if keep_tokens:
            tokens.append(encoded.to("cpu", model.compute_dtype or encoded.dtype))
        settings.progress("encode images", len(encoded))
    counts = Counter(text for texts in captions for text in texts)
    place = {text: number for number, text in enumerate(counts)}
    if not captions:
        raise UserError("Retrieval needs images with captions; these shards contain none.")
    pairs = [(image, number) for image, texts in enumerate(captions) for number in sorted({place[t] for t in texts})]
    weights = torch.tensor(list(counts.values()))
    gallery = Gallery(tokens, torch.cat(vectors), list(place), torch.tensor(pairs), weights)
    return gallery, Counter(bad.counts) + Counter(bad.filtered)


def _recalls(image_ranks: Tensor, text_ranks: Tensor, gallery: Gallery) -> dict[str, float]:
    results = {f"i2t_r{k}": recall_at_k(image_ranks, k) for k in KS}
    return results | {f"t2i_r{k}": recall_at_k(text_ranks, k, gallery.weights) for k in KS}
