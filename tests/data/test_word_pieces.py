"""Word pieces by word, beside those that the tokenizer itself makes of the whole text."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vlp.data.tokenizer import load_tokenizer
from vlp.data.word_pieces import WordPieces

MARKS = "ab09AB ,'&/?-.[]#\u00e9\u00a0\x1c\x85\u4e2d\n\t"


@pytest.fixture
def tokenizer(tokenizer_folder) -> Tokenizer:
    return load_tokenizer(str(tokenizer_folder)).tokenizer


def whole(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_the_pieces_are_those_of_the_whole_text(tokenizer):
    rng = random.Random(0)
    words = [
        "a",
        "red",
        "circle",
        "circles",
        "unknown",
        "don't",
        "red/green",
        "9",
        "",
        "x" * 150,
        "[SEP]",
        "[enc]",
        "-",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(500)]
    texts += ["".join(rng.choices(MARKS, k=rng.randrange(20))) for _ in range(500)]
    pieces = WordPieces(tokenizer)
    assert [pieces.of(text) for text in texts] == whole(tokenizer, texts)
    assert [pieces.of(text) for text in texts] == whole(tokenizer, texts)  # now with all words known


def test_a_known_word_does_not_reach_the_tokenizer(tokenizer):
    pieces = WordPieces(tokenizer)
    expected = pieces.of("a large red circle")
    pieces.tokenizer = None
    assert pieces.of("a large red circle") == expected
    assert pieces.of("circle red large a") == [
        piece for word in ("circle", "red", "large", "a") for piece in pieces.known[word]
    ]


def test_words_that_are_special_tokens_are_left_to_the_tokenizer(tokenizer):
    tokenizer.add_special_tokens(["red circle"])
    pieces = WordPieces(tokenizer)
    assert pieces.of("a red circle") == whole(tokenizer, ["a red circle"])[0]


def test_other_tokenizers_read_the_whole_text():
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a b": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    assert WordPieces(tokenizer).of("a b") == [1]
