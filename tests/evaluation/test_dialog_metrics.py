"""Metrics of ranked answers: by hand, by plain sorting, and NDCG against scikit-learn."""

import math
import random

import pytest
from sklearn.metrics import ndcg_score

from vlp.evaluation.dialog_metrics import dialog_metrics, ndcg, option_ranks, true_rank


def test_ties_count_against_the_true_option():
    assert true_rank([3.0, 1.0, 2.0], 0) == 1
    assert true_rank([3.0, 1.0, 2.0], 1) == 3
    assert true_rank([1.0, 1.0, 1.0], 1) == 3
    assert true_rank([math.nan, 1.0, 2.0], 0) == 3


def test_option_ranks_are_a_permutation():
    assert option_ranks([0.5, 2.0, -1.0]) == [2, 1, 3]
    assert option_ranks([1.0, 1.0, 2.0]) == [2, 3, 1]


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_equals_that_of_scikit_learn(seed):
    rng = random.Random(seed)
    scores = rng.sample(range(1000), 100)
    relevance = [rng.choice((0, 0, 0, 0.25, 0.5, 1)) for _ in scores]
    k = sum(value > 0 for value in relevance)
    assert ndcg(scores, relevance) == pytest.approx(ndcg_score([relevance], [scores], k=k), abs=1e-12)


def test_ndcg_cuts_at_the_number_of_relevant_options():
    assert ndcg([3, 2, 1], [1, 0, 0]) == 1
    assert ndcg([2, 3, 1], [1, 0, 0]) == 0  # the relevant option is second, and only one is looked at
    assert ndcg([2, 3, 1], [1, 0.5, 0]) == pytest.approx((0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3)))
    assert math.isnan(ndcg([1, 2], [0, 0]))


def test_ndcg_of_equal_scores_is_the_worst_order():
    assert ndcg([1, 1, 1], [0.5, 1, 0]) == ndcg([1, 2, 3], [1, 0.5, 0])


def test_dialog_metrics_equal_plain_ones():
    rng = random.Random(1)
    rows = []
    for number in range(40):
        row = {"scores": [rng.random() for _ in range(20)]}
        if number % 4:
            row["gt_index"] = rng.randrange(20)
        if number % 10 == 0:
            row["relevance"] = [rng.choice((0, 1)) for _ in range(20)] if number else [0] * 20
        rows.append(row)
    metrics = dialog_metrics(rows)
    ranks = []
    for row in rows:
        if "gt_index" in row:
            order = sorted(range(20), key=lambda option: -row["scores"][option])
            ranks.append(order.index(row["gt_index"]) + 1)
    assert metrics["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 30)
    assert metrics["r5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / 30)
    assert metrics["mean_rank"] == pytest.approx(sum(ranks) / 30)
    assert metrics["ndcg"] == pytest.approx(sum(ndcg(r["scores"], r["relevance"]) for r in rows[10::10]) / 3)
    assert (metrics["rounds"], metrics["rounds_with_answer"], metrics["rounds_with_relevance"]) == (40, 30, 3)


def test_a_test_split_has_no_metrics_but_counts():
    assert dialog_metrics([{"scores": [1.0, 2.0]}]) == {
        "rounds": 1,
        "rounds_with_answer": 0,
        "rounds_with_relevance": 0,
    }
