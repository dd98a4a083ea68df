"""Ranks of the relevant candidates by cosine, in bounded memory, and after the best candidates got new scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.evaluation.metrics import best_ranks

MOST_SCORES = 2**26  # in memory at once: 256 MiB in float32


@dataclass
class Ranking:
    """The ranks of the relevant candidates of each query, and its best candidates.

    Attributes:
        ranks: int64 [queries], as from `best_ranks`.
        best: int64 [queries, k], the best candidates, best first.
        scores: float [queries, k], the scores of the best candidates.
        found: bool [queries, k], which of the best candidates are relevant.
    """

    ranks: Tensor
    best: Tensor
    scores: Tensor
    found: Tensor


def queries_at_once(candidates: int) -> int:
    """How many queries `rank_candidates` scores at once."""
    return max(1, MOST_SCORES // candidates)


def rank_candidates(queries: Tensor, candidates: Tensor, relevant: Tensor, k: int, many: int = 0) -> Ranking:
    """Rank candidates by cosine, some queries at a time.

    Args:
        queries, candidates: unit vectors [queries, embed_dim] and [candidates, embed_dim] on one device.
        relevant: int64 [pairs, 2] on the CPU: (query, candidate), sorted by query, at least one per query.
        k: number of best candidates to return; at most all.
        many: queries that are scored at once; 0: `queries_at_once`.
    """
    many = many or queries_at_once(len(candidates))
    starts = range(0, len(queries), many)
    bounds = torch.searchsorted(relevant[:, 0].contiguous(), torch.tensor([*starts, len(queries)])).tolist()
    shape = len(queries), min(k, len(candidates))
    # Allocated up front: small results allocated between large temporary tensors would fragment memory.
    ranks, found = torch.empty(len(queries), dtype=torch.int64), torch.empty(shape, dtype=torch.bool)
    best, best_scores = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=queries.dtype)
    for start, low, high in zip(starts, bounds[:-1], bounds[1:], strict=True):
        rows = slice(start, start + many)
        scores = queries[rows] @ candidates.T  # [some, candidates]
        is_relevant = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        here = relevant[low:high].to(scores.device)
        is_relevant[here[:, 0] - start, here[:, 1]] = True
        top = scores.topk(shape[1], dim=1)
        ranks[rows], best[rows], best_scores[rows] = best_ranks(scores, is_relevant), top.indices, top.values
        found[rows] = is_relevant.gather(1, top.indices)
    return Ranking(ranks, best, best_scores, found)


def rescored(ranking: Ranking, scores: Tensor) -> Ranking:
    """The ranking after its first k candidates got new scores; the other candidates keep their order behind these.

    Args:
        scores: float [queries, k], of the first k of the best candidates.
    """
    k = scores.shape[1]
    order = scores.argsort(dim=1, descending=True, stable=True)

    def sort(values: Tensor, first: Tensor) -> Tensor:
        return torch.cat([first.gather(1, order), values[:, k:].to(first.dtype)], dim=1)

    among = ranking.found[:, :k]
    # Where none of the k candidates is relevant, all of them stay before the first relevant one.
    ranks = torch.where(among.any(dim=1), best_ranks(scores, among), ranking.ranks)
    return Ranking(
        ranks, sort(ranking.best, ranking.best[:, :k]), sort(ranking.scores, scores), sort(ranking.found, among)
    )
