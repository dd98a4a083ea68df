"""VQA finetuning: its loss equals a plain one, questions of an image share its encoding, and the draw is repeatable."""

import itertools
import random

import pytest
import torch
from torch.nn import functional as F

from vlp.data.bad_samples import BadSampleError, FilteredSampleError
from vlp.data.chunk import Chunk
from vlp.data.examples_vqa import QuestionExamples
from vlp.data.loader import training_loader
from vlp.data.shards import Sample
from vlp.data.tokenizer import load_tokenizer
from vlp.demo.vqa_scenes import make_vqa_scenes
from vlp.tasks import build_examples, build_task
from vlp.training.model_setup import build_model


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa") / "train"
    make_vqa_scenes(folder, 60, 32, "test")
    return folder


def with_info(info: dict) -> Sample:
    return Sample("1", "00000.tar", b"", None, [], info)


def sample(*rows) -> Sample:
    return with_info({"questions": list(rows)})


def question(text: str, *answers: str, **more) -> dict:
    return {"question": text, "question_id": text, "answers": list(answers), **more}


def drawn(tokenizer_folder, samples, questions=2):
    examples = QuestionExamples(load_tokenizer(str(tokenizer_folder)), 16, questions)
    found = [examples.draw(one, random.Random(3)) for one in samples]
    return examples, Chunk(torch.zeros(len(samples), 3, 8, 8), drawn=found, keys=[one.key for one in samples])


def test_answers_are_weighted_by_the_share_of_annotators(tokenizer_folder):
    first = sample(question("is it red?", "yes", "yes", "no", "yes"), question("what is above?", "a star"))
    second = sample(question("is it blue?", "no", weight=0.2))
    examples, chunk = drawn(tokenizer_folder, [first, second])
    batch = examples.batch(chunk)
    assert batch.image_index.tolist() == [0, 0, 1]
    texts = [examples.tokenizer.decode(row.tolist()) for row in batch.answer_ids]
    found = dict(zip(zip(batch.question_index.tolist(), texts, strict=True), batch.weights.tolist(), strict=True))
    order = [one.text for one in chunk.drawn[0]]
    red, above = order.index("is it red?"), order.index("what is above?")
    expected = {(red, "yes"): 0.75, (red, "no"): 0.25, (above, "a star"): 1.0, (2, "no"): 0.2}
    assert found == pytest.approx(expected)
    assert (batch.answer_ids[:, 0] == examples.tokenizer.dec_id).all()
    assert (batch.question_ids[:, 0] == examples.tokenizer.enc_id).all()


def test_as_many_questions_of_each_image_need_no_index(tokenizer_folder):
    one = sample(question("is it red?", "no"), question("is it blue?", "no"), question("where?", "no"))
    examples, chunk = drawn(tokenizer_folder, [one, one])
    assert examples.batch(chunk).image_index is None
    assert [row.text for row in chunk.drawn[0]] == [row.text for row in chunk.drawn[1]]  # the same generator


@pytest.mark.parametrize(
    ("info", "error"),
    [
        ({}, FilteredSampleError),
        ({"questions": [question("where?")]}, FilteredSampleError),
        ({"questions": [question("...", "yes")]}, FilteredSampleError),
        ({"questions": "where?"}, BadSampleError),
        ({"questions": [{"question": "where?", "question_id": 1, "answers": "here"}]}, BadSampleError),
    ],
)
def test_samples_without_an_answered_question_are_passed_over(tokenizer_folder, info, error):
    examples = QuestionExamples(load_tokenizer(str(tokenizer_folder)))
    with pytest.raises(error):
        examples.draw(with_info(info), random.Random(0))


@pytest.mark.parametrize(("smoothing", "per_image"), [(0.0, 1), (0.1, 3)])
def test_the_loss_equals_a_plain_one(run_config, questions, smoothing, per_image):
    config = run_config(
        "run",
        "task=vqa",
        f"data.sources=[{{shards: '{questions}/*.tar'}}]",
        f"data.texts_per_image={per_image}",
        f"objective.label_smoothing={smoothing}",
    )
    torch.manual_seed(0)
    model, tokenizer, decoding = build_model(config)
    assert model.config.finetuned_for == "vqa" and (decoding.beams, decoding.max_length) == (3, 10)
    loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
    (batch,) = itertools.islice(loader, 1)
    batch.weights = torch.rand_like(batch.weights)
    task = build_task(config, model, tokenizer).eval()
    loss = task(batch).losses["lm"]

    total, tower = torch.zeros(()), model.text_tower
    index = batch.image_index
    index = torch.arange(8).repeat_interleave(per_image) if index is None else index
    for place, number in enumerate(batch.question_index.tolist()):
        image = model.encode_images(batch.images[index[number]][None])
        ids = batch.question_ids[number][batch.question_mask[number]][None]
        states = tower.match(ids, torch.ones_like(ids, dtype=torch.bool), tower.project_image(image))
        answer = batch.answer_ids[place][batch.answer_mask[place]]
        logits = model.caption_logits(answer[None, :-1], None, tower.project_image(states, "decoder"))[0]
        total = total + batch.weights[place] * F.cross_entropy(
            logits, answer[1:], reduction="sum", label_smoothing=smoothing
        )
    torch.testing.assert_close(loss, total / len(batch.question_ids), rtol=1e-4, atol=1e-5)
    task.train()
    task(batch).losses["lm"].backward()
    missing = [name for name, value in task.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing
