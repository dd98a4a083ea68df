"""Metrics against values computed by hand."""

import math

import numpy as np
import pytest
import torch

from vlp.errors import UserError
from vlp.evaluation.metrics import area_under_curve, best_ranks, recall_at_k


def test_best_ranks():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.3, 0.4]])
    relevant = torch.tensor([[True, False, False], [False, True, True], [True, True, False]])
    assert best_ranks(scores, relevant).tolist() == [0, 1, 1]


def test_a_constant_model_gets_no_credit():
    ranks = best_ranks(torch.zeros(6, 6), torch.eye(6, dtype=torch.bool))
    assert recall_at_k(ranks, 5) == 0.0


def test_recall_is_a_share_of_queries():
    ranks = torch.tensor([0, 3, 7])
    assert recall_at_k(ranks, 1) == pytest.approx(1 / 3)
    assert recall_at_k(ranks, 5) == pytest.approx(2 / 3)
    with pytest.raises(UserError):
        recall_at_k(torch.tensor([], dtype=torch.int64), 1)


def test_area_under_curve_counts_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 10, 60).astype(float)  # many ties
    labels = rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert area_under_curve(scores, labels) == pytest.approx(np.mean(pairs))
    assert area_under_curve([0.1, 0.9], [False, True]) == 1.0
    assert area_under_curve(torch.tensor([0.9, 0.1]), torch.tensor([False, True])) == 0.0
    assert math.isnan(area_under_curve([0.3, 0.4], [True, True]))
    assert math.isnan(area_under_curve([0.3, math.nan], [False, True]))


def test_scores_that_are_not_numbers_get_no_credit():
    relevant = torch.eye(4, dtype=torch.bool)
    assert best_ranks(torch.full((4, 4), math.nan), relevant).tolist() == [3, 3, 3, 3]
    scores = torch.eye(4)
    scores[0, 1] = scores[2, 2] = math.nan
    assert best_ranks(scores, relevant).tolist() == [1, 0, 3, 0]
