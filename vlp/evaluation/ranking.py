"""Ranks of the relevant candidates: by cosine in bounded memory, then by ITM over the best candidates."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.evaluation.metrics import best_ranks
from vlp.log import ReportProgress, no_progress
from vlp.model import Model

MOST_SCORES = 2**26  # in memory at once: 256 MiB in float32
TEXTS_AT_ONCE = 256  # texts that are matched with one image in one call


@dataclass
class Gallery:
    """The images and texts of a retrieval test.

    Attributes:
        image_tokens: encoded images, one CPU tensor [batch, tokens, width] per batch.
        image_vectors: float32 [images, embed_dim].
        texts: the distinct captions.
        relevant: int64 [pairs, 2], pairs (image, text) such that the text is a caption of the image, sorted.
        weights: int64 [texts], the number of captions with this text.
    """

    image_tokens: list[Tensor]
    image_vectors: Tensor
    texts: list[str]
    relevant: Tensor
    weights: Tensor


@dataclass
class Ranking:
    """The ranks of the relevant candidates of each query, and its best candidates.

    Attributes:
        ranks: int64 [queries], as from `best_ranks`.
        best: int64 [queries, k], the best candidates, best first.
        found: bool [queries, k], which of the best candidates are relevant.
    """

    ranks: Tensor
    best: Tensor
    found: Tensor


def rank_candidates(
    queries: Tensor, candidates: Tensor, relevant: Tensor, k: int, most_scores: int = MOST_SCORES
) -> Ranking:
    """Rank candidates by cosine, some queries at a time, with at most `most_scores` scores in memory at once.

    Args:
        queries, candidates: unit vectors [queries, embed_dim] and [candidates, embed_dim] on one device.
        relevant: int64 [pairs, 2] on the CPU: (query, candidate), sorted by query, at least one per query.
        k: number of best candidates to return; at most all.
    """
    many = max(1, most_scores // len(candidates))
    starts = range(0, len(queries), many)
    bounds = torch.searchsorted(relevant[:, 0].contiguous(), torch.tensor([*starts, len(queries)])).tolist()
    k = min(k, len(candidates))
    # Allocated up front: small results allocated between large temporary tensors would fragment memory.
    ranks = torch.empty(len(queries), dtype=torch.int64)
    best, found = torch.empty(len(queries), k, dtype=torch.int64), torch.empty(len(queries), k, dtype=torch.bool)
    for start, low, high in zip(starts, bounds[:-1], bounds[1:], strict=True):
        rows = slice(start, start + many)
        scores = queries[rows] @ candidates.T  # [some, candidates]
        is_relevant = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        here = relevant[low:high].to(scores.device)
        is_relevant[here[:, 0] - start, here[:, 1]] = True
        nearest = scores.topk(k, dim=1).indices
        ranks[rows], best[rows], found[rows] = best_ranks(scores, is_relevant), nearest, is_relevant.gather(1, nearest)
    return Ranking(ranks, best, found)


def rerank_by_matching(
    model: Model,
    gallery: Gallery,
    text_vectors: Tensor,
    for_images: Ranking,
    for_texts: Ranking,
    progress: ReportProgress = no_progress,
) -> tuple[Tensor, Tensor]:
    """Ranks after re-ranking the best candidates by ITM logit of "match" + cosine (BLIP's rule).

    Works image by image: an image's memory is projected once, for all texts that it is matched with in either
    direction.

    Args:
        text_vectors: float32 [texts, embed_dim].
        for_images, for_texts: rankings of the texts for each image, and of the images for each text.

    Returns:
        int64 [images] and [texts], as from `best_ranks`; the other candidates keep their order behind the best ones.
    """
    ids, mask = model.text_ids(gallery.texts, "[ENC]")
    lengths = mask.sum(dim=1).cpu()
    image_scores = torch.zeros(for_images.best.shape, dtype=torch.float64)  # [images, k]
    text_scores = torch.zeros(for_texts.best.shape, dtype=torch.float64)  # [texts, k]
    for row, image_tokens, places in _image_by_image(gallery, for_texts.best):
        asking = places // for_texts.best.shape[1]  # texts that have this image among their best
        chosen = torch.cat([for_images.best[row], asking]).unique()
        memory = model.project(image_tokens[None].to(model.device))
        scores = (text_vectors[chosen] @ gallery.image_vectors[row]).cpu().double()
        for part in lengths[chosen].argsort().split(TEXTS_AT_ONCE):  # texts of similar length together
            texts = chosen[part].to(ids.device)
            longest = int(lengths[chosen[part]].max())
            scores[part] += model.match_logits(ids[texts, :longest], mask[texts, :longest], memory)[:, 1].cpu().double()
        image_scores[row] = scores[torch.searchsorted(chosen, for_images.best[row])]
        text_scores.view(-1)[places] = scores[torch.searchsorted(chosen, asking)]
        progress("re-rank", 1)
    return _ranks_after(for_images, image_scores), _ranks_after(for_texts, text_scores)


def _image_by_image(gallery: Gallery, best: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number and tokens [tokens, width] of each image, and its positions in the flattened `best` [texts, k]."""
    images = best.flatten()
    order = images.argsort(stable=True)
    counts = images.bincount(minlength=len(gallery.image_vectors)).tolist()
    row = 0
    places = iter(order.split(counts))
    for batch in gallery.image_tokens:
        for tokens in batch:
            yield row, tokens, next(places)
            row += 1


def _ranks_after(ranking: Ranking, scores: Tensor) -> Tensor:
    """Ranks by the `scores` of the best candidates [queries, k]; unchanged where none of these is relevant."""
    return torch.where(ranking.found.any(dim=1), best_ranks(scores, ranking.found), ranking.ranks)
