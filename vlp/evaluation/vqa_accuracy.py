"""VQA's accuracy (Antol et al. 2015; https://visualqa.org/evaluation.html): answers are normalized, then compared."""

import re
from collections.abc import Sequence

ENOUGH = 3  # equal answers of other annotators make an answer fully right
ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # one before a digit belongs to a number
# Contractions whose apostrophes annotators leave out: the official list, as the right forms.
CONTRACTIONS = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
DOUBLE_CONTRACTIONS = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""


def _without_apostrophes() -> dict[str, str]:
    """Each contraction by the forms that lack one of its apostrophes."""
    forms = {right.replace("'", ""): right for right in CONTRACTIONS.split()}
    forms["somebody'd"] = "somebodyd"  # as in the official list
    for right in DOUBLE_CONTRACTIONS.split():
        for place in (place for place, letter in enumerate(right) if letter == "'"):
            forms[right[:place] + right[place + 1 :]] = right
    return forms


RIGHT_FORMS = _without_apostrophes()


def normalize(answer: str) -> str:
    """An answer as the official script compares it.

    Lower case; punctuation removed, or replaced by a space where it stands between two letters; periods removed unless
    they belong to a number; number words as digits; no articles; contractions with their apostrophes.
    """
    text = " ".join(answer.split())
    number = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if beside_space or number else " ")
    words = [DIGITS.get(word, word) for word in PERIOD.sub("", result).lower().split()]
    return " ".join(RIGHT_FORMS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The share, 0 to 1, of an answer that is right: the mean over annotators of min(matches among the others / 3, 1).

    As in the official script, answers are only normalized where the annotators differ. An answer of a single annotator
    is right or wrong.

    Args:
        annotators: the answer of each, at least one.
    """
    answer, given = " ".join(answer.split()), [" ".join(one.split()) for one in annotators]
    if len(given) == 1:
        return float(normalize(answer) == normalize(given[0]))
    if len(set(given)) > 1:
        answer, given = normalize(answer), [normalize(one) for one in given]
    matches = [one == answer for one in given]
    return sum(min((sum(matches) - own) / ENOUGH, 1.0) for own in matches) / len(matches)
