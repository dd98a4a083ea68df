"""Ranking a few queries at a time equals ranking all at once, and memory is bounded."""

import resource

import pytest
import torch
from torch.nn import functional as F

from vlp.evaluation.metrics import best_ranks
from vlp.evaluation.ranking import rank_candidates


@pytest.mark.parametrize("room", [1, 100, 2**20])
def test_ranks_do_not_depend_on_the_memory_limit(room):
    torch.manual_seed(0)
    queries, candidates = F.normalize(torch.randn(37, 8)), F.normalize(torch.randn(50, 8))
    candidates[7] = candidates[8]  # a tie
    relevant = torch.rand(37, 50) < 0.1
    relevant[torch.arange(37), torch.randint(50, (37,))] = True
    scores = queries @ candidates.T
    ranking = rank_candidates(queries, candidates, relevant.nonzero(), 5, room)
    assert torch.equal(ranking.ranks, best_ranks(scores, relevant))
    for row in range(37):
        assert scores[row, ranking.best[row]].tolist() == pytest.approx(scores[row].sort(descending=True).values[:5])
        assert ranking.found[row].tolist() == relevant[row, ranking.best[row]].tolist()


def test_memory_is_bounded():
    """All scores at once would take 400 MB."""
    vectors = F.normalize(torch.randn(10_000, 4))
    own = torch.arange(10_000)[:, None].expand(-1, 2)
    rank_candidates(vectors[:100], vectors, own[:100], 1, most_scores=2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranking = rank_candidates(vectors, vectors, own, 1, most_scores=2**20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert ranking.found.float().mean() > 0.99
