"""How good a model is at retrieval, captioning and filtering, on shards: numbers out."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import DecodingConfig
from vlp.data.loader import EvaluationBatch, evaluation_batches
from vlp.data.scenes import caption_is_exact
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.metrics import area_under_curve, captioning_scores, recall_at_k
from vlp.model import Model
from vlp.retrieval import Gallery, Progress, rank_candidates, rerank_by_matching

KS = (1, 5, 10)

log = logging.getLogger("vlp")


@dataclass
class Captioned:
    """A made caption beside the captions of its image."""

    key: str
    caption: str
    references: list[str]
    info: dict = field(default_factory=dict)


def evaluate_retrieval(
    model: Model,
    shards: str | list[str],
    rerank: int = 16,
    batch_size: int = 32,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Recall at 1, 5 and 10, from images to texts and back (0 to 1).

    Texts that read the same count as one, which is right for every image that has it.

    Args:
        rerank: how many of the best by ITC are put in order by ITM, for every image and for every text; 0: none.
        limit: at most this many images.

    Returns:
        `itc_i2t_r1` ... `itc_t2i_r10` by ITC alone and, with `rerank`, `i2t_r1` ... `t2i_r10` by ITM logit + cosine
        for the `rerank` best (BLIP's rule); without it these repeat the ITC numbers. Also `images` and `texts`.
    """
    gallery = collect_gallery(model, shards, batch_size, limit, workers, keep_tokens=rerank > 0, progress=progress)
    text_vectors = model.embed_texts(gallery.texts, batch_size=4 * batch_size)
    images, texts = gallery.image_vectors.to(model.device), text_vectors.to(model.device)
    for_images = rank_candidates(images, texts, gallery.right, rerank)
    by_text = gallery.right.flip(1)
    by_text = by_text[by_text[:, 0].argsort(stable=True)]
    for_texts = rank_candidates(texts, images, by_text, rerank)
    recalls = _recalls(for_images.ranks, for_texts.ranks, gallery)
    results = {f"itc_{name}": value for name, value in recalls.items()}
    if rerank > 0:
        ranks = rerank_by_matching(model, gallery, text_vectors, for_images, for_texts, progress)
        recalls = _recalls(*ranks, gallery)
    return {**recalls, **results, "images": len(images), "texts": len(gallery.texts)}


def collect_gallery(
    model: Model,
    shards: str | list[str],
    batch_size: int = 32,
    limit: int | None = None,
    workers: int = 0,
    keep_tokens: bool = True,
    progress: Progress | None = None,
) -> Gallery:
    """Encode the images of shards and gather their captions.

    Image tokens are kept in the precision that cross-attention reads them in, so keeping them changes no score.

    Raises:
        UserError: there is nothing to evaluate.
    """
    tokens, vectors, captions = [], [], []
    for batch in _batches(model, shards, batch_size, limit, workers):
        encoded = model.encode_images(batch.images)
        vectors.append(model.embed_tokens(encoded))
        captions += [[clean_caption(text) for text in texts] for texts in batch.captions]
        if keep_tokens:
            tokens.append(encoded.to("cpu", model.compute_dtype or encoded.dtype))
        _report(progress, "encode images", len(encoded))
    counts = Counter(text for texts in captions for text in texts)
    place = {text: number for number, text in enumerate(counts)}
    if not captions or not all(captions):
        raise UserError("Retrieval needs images that have captions; there are none in these shards.")
    right = [(image, number) for image, texts in enumerate(captions) for number in sorted({place[t] for t in texts})]
    return Gallery(tokens, torch.cat(vectors), list(place), torch.tensor(right), torch.tensor(list(counts.values())))


