"""Ranking a few queries at a time equals ranking all at once, and memory is bounded."""

import resource

import pytest
import torch
from torch.nn import functional as F

from vlp.evaluation.metrics import best_ranks
from vlp.evaluation.ranking import rank_candidates, rescored


@pytest.mark.parametrize("many", [1, 5, 0])
def test_ranks_do_not_depend_on_how_many_queries_are_scored_at_once(many):
    torch.manual_seed(0)
    queries, candidates = F.normalize(torch.randn(37, 8)), F.normalize(torch.randn(50, 8))
    candidates[7] = candidates[8]  # a tie
    relevant = torch.rand(37, 50) < 0.1
    relevant[torch.arange(37), torch.randint(50, (37,))] = True
    scores = queries @ candidates.T
    ranking = rank_candidates(queries, candidates, relevant.nonzero(), 5, many)
    assert torch.equal(ranking.ranks, best_ranks(scores, relevant))
    for row in range(37):
        assert scores[row, ranking.best[row]].tolist() == pytest.approx(scores[row].sort(descending=True).values[:5])
        assert ranking.found[row].tolist() == relevant[row, ranking.best[row]].tolist()
        assert ranking.scores[row].tolist() == pytest.approx(scores[row, ranking.best[row]].tolist())


def test_new_scores_rank_as_a_plain_loop_does_with_ties():
    torch.manual_seed(0)
    queries, candidates = F.normalize(torch.randn(40, 8)), F.normalize(torch.randn(12, 8))
    relevant = torch.rand(40, 12) < 0.2
    relevant[torch.arange(40), torch.randint(12, (40,))] = True
    ranking = rank_candidates(queries, candidates, relevant.nonzero(), 6)
    scores = torch.randint(0, 3, (40, 4)).double()  # many ties
    again = rescored(ranking, scores)
    for row in range(40):
        by_cosine = (queries[row] @ candidates.T).argsort(descending=True).tolist()
        first = list(zip(scores[row].tolist(), by_cosine[:4], strict=True))
        order = [one for _, one in sorted(first, key=lambda pair: -pair[0])] + by_cosine[4:]
        assert again.best[row].tolist() == order[:6]
        assert again.found[row].tolist() == relevant[row, order[:6]].tolist()
        assert again.scores[row, :4].tolist() == sorted(scores[row].tolist(), reverse=True)
        # A tie counts against the relevant candidate; behind the first four the order of the cosine decides.
        right = [value for value, one in first if relevant[row, one]]
        wrong = [value for value, one in first if not relevant[row, one]]
        expected = sum(value >= max(right) for value in wrong) if right else ranking.ranks[row]
        assert again.ranks[row] == expected


def test_memory_is_bounded():
    """All scores at once would take 400 MB."""
    vectors = F.normalize(torch.randn(10_000, 4))
    own = torch.arange(10_000)[:, None].expand(-1, 2)
    rank_candidates(vectors[:100], vectors, own[:100], 1, many=100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranking = rank_candidates(vectors, vectors, own, 1, many=100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert ranking.found.float().mean() > 0.99
