"""Several texts of an image in one step: the losses equal those of repeated images with the right masks."""

import itertools
import random

import pytest
import torch
from torch.nn import functional as F

from vlp.config import TextChoiceConfig
from vlp.data.loader import training_loader
from vlp.data.text_choice import Text, choose_texts
from vlp.tasks import alignment, build_examples, build_task
from vlp.training.model_setup import build_model


@pytest.fixture
def made(run_config, captioned):
    """A function that builds the task of a config and batches of images with one to three captions."""

    def make(*overrides, count=2):
        config = run_config(
            "run", f"data.sources=[{{shards: '{captioned}/*.tar'}}]", "data.texts_per_image=3", *overrides
        )
        torch.manual_seed(0)
        model, tokenizer, _ = build_model(config)
        loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
        return build_task(config, model, tokenizer), list(itertools.islice(loader, count))

    return make


def cross_entropy(rows, twin, columns, positives, present, temperature, alpha):
    """Per row, by plain loops over the present columns."""
    losses = []
    for row, twin_row, wanted in zip(rows, twin, positives, strict=True):
        logits = (row @ columns[present].T) / temperature
        soft = ((twin_row @ columns[present].T) / temperature).softmax(0)
        truth = wanted[present].float() / wanted.sum()
        losses.append(-((alpha * soft + (1 - alpha) * truth) * logits.log_softmax(0)).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("task_name", ["pretrain", "retrieval"])
def test_the_losses_equal_those_of_repeated_images(made, task_name, monkeypatch):
    task, (before, batch) = made(f"task={task_name}", "objective.label_smoothing=0")
    model, align = task.model.eval(), task.alignment
    of_text = batch.image_index.tolist()
    assert sorted(set(map(of_text.count, of_text))) == [1, 2, 3]
    batch.image_hashes[1] = before.image_hashes[0]  # a later visit of an image that is in the queue
    task.start_step(0, 2.0)
    task(before)
    queues = [
        (queue.features.clone(), queue.filled.clone(), queue.image_hashes.clone())
        for queue in (align.image_queue, align.text_queue)
    ]
    drawn = []
    plain = alignment.contrast

    def spy(*arguments):
        drawn.append(plain(*arguments))
        return drawn[-1]

    monkeypatch.setattr(alignment, "contrast", spy)
    losses = task(batch).losses

    # ITC: every text with a copy of its image; each image's later copies are masked among the columns.
    copies = batch.images[of_text]
    images = F.normalize(model.image_projection(model.encode_images(copies)[:, 0]), dim=1)
    texts = model.embed_texts(batch.text_ids, batch.text_mask)
    twin_images, twin_texts = align.twin.embed(copies, batch.text_ids, batch.text_mask)
    hashes, temperature = batch.image_hashes[of_text], model.temperature
    first = torch.tensor([image not in of_text[:place] for place, image in enumerate(of_text)])
    own = torch.tensor(of_text)[:, None] == torch.tensor(of_text)
    terms = []
    for rows, twin, columns, here, (queued, filled, queue_hashes) in (
        (images, twin_images, twin_texts, torch.ones_like(first), queues[1]),
        (texts, twin_texts, twin_images, first, queues[0]),
    ):
        positives, later = own & here, torch.zeros(len(own), len(filled), dtype=torch.bool)
        if task_name == "retrieval":
            positives = (hashes[:, None] == hashes) & here
            later = (hashes[:, None] == queue_hashes) & filled
            assert later.any()
        everything, present = torch.cat([columns, queued]), torch.cat([here, filled])
        wanted = torch.cat([positives, later], dim=1)
        terms.append(cross_entropy(rows, twin, everything, wanted, present, temperature, align.alpha))
    expected = (terms[0][first].mean() + terms[1].mean()) / 2
    torch.testing.assert_close(losses["itc"], expected, atol=1e-5, rtol=0)

    # ITM: three pairs a text, each with an image memory of its own.
    (_, hard_texts, has_text), (_, hard_images, has_image) = drawn
    assert has_image.all()
    pairs = [(image, text, 1) for text, image in enumerate(of_text)]
    place = [of_text[:text].count(image) for text, image in enumerate(of_text)]
    texts_of = {3 * image + place[text]: text for text, image in enumerate(of_text)}  # by their place in the table
    for text, image in enumerate(of_text):
        assert has_text[image, place[text]]
        pairs.append((image, texts_of[int(hard_texts[image, place[text]])], 0))
        pairs.append((int(hard_images[text]), text, 0))
    for image, text, _ in pairs[len(of_text) :]:
        assert batch.image_hashes[of_text[text]] != batch.image_hashes[image]
    for image in range(8):  # the hard texts of an image differ
        assert len(set(hard_texts[image, : of_text.count(image)].tolist())) == of_text.count(image)
    ids = batch.text_ids.clone()
    ids[:, 0] = align.enc_id
    entropies = []
    for image, text, label in pairs:
        memory = model.text_tower.project_image(model.encode_images(batch.images[image : image + 1]))
        logits = model.match_logits(ids[text : text + 1], batch.text_mask[text : text + 1], memory)
        entropies.append(F.cross_entropy(logits, torch.tensor([label])))
    torch.testing.assert_close(losses["itm"], torch.stack(entropies).mean(), atol=1e-5, rtol=0)

    if task_name == "pretrain":  # LM: the mean over the tokens of all texts
        total, words = 0.0, 0
        for text, image in enumerate(of_text):
            row = batch.text_ids[text][batch.text_mask[text]].clone()
            row[0] = task.dec_id
            memory = model.text_tower.project_image(model.encode_images(batch.images[image : image + 1]), "decoder")
            log_p = model.caption_logits(row[None, :-1], None, memory)[0].log_softmax(-1)
            total -= log_p[torch.arange(len(row) - 1), row[1:]].sum()
            words += len(row) - 1
        torch.testing.assert_close(losses["lm"], total / words, atol=1e-5, rtol=0)

    # The queue of images takes each image once, that of texts every text, both with the hash of the image.
    assert align.image_queue.image_hashes[8:16].tolist() == batch.image_hashes.tolist()
    start = len(before.text_ids)
    rows = [(start + text) % 24 for text in range(len(of_text))]
    assert align.text_queue.image_hashes[rows].tolist() == hashes.tolist()
    torch.testing.assert_close(align.text_queue.features[rows], twin_texts)


def test_equally_many_texts_need_no_index(made):
    task, (batch, *_) = made(count=1)
    rows = torch.tensor([batch.image_index.tolist().index(image) for image in range(8)]).repeat_interleave(2)
    batch.text_ids, batch.text_mask = batch.text_ids[rows], batch.text_mask[rows]
    batch.text_hashes = torch.arange(16)
    task.eval()
    found = []
    for index in (None, torch.arange(8).repeat_interleave(2)):
        batch.image_index = index
        task.start_step(0, 1.0)
        found.append(task(batch).losses)
        task.alignment.image_queue.filled[:] = False
        task.alignment.text_queue.filled[:] = False
    for name, loss in found[0].items():
        torch.testing.assert_close(loss, found[1][name], atol=1e-5, rtol=0)


def test_several_texts_are_drawn_from_a_table_without_replacement():
    texts = [Text("web", "a", 0.9), Text("web", "a", 0.8), Text("web", "b", 0.2), Text("synthetic", "c", 0.9)]
    choice = TextChoiceConfig(web=0.75, human=0.0, synthetic=0.25, floor=0.1)
    counts = dict.fromkeys(itertools.permutations("abc", 2), 0)
    for draw in range(4000):
        two = choose_texts(texts, choice, random.Random(f"caption {draw}"), 2)
        assert two[0] == choose_texts(texts, choice, random.Random(f"caption {draw}"))[0]
        counts[tuple(two)] += 1
    # a web text first: 3/4, of which "a" two thirds; then the chances of what is left
    shares = {pair: count / 4000 for pair, count in counts.items()}
    assert shares["a", "c"] == pytest.approx(0.5 * 0.25, abs=0.02)
    assert shares["a", "b"] == pytest.approx(0.5 * 0.75, abs=0.025)
    assert shares["c", "a"] == pytest.approx(0.25 * 2 / 3, abs=0.02)
    assert sorted(choose_texts(texts, choice, random.Random(0), 9)) == ["a", "b", "c"]
