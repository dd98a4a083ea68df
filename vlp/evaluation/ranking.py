"""Ranks of the right candidates: by cosine in bounded memory, then by ITM over the best of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.evaluation.metrics import best_ranks
from vlp.log import ReportProgress, no_progress
from vlp.model import Model

ROOM = 2**26  # scores in memory at once: 256 MiB in float32
TEXTS_AT_ONCE = 256  # texts of one image that are matched in one call


@dataclass
class Gallery:
    """The images and texts of a retrieval test.

    Attributes:
        image_tokens: encoded images, one CPU tensor [batch, tokens, width] a batch.
        image_vectors: float32 [images, embed_dim].
        texts: different texts, each once.
        right: int64 [pairs, 2], (image, text) in this order: the text is a caption of the image.
        weights: int64 [texts]: how many captions read like this.
    """

    image_tokens: list[Tensor]
    image_vectors: Tensor
    texts: list[str]
    right: Tensor
    weights: Tensor


@dataclass
class Ranking:
    """Where the right candidates of each query stand.

    Attributes:
        ranks: int64 [queries], as of `best_ranks`.
        best: int64 [queries, k], the best candidates, best first.
        found: bool [queries, k], which of them are right.
    """

    ranks: Tensor
    best: Tensor
    found: Tensor


def rank_candidates(queries: Tensor, candidates: Tensor, right: Tensor, k: int, room: int = ROOM) -> Ranking:
    """Rank candidates by cosine, some queries at a time, so that at most `room` scores are in memory at once.

    Args:
        queries, candidates: unit vectors [queries, embed_dim] and [candidates, embed_dim] on one device.
        right: int64 [pairs, 2] on the CPU: (query, candidate), sorted by query, at least one a query.
        k: how many of the best to name; at most all.
    """
    many = max(1, room // len(candidates))
    starts = range(0, len(queries), many)
    bounds = torch.searchsorted(right[:, 0].contiguous(), torch.tensor([*starts, len(queries)])).tolist()
    k = min(k, len(candidates))
    # Reserved at once: small results between large passing ones would leave holes in memory that fit neither.
    ranks = torch.empty(len(queries), dtype=torch.int64)
    best, found = torch.empty(len(queries), k, dtype=torch.int64), torch.empty(len(queries), k, dtype=torch.bool)
    for start, low, high in zip(starts, bounds[:-1], bounds[1:], strict=True):
        rows = slice(start, start + many)
        scores = queries[rows] @ candidates.T  # [some, candidates]
        relevant = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        here = right[low:high].to(scores.device)
        relevant[here[:, 0] - start, here[:, 1]] = True
        nearest = scores.topk(k, dim=1).indices
        ranks[rows], best[rows], found[rows] = best_ranks(scores, relevant), nearest, relevant.gather(1, nearest)
    return Ranking(ranks, best, found)


def rerank_by_matching(
    model: Model,
    gallery: Gallery,
    text_vectors: Tensor,
    for_images: Ranking,
    for_texts: Ranking,
    progress: ReportProgress = no_progress,
) -> tuple[Tensor, Tensor]:
    """Ranks after ITM has put the best candidates in order, by its logit of "match" + cosine (BLIP's rule).

    It goes image by image: an image's memory is projected once, for all the texts that meet it in either direction.

    Args:
        text_vectors: float32 [texts, embed_dim].
        for_images, for_texts: rankings of the texts of each image, and of the images of each text.

    Returns:
        int64 [images] and [texts], as of `best_ranks`; candidates that were not looked at stay behind, as they were.
    """
    ids, mask = model.text_ids(gallery.texts, "[ENC]")
    lengths = mask.sum(dim=1).cpu()
    image_scores = torch.zeros(for_images.best.shape, dtype=torch.float64)  # [images, k]
    text_scores = torch.zeros(for_texts.best.shape, dtype=torch.float64)  # [texts, k]
    for row, image_tokens, places in _image_by_image(gallery, for_texts.best):
        asking = places // for_texts.best.shape[1]  # texts among whose best this image is
        chosen = torch.cat([for_images.best[row], asking]).unique()
        memory = model.project(image_tokens[None].to(model.device))
        scores = (text_vectors[chosen] @ gallery.image_vectors[row]).cpu().double()
        for part in lengths[chosen].argsort().split(TEXTS_AT_ONCE):  # texts of like length together
            texts = chosen[part].to(ids.device)
            longest = int(lengths[chosen[part]].max())
            scores[part] += model.match_logits(ids[texts, :longest], mask[texts, :longest], memory)[:, 1].cpu().double()
        image_scores[row] = scores[torch.searchsorted(chosen, for_images.best[row])]
        text_scores.view(-1)[places] = scores[torch.searchsorted(chosen, asking)]
        progress("re-rank", 1)
    return _ranks_after(for_images, image_scores), _ranks_after(for_texts, text_scores)


def _image_by_image(gallery: Gallery, wanted: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each image's number, its tokens [tokens, width], and its places in the flattened `wanted` [texts, k]."""
    images = wanted.flatten()
    order = images.argsort(stable=True)
    counts = images.bincount(minlength=len(gallery.image_vectors)).tolist()
    row = 0
    places = iter(order.split(counts))
    for batch in gallery.image_tokens:
        for tokens in batch:
            yield row, tokens, next(places)
            row += 1


def _ranks_after(ranking: Ranking, scores: Tensor) -> Tensor:
    """Ranks when the best candidates [queries, k] stand in the order of `scores`; as before where none is right."""
    best_right = scores.masked_fill(~ranking.found, float("-inf")).amax(dim=1, keepdim=True)
    before = ((scores >= best_right) & ~ranking.found).sum(dim=1)
    return torch.where(ranking.found.any(dim=1), before, ranking.ranks)
