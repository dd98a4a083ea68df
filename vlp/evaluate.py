"""How good a model is at retrieval, captioning and filtering, on shards: numbers out."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import DecodingConfig
from vlp.data.loader import EvaluationBatch, evaluation_batches
from vlp.data.scenes import caption_is_exact
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.metrics import area_under_curve, best_ranks, captioning_scores, recall_at_k
from vlp.model import Model

Progress = Callable[[str, int], None]  # (what is being done, how many items were just finished)

KS = (1, 5, 10)
TEXTS_AT_ONCE = 256  # texts of one image that are matched in one call
BEHIND = 1e4  # what keeps the texts that were not re-ranked behind those that were; scores lie within a few tens

log = logging.getLogger("vlp")


@dataclass
class Gallery:
    """The images and texts of a retrieval test.

    Attributes:
        image_tokens: encoded images, one CPU tensor [batch, tokens, width] a batch.
        image_vectors: float32 [images, embed_dim].
        texts: different texts, each once.
        relevant: bool [images, texts]: the text is a caption of the image.
        weights: int64 [texts]: how many captions read like this.
    """

    image_tokens: list[Tensor]
    image_vectors: Tensor
    texts: list[str]
    relevant: Tensor
    weights: Tensor


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
    cosines = gallery.image_vectors @ text_vectors.T  # [images, texts]
    recalls = _recalls(cosines, cosines.T, gallery)
    results = {f"itc_{name}": value for name, value in recalls.items()}
    if rerank > 0:
        image_scores, text_scores = rerank_scores(model, gallery, cosines, rerank, progress)
        recalls = _recalls(image_scores, text_scores.T, gallery)
    return {**recalls, **results, "images": len(cosines), "texts": len(gallery.texts)}


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
    relevant = torch.zeros(len(captions), len(place), dtype=torch.bool)
    for image, texts in enumerate(captions):
        relevant[image, [place[text] for text in texts]] = True
    if not relevant.numel() or not relevant.any(dim=1).all():
        raise UserError("Retrieval needs images that have captions; there are none in these shards.")
    return Gallery(tokens, torch.cat(vectors), list(place), relevant, torch.tensor(list(counts.values())))


def rerank_scores(
    model: Model, gallery: Gallery, cosines: Tensor, best: int, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Scores after ITM has looked at the `best` candidates of every image and of every text.

    It goes image by image: an image's memory is projected once, for all the texts that meet it in either direction.

    Args:
        cosines: float32 [images, texts].

    Returns:
        Two float64 [images, texts], one for ranking the texts of each image, one for ranking the images of each text:
        ITM logit of "match" + cosine for the candidates, the rest behind them in the order of ITC.
    """
    for_images = _best(cosines, best)  # bool [images, texts]
    for_texts = _best(cosines.T, best).T
    ids, mask = model.text_ids(gallery.texts, "[ENC]")
    lengths = mask.sum(dim=1)
    scores = cosines.double() - BEHIND
    by_image, by_text = scores, scores.clone()
    row = 0
    for batch in gallery.image_tokens:
        for image_tokens in batch:
            memory = model.project(image_tokens[None].to(model.device))
            chosen = (for_images[row] | for_texts[row]).nonzero()[:, 0]
            logits = []
            for part in chosen.to(ids.device).split(TEXTS_AT_ONCE):
                longest = int(lengths[part].max())
                logits.append(model.match_logits(ids[part, :longest], mask[part, :longest], memory)[:, 1])
            fine = torch.zeros(cosines.shape[1], dtype=torch.float64)
            if logits:
                fine[chosen] = torch.cat(logits).double() + cosines[row, chosen]
            by_image[row] = torch.where(for_images[row], fine, by_image[row])
            by_text[row] = torch.where(for_texts[row], fine, by_text[row])
            row += 1
        _report(progress, "re-rank", len(batch))
    return by_image, by_text


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


def _recalls(image_scores: Tensor, text_scores: Tensor, gallery: Gallery) -> dict[str, float]:
    """Recalls of scores [images, texts] and [texts, images]."""
    image_ranks = best_ranks(image_scores, gallery.relevant)
    text_ranks = best_ranks(text_scores, gallery.relevant.T)
    results = {f"i2t_r{k}": recall_at_k(image_ranks, k) for k in KS}
    return results | {f"t2i_r{k}": recall_at_k(text_ranks, k, gallery.weights) for k in KS}


def _best(scores: Tensor, k: int) -> Tensor:
    """bool of the same shape: the k best of each row."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, best, True)


def _report(progress: Progress | None, what: str, count: int) -> None:
    if progress is not None:
        progress(what, count)
