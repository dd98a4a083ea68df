"""Texts of dialogs, and the examples that training draws from them."""

import random

import pytest
import torch

from vlp.data.bad_samples import BadSampleError, FilteredSampleError
from vlp.data.chunk import Chunk
from vlp.data.dialogs import DialogWords, Round, read_dialog
from vlp.data.examples_visdial import DialogExamples
from vlp.data.shards import Sample
from vlp.data.tokenizer import train_tokenizer

WORDS = "a red blue green circle square star is it large or small what color yes no left right and the other"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 3, 200)


def info(*answers: str, options: bool = True) -> dict:
    rounds = [{"question": f"is it {answer}?", "answer": answer} for answer in answers]
    if options:
        rounds = [one | {"options": ["no", one["answer"], "Yes!", "left"], "gt_index": 1} for one in rounds]
    return {"caption": "A red circle.", "dialog": rounds}


def sample(key: str, values: dict) -> Sample:
    return Sample(key, "0.tar", b"", None, [], values)


def test_the_text_of_an_answer_is_its_history(tokenizer):
    dialog = DialogWords(tokenizer, 64)
    rounds = [Round("What color is it?", "RED"), Round("and the other", "blue"), Round("is it left?")]
    ids = dialog.answer(dialog.history(rounds, 2), "no")
    plain = " [SEP] ".join(["what color is it? red", "and the other blue", "is it left? no"])
    assert ids == tokenizer.tokenizer.encode(plain, add_special_tokens=False).ids
    assert dialog.answer(dialog.history(rounds, 0), "no") == dialog.words("what color is it? no")


def test_a_long_history_loses_its_beginning(tokenizer):
    whole, short = DialogWords(tokenizer, 256), DialogWords(tokenizer, 16)
    rounds = [Round("what color is it", "red") for _ in range(9)]
    ids = whole.answer(whole.history(rounds, 8), "blue")
    assert len(ids) > 16
    assert short.answer(short.history(rounds, 8), "blue") == ids[-14:]


@pytest.mark.parametrize(
    "values",
    [
        {"caption": "a", "dialog": 3},
        {"caption": None, "dialog": [{"question": "a"}]},
        {"caption": "a", "dialog": [{"question": None}]},
        {"caption": "a", "dialog": [{"question": "a", "answer": 3}]},
        {"caption": "a", "dialog": [{"question": "a", "options": ["b", 3]}]},
        {"caption": "a", "dialog": [{"question": "a", "options": "yes"}]},
        {"caption": "a", "dialog": [{"question": "a", "options": ["b"], "gt_index": 1}]},
        {"caption": "a", "dialog": [{"question": "a", "options": ["b"], "relevance": [1, 0]}]},
        {"caption": "a", "dialog": ["a"]},
    ],
)
def test_a_damaged_dialog_is_a_bad_sample(values):
    with pytest.raises(BadSampleError):
        read_dialog(values)


def test_a_sample_without_a_dialog_is_filtered(tokenizer):
    examples = DialogExamples(tokenizer, 64, 2, 2)
    for values in ({}, {"caption": "a", "dialog": []}, {"caption": "a", "dialog": [{"question": "a"}]}):
        with pytest.raises(FilteredSampleError):
            examples.draw(sample("0", values), random.Random(0))


def chunk_of(examples: DialogExamples, *values: dict) -> Chunk:
    drawn = [examples.draw(sample(str(n), one), random.Random(n)) for n, one in enumerate(values)]
    return Chunk(images=torch.zeros(len(values), 3, 8, 8), keys=[str(n) for n in range(len(values))], drawn=drawn)


def texts_of(batch, tokenizer) -> list[str]:
    return [tokenizer.decode(ids[mask].tolist()) for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True)]


def test_a_true_answer_stands_before_its_false_ones(tokenizer):
    examples = DialogExamples(tokenizer, 64, 2, 2)
    batch = examples.batch(chunk_of(examples, info("red", "blue", "small"), info("star", "yes")))
    assert batch.labels.tolist() == 4 * [1, 0, 0] and batch.counted.all()
    assert batch.text_ids.shape[0] == 12 and (batch.text_ids[:, 0] == tokenizer.enc_id).all()
    assert tokenizer.decode(batch.caption_ids[0][batch.caption_mask[0]].tolist()) == "a red circle"
    texts = texts_of(batch, tokenizer)
    assert len(set(texts)) == 12
    for place, text in enumerate(texts):
        words = text.split()
        asked, answered = words[-2].rstrip("?"), words[-1]
        assert (asked == answered) == bool(batch.labels[place]), text


def test_an_answer_that_differs_only_in_punctuation_is_not_false(tokenizer):
    examples = DialogExamples(tokenizer, 64, 1, 9)
    (drawn,) = examples.draw(sample("0", info("yes")), random.Random(0)).rounds
    assert (drawn.answer, sorted(drawn.false)) == ("yes", ["left", "no"])


def test_without_options_the_answers_of_other_samples_are_false(tokenizer):
    examples = DialogExamples(tokenizer, 64, 1, 2)
    batch = examples.batch(chunk_of(examples, *(info(word, options=False) for word in ("red", "blue", "red"))))
    assert batch.counted.tolist() == 3 * [True, True, False]
    ends = [text.split()[-1] for text in texts_of(batch, tokenizer)]
    assert ends == ["red", "blue", "red", "blue", "red", "blue", "red", "blue", "red"]


def test_a_short_dialog_gives_as_many_texts_and_the_draw_depends_on_the_seed_alone(tokenizer):
    examples = DialogExamples(tokenizer, 64, 3, 1)
    assert len(examples.draw(sample("0", info("red")), random.Random(0)).rounds) == 3
    one = sample("0", info("red", "blue", "small", "large", "left"))
    drawn = [examples.draw(one, random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
