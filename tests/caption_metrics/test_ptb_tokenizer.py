"""Penn Treebank tokens against those of pycocoevalcap's PTBTokenizer: stored ones, and the Java program itself."""

import json
from pathlib import Path

import pytest

from tests.caption_metrics.java_tokenizer import java_tokens
from tests.flickr8k import flickr8k_captions
from vlp.caption_metrics.ptb_tokenizer import ptb_tokens, tokenize_captions

HARD = json.loads((Path(__file__).parent / "ptb_tokens.json").read_text("utf-8"))  # made by `java_tokens`
CAPTIONS = [one["caption"] for one in HARD]


def test_hard_captions_have_the_stored_tokens():
    differing = [
        (one["caption"], one["tokens"], ours)
        for one, ours in zip(HARD, tokenize_captions(CAPTIONS), strict=True)
        if ours != one["tokens"]
    ]
    assert len(HARD) > 100 and not differing


def test_the_stored_tokens_are_those_of_the_java_program(tmp_path):
    assert java_tokens(CAPTIONS, tmp_path) == [one["tokens"] for one in HARD]


def test_all_captions_of_flickr8k_agree_with_the_java_program(tmp_path):
    captions = [text for texts in flickr8k_captions().values() for text in texts]
    captions += [caption.replace(" .", ".").replace(" ,", ",") for caption in captions[::4]]
    ours = tokenize_captions(captions)
    theirs = java_tokens(captions, tmp_path)
    assert [both for both in zip(captions, ours, theirs, strict=True) if both[1] != both[2]] == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man riding a wave.", "a man riding a wave"),
        ("The dog's ball isn't (really) red!", "the dog 's ball is n't -lrb- really -rrb- red"),
        ("  Two  MEN,\n cannot  stop ", "two men can not stop"),
        ("", ""),
        ("😀", ""),
    ],
)
def test_tokens(caption, tokens):
    assert tokenize_captions([caption]) == [tokens]


def test_a_letter_at_the_end_loses_its_period_before_a_sentence():
    assert tokenize_captions(["Vitamin C.", "A man"]) == ["vitamin c", "a man"]
    assert tokenize_captions(["Vitamin C.", "a man"]) == ["vitamin c.", "a man"]
    assert ptb_tokens("Stop.") == ["stop", "."]
    assert tokenize_captions([]) == []
