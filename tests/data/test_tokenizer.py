"""The tokenizer: BLIP's special tokens, padding, cutting, and the same ids in transformers."""

import pytest
import torch

from vlp.data.tokenizer import load_tokenizer, train_tokenizer
from vlp.errors import UserError

TEXTS = ["a large red circle", "a small blue star is above a green ring", "unknownword circle", ""]


@pytest.fixture
def tokenizer(tokenizer_folder):
    return load_tokenizer(str(tokenizer_folder))


def test_special_tokens_have_the_ids_of_blip(tokenizer):
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    assert (tokenizer.dec_id, tokenizer.enc_id) == (len(tokenizer) - 2, len(tokenizer) - 1)


def test_sequences_are_padded_to_the_longest_rounded_up(tokenizer):
    ids, mask = tokenizer.encode(TEXTS, 16, first="[ENC]")
    assert ids.shape == mask.shape == (4, 16)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert (ids[:, 0] == tokenizer.enc_id).all()
    for row, kept, text in zip(ids, mask, TEXTS, strict=True):
        assert row[kept][-1] == tokenizer.sep_id
        assert (row[~kept] == tokenizer.pad_id).all()
        if "unknown" not in text:
            assert tokenizer.decode(row.tolist()) == text
    assert tokenizer.encode(TEXTS[:1], 16)[0].shape == (1, 8)
    assert tokenizer.encode([], 16)[0].dtype == torch.int64


def test_long_texts_are_cut_and_keep_their_end_token(tokenizer):
    ids, mask = tokenizer.encode(["red " * 50], 10)
    assert mask.sum() == 10
    assert ids[0, 9] == tokenizer.sep_id


def test_a_prompt_begins_with_dec_and_does_not_end(tokenizer):
    ids = tokenizer.prompt_ids("a large")
    assert ids[0] == tokenizer.dec_id
    assert tokenizer.sep_id not in ids
    assert tokenizer.decode(ids) == "a large"
    assert tokenizer.prompt_ids("") == [tokenizer.dec_id]


def test_transformers_gives_the_same_ids(tokenizer, tokenizer_folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.word_ids([text])[0]
    assert theirs.convert_tokens_to_ids("[ENC]") == tokenizer.enc_id
    assert len(theirs) == len(tokenizer)


def test_training_is_repeatable():
    captions = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("circle", "square", "star")] * 3
    one, two = train_tokenizer(captions, 60), train_tokenizer(captions, 60)
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert len(one) <= 60


def test_many_letters_do_not_exceed_the_vocabulary():
    captions = ["".join(chr(0x400 + number) for number in range(200)), "a red circle"] * 3
    one, two = train_tokenizer(captions, 100), train_tokenizer(captions, 100)
    assert len(one) <= 100
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()


def test_folders_that_are_no_tokenizers(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged .*; make it again with `vlp tokenizer`"):
        load_tokenizer(str(tmp_path))
