"""Estimates from labels: intervals cover the truth however reviewers choose by score, and thresholds make sense."""

import math

import numpy as np
import pytest

from vlp.capfilt.review_estimates import (
    Stratum,
    cell_weights,
    counts_for,
    estimate_thresholds,
    short_number,
    suggest_threshold,
    wilson,
)


def world(rng, texts=20_000):
    """Scores of a source, ascending, and whether each text is acceptable: likelier with a high score."""
    scores = np.sort(rng.beta(0.6, 0.6, texts))
    return scores, rng.random(texts) < 0.05 + 0.9 * scores


def drawn(rng, scores, how, count):
    """The rows that a reviewer labels."""
    if how == "random":
        return rng.choice(len(scores), count, replace=False)
    near = np.argsort(np.abs(np.arange(len(scores)) - np.searchsorted(scores, 0.5)))[: len(scores) // 4]
    return np.concatenate([rng.choice(near, 3 * count // 4, replace=False), rng.choice(len(scores), count // 4)])


@pytest.mark.parametrize("how", ["random", "near the threshold and random"])
def test_the_intervals_cover_the_truth(how):
    covered, errors = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores, truth = world(rng)
        rows = np.unique(drawn(rng, scores, how, 120))
        estimates = estimate_thresholds([Stratum(scores, scores[rows], truth[rows].astype(float))])
        for wanted in (0.2, 0.5, 0.8):
            one = min(estimates, key=lambda given: abs(given.threshold - wanted))
            kept = scores >= one.threshold
            right, recall = truth[kept].mean(), truth[kept].sum() / truth.sum()
            covered.append(
                [one.precision.low <= right <= one.precision.high, one.recall.low <= recall <= one.recall.high]
            )
            errors.append(one.precision.value - right)
            assert one.texts == kept.sum()
    assert np.mean(covered, axis=0).min() > 0.9  # of intervals at 95%
    assert abs(np.mean(errors)) < 0.01  # near the threshold the plain share of accepted labels is off by much more


def test_two_sources_are_weighted_by_their_texts():
    rng = np.random.default_rng(0)
    many, few = np.sort(rng.random(9000)), np.sort(rng.random(1000))
    strata = [Stratum(many, many[::225], np.ones(40)), Stratum(few, few[::25], np.zeros(40))]
    loosest = estimate_thresholds(strata)[0]
    assert loosest.precision.value == pytest.approx(0.9, abs=0.01) and loosest.labels == 80
    assert loosest.texts >= 9990
    without = estimate_thresholds([strata[0], Stratum(few, np.array([]), np.array([]))])[0]
    assert without.precision.value == 1 and without.texts <= 9000


def test_a_score_where_less_is_better_mirrors_one_where_more_is():
    rng = np.random.default_rng(1)
    scores, truth = world(rng, 1000)
    rows = np.sort(rng.choice(1000, 50, replace=False))
    plain = estimate_thresholds([Stratum(scores, scores[rows], truth[rows].astype(float))])
    mirrored = estimate_thresholds(
        [Stratum(-scores[::-1], -scores[rows], truth[rows].astype(float))], lower_is_better=True
    )
    assert [(one.precision, one.recall, one.texts) for one in plain] == [
        (one.precision, one.recall, one.texts) for one in mirrored
    ]
    assert [one.threshold for one in plain] == [-one.threshold for one in mirrored]


def test_the_suggestion_is_the_loosest_threshold_of_the_wanted_precision():
    scores = np.linspace(0, 1, 1001)
    rows = np.arange(0, 1001, 10)
    estimates = estimate_thresholds([Stratum(scores, scores[rows], (scores[rows] >= 0.3).astype(float))])
    found = suggest_threshold(estimates, 0.9)
    assert 0.2 < found.estimate.threshold < 0.3 and found.estimate.precision.value >= 0.9
    looser = [one for one in estimates if one.threshold < found.estimate.threshold]
    assert all(one.precision.value < 0.9 for one in looser)
    assert found.sure.precision.low >= 0.9 and found.sure.threshold > found.estimate.threshold
    none = suggest_threshold(estimate_thresholds([Stratum(scores, scores[rows], np.zeros(101))]), 0.9)
    assert none.estimate is None and none.notes[0].startswith(
        "No threshold that keeps 10 labels has a precision of 0.9"
    )


def test_labels_far_from_many_texts_are_noticed():
    scores = np.linspace(0, 1, 1001)
    rows = np.arange(480, 520)
    estimates = estimate_thresholds([Stratum(scores, scores[rows], np.ones(40))])
    middle = min(estimates, key=lambda one: abs(one.threshold - 0.5))
    assert middle.unseen > 0.9
    assert middle.precision.low < 0.75  # few labels stand for many texts


def test_wilson_is_wilson():
    low, high = 0.6249, 0.9448  # of 17 among 20 at 95%: R, prop.test(17, 20, correct = FALSE)
    found = wilson(17 / 20, 20)
    z = 1.959963984540054
    for bound in (found.low, found.high):  # the bounds solve |p - share| = z sqrt(p (1 - p) / n)
        assert abs(bound - 0.85) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 20), rel=1e-9)
    assert low < 0.64 and high > 0.94 and wilson(1.0, 5).high == 1 and wilson(0.0, 5).low == 0


def test_weights_sum_to_the_texts_with_ties_and_few_labels():
    rng = np.random.default_rng(2)
    for labels in (1, 4, 11, 200):
        population = np.sort(rng.integers(0, 12, 500) / 12)
        scores = np.sort(rng.choice(population, labels))
        assert cell_weights(population, scores).sum() == pytest.approx(500)


def test_which_labels_count():
    assert counts_for("sample", "itm") and counts_for("near itm", "itm") and counts_for("highest itm", "itm")
    assert not any(counts_for(shown, "itm") for shown in ("near clip", "disagreement itm clip", "chosen", ""))


@pytest.mark.parametrize(
    ("value", "looser", "lower", "expected"),
    [
        (0.5371, 0.5123, False, "0.537"),
        (0.5371, 0.53705, False, "0.5371"),
        (0.75, -math.inf, False, "0.75"),
        (1.2344, 1.31, True, "1.24"),
        (0.1, 0.1 - 1e-16, False, "0.1"),
    ],
)
def test_the_shortest_number_keeps_the_label_and_drops_the_next(value, looser, lower, expected):
    assert short_number(value, looser, lower) == expected
