"""VQA's accuracy on cases made from its definition."""

import pytest

from vlp.evaluation.vqa_accuracy import RIGHT_FORMS, accuracy, normalize


@pytest.mark.parametrize(
    ("matches", "expected"),
    # With m of 10 equal, m annotators see m - 1 others and 10 - m see m: (m * min(m-1, 3) + (10-m) * min(m, 3)) / 30.
    [(0, 0.0), (1, 9 / 30), (2, (2 * 1 + 8 * 2) / 30), (3, (3 * 2 + 7 * 3) / 30), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_each_annotator_is_left_out_once(matches, expected):
    others = [f"other {number}" for number in range(10 - matches)]
    assert accuracy("red", ["red"] * matches + others) == pytest.approx(expected)


def test_a_single_annotator_is_right_or_wrong():
    assert accuracy("The Cat.", ["a cat"]) == 1
    assert accuracy("dog", ["cat"]) == 0


def test_answers_are_normalized_only_where_annotators_differ():
    """The official script does so: `len(set(gtAnswers)) > 1`."""
    assert accuracy("The cat", ["cat"] * 10) == 0
    assert accuracy("The cat", ["cat"] * 9 + ["dog"]) == 1
    assert accuracy(" cat\n", ["cat"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A cat and the dog", "cat and dog"),
        ("two", "2"),
        ("None", "0"),
        ("Yes!", "yes"),
        ("1,000", "1000"),
        ("1,000 - 2", "1000 2"),
        ("red,blue", "red blue"),  # between two letters: a space
        ("red, blue", "red blue"),  # beside a space: removed
        ("t-shirt", "t shirt"),
        ("3.5", "3.5"),
        ("St. Louis", "st louis"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("its", "its"),
        ("it's  5 o'clock", "it's 5 o'clock"),
        ("5 oclock", "5 o'clock"),
        ("half-past ten", "half past 10"),
        ('"stop"', "stop"),
    ],
)
def test_normalization(answer, expected):
    assert normalize(answer) == expected
    assert normalize(normalize(answer)) == expected


def test_contractions_are_the_official_ones():
    for wrong, right in (("wont", "won't"), ("twas", "'twas"), ("shed've", "she'd've"), ("yall'd've", "y'all'd've")):
        assert RIGHT_FORMS[wrong] == right
