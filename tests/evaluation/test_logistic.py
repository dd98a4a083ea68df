"""Logistic regression against scikit-learn's, and the search for its penalty."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vlp.evaluation.logistic import choose_shots, fit_logistic, search_penalty, split_held_out


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:600]
    return torch.tensor(data.data[order] / 16), torch.tensor(data.target[order])


@pytest.mark.parametrize("penalty", [1e-1, 1.0, 1e3])
def test_equals_scikit_learn(digits, penalty):
    features, labels = digits
    ours = fit_logistic(features, labels, 10, penalty)
    theirs = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-10)
    theirs.fit(features.numpy(), labels.numpy())
    assert torch.allclose(ours.weight.T, torch.tensor(theirs.coef_), atol=1e-3 * max(1, ours.weight.abs().max()))
    probabilities = ours.scores(features).softmax(dim=1)
    assert torch.allclose(probabilities, torch.tensor(theirs.predict_proba(features.numpy())), atol=1e-4)


def test_the_start_does_not_matter(digits):
    features, labels = digits
    far = fit_logistic(features, labels, 10, 100.0)
    again = fit_logistic(features, labels, 10, 1.0, start=far)
    assert torch.allclose(again.weight, fit_logistic(features, labels, 10, 1.0).weight, atol=1e-3)


def test_a_class_without_images_is_never_predicted(digits):
    features, labels = digits
    kept = labels != 9
    probe = fit_logistic(features[kept], labels[kept], 10, 1.0)
    assert not (probe.scores(features).argmax(dim=1) == 9).any()


@pytest.mark.parametrize("peak", [-6.0, -2.625, 0.0, 1.125, 6.0])
def test_the_search_finds_a_peak_in_few_fits(peak):
    tried = []

    def accuracy(penalty):
        tried.append(penalty)
        return -abs(math.log10(penalty) - peak)

    assert math.log10(search_penalty(accuracy)) == pytest.approx(peak)
    assert len(tried) == len(set(tried)) <= 7 + 4 * 2
    assert math.log10(min(tried)) == pytest.approx(-6) and math.log10(max(tried)) == pytest.approx(6)


def test_of_equal_penalties_the_median_is_chosen():
    assert search_penalty(lambda penalty: 1.0) == pytest.approx(1)
    assert 1e-3 < search_penalty(lambda penalty: float(penalty < 10)) < 1


def test_held_out_images_and_shots_are_drawn_by_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    fit, held_out = split_held_out(labels, 0.2, seed=0)
    assert labels[held_out].tolist() == [0, 0, 1]
    assert sorted([*fit.tolist(), *held_out.tolist()]) == list(range(16))
    assert [part.tolist() for part in split_held_out(labels, 0.2, seed=0)] == [fit.tolist(), held_out.tolist()]
    shots = choose_shots(labels, 3, seed=1)
    assert labels[shots].bincount().tolist() == [3, 3, 1]
    assert shots.tolist() != choose_shots(labels, 3, seed=2).tolist()