def evaluate_captioning(
    model: Model,
    shards: str | list[str],
    decoding: DecodingConfig | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """How right the model's captions are.

    Args:
        decoding: None means beam search with 3 beams.

    Returns:
        `caption_exact`: the share (0 to 1) of captions that name everything in a synthetic scene rightly, where samples
        hold their truth; `CIDEr` and `BLEU-4` where `pycocoevalcap` is installed; `images`.
    """
    made = list(caption_shards(model, shards, decoding, batch_size, limit, seed, workers, progress))
    return {**score_captions(made), "images": len(made)}


def caption_shards(
    model: Model,
    shards: str | list[str],
    decoding: DecodingConfig | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Captioned]:
    """A caption for every image of shards, beside the captions that it has. Arguments as in `evaluate_captioning`."""
    decoding = decoding or DecodingConfig(beams=3, repetition_penalty=1.0)
    for batch in _batches(model, shards, batch_size, limit, workers):
        texts = model.caption_tokens(model.encode_images(batch.images), decoding, batch.keys, seed)
        for key, (made,), references, info in zip(batch.keys, texts, batch.captions, batch.infos, strict=True):
            yield Captioned(key, made.text, references, info)
        _report(progress, "caption", len(texts))


def score_captions(made: list[Captioned]) -> dict[str, float]:
    """The numbers of `evaluate_captioning` for captions that were made already."""
    results: dict[str, float] = {}
    exact = [caption_is_exact(one.caption, one.info["truth"]) for one in made if one.info.get("truth")]
    if exact:
        results["caption_exact"] = sum(exact) / len(exact)
    try:
        results |= captioning_scores([one.caption for one in made], [one.references for one in made])
    except UserError as error:  # the exact score stands without them
        log.warning("CIDEr and BLEU-4 are left out. %s", error)
    return results


def evaluate_matching(
    model: Model, images: str, pairs: str, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, float]:
    """How well the model tells right texts from wrong ones on labelled pairs.

    Args:
        images: folder of the images.
        pairs: a tab-separated file `image caption label` with a heading; the label is `match` or `no-match`.

    Returns:
        `itm_auc` and `itc_auc`, areas under the ROC curves of ITM's probability and of the cosine; `itm_accuracy` at
        0.5; `pairs`.

    Raises:
        UserError: a file is missing or not of this form.
    """
    texts, labels = _read_pairs(Path(pairs))
    names = list(texts)
    itm, itc, truth = [], [], []
    for start in range(0, len(names), batch_size):
        here = names[start : start + batch_size]
        tokens = model.encode_images(model.load_images([Path(images) / name for name in here]))
        index = torch.tensor([row for row, name in enumerate(here) for _ in texts[name]])
        match = model.match_tokens(tokens, [text for name in here for text in texts[name]], index)
        itm.append(match.itm)
        itc.append(match.itc)
        truth += [label for name in here for label in labels[name]]
        _report(progress, "match", len(index))
    scores, right = torch.cat(itm), torch.tensor(truth)
    return {
        "itm_auc": area_under_curve(scores, right),
        "itc_auc": area_under_curve(torch.cat(itc), right),
        "itm_accuracy": ((scores >= 0.5) == right).float().mean().item(),
        "pairs": len(right),
    }


def _read_pairs(path: Path) -> tuple[dict[str, list[str]], dict[str, list[bool]]]:
    """Texts and labels of each image."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    for number, line in enumerate(lines[1:], start=2):
        image, *rest = line.split("\t")
        if len(rest) != 2 or rest[1] not in ("match", "no-match"):
            raise UserError(f"{path}, line {number}: write image, caption and match or no-match, separated by tabs.")
        texts[image].append(rest[0])
        labels[image].append(rest[1] == "match")
    if not texts:
        raise UserError(f"{path} holds no pairs.")
    return texts, labels


def _batches(
    model: Model, shards: str | list[str], batch_size: int, limit: int | None, workers: int
) -> Iterator[EvaluationBatch]:
    return evaluation_batches(shards, model.image_size, batch_size, workers, limit=limit)


def _recalls(image_ranks: Tensor, text_ranks: Tensor, gallery: Gallery) -> dict[str, float]:
    results = {f"i2t_r{k}": recall_at_k(image_ranks, k) for k in KS}
    return results | {f"t2i_r{k}": recall_at_k(text_ranks, k, gallery.weights) for k in KS}


def _report(progress: Progress | None, what: str, count: int) -> None:
    if progress is not None:
        progress(what, count)
