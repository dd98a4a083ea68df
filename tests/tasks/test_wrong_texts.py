"""Wrong texts of images: ITM learns them against a plain reference, and without them nothing changes."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.task_data import write_judged
from vlp.data.examples import CaptionExamples
from vlp.data.examples_matching import MatchingExamples
from vlp.data.loader import training_loader
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError
from vlp.tasks import alignment, build_examples, build_task
from vlp.training.loop import train
from vlp.training.model_setup import build_model


@pytest.fixture
def judged(tmp_path):
    return f"data.sources=[{{shards: '{write_judged(tmp_path / 'judged')}'}}]"


def first_batch(config, seed=1):
    torch.manual_seed(0)
    model, tokenizer, _ = build_model(config)
    loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=seed)
    (batch,) = itertools.islice(loader, 1)
    task = build_task(config, model, tokenizer).eval()
    task.start_step(0, 5.0)
    return model, task, batch


def test_matching_learns_wrong_texts_as_a_plain_script_does(run_config, judged, monkeypatch):
    model, task, batch = first_batch(run_config("run", "task=retrieval", judged, "objective.wrong_texts=2"))
    drawn, plain = [], alignment.contrast
    monkeypatch.setattr(alignment, "contrast", lambda *given: drawn.append(plain(*given)) or drawn[-1])
    losses = task(batch).losses
    captioned = batch.captioned
    numbers = [int(key) for key in batch.keys]
    assert captioned.tolist() == [number % 3 != 2 for number in numbers] and 0 < captioned.sum() < 8
    assert all(("wrong" in text) != right for text, right in zip(batch.texts, captioned.tolist(), strict=True))
    assert torch.bincount(batch.wrong_images, minlength=8).tolist() == [(0, 2, 1)[number % 3] for number in numbers]

    with torch.no_grad():
        tokens = model.encode_images(batch.images)
        images, texts = model.embed_image_tokens(tokens), model.embed_texts(batch.text_ids, batch.text_mask)
        scores = images @ texts.T / model.temperature
        expected = []
        for rows in (scores, scores.T):  # the twin equals the model before the first step, and the queues are empty
            targets = 0.4 * rows.softmax(dim=1) + 0.6 * torch.eye(8)
            expected.append(-(targets * rows.log_softmax(dim=1)).sum(dim=1)[captioned].mean())
        torch.testing.assert_close(losses["itc"], sum(expected) / 2, atol=1e-5, rtol=0)

        ids = batch.text_ids.clone()
        ids[:, 0] = task.alignment.enc_id
        (_, hard_text, has_text), (_, hard_image, has_image) = drawn
        pairs = [(one, ids[one], batch.text_mask[one], int(captioned[one])) for one in range(8)]
        pairs += [
            (one, ids[n], batch.text_mask[n], 0) for one, n in enumerate(hard_text[:, 0].tolist()) if has_text[one]
        ]
        pairs += [
            (n, ids[one], batch.text_mask[one], 0) for one, n in enumerate(hard_image[:, 0].tolist()) if has_image[one]
        ]
        pairs += zip(batch.wrong_images.tolist(), batch.wrong_ids, batch.wrong_mask, itertools.repeat(0))
        entropies = [
            F.cross_entropy(
                model.match_logits(text[None], mask[None], model.text_tower.project_image(tokens[image : image + 1])),
                torch.tensor([label]),
            )
            for image, text, mask, label in pairs
        ]
        torch.testing.assert_close(losses["itm"], torch.stack(entropies).mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("each", [1, 2])
def test_data_without_wrong_texts_give_the_very_same_losses(run_config, captioned, each):
    more = ["task=retrieval", f"data.sources=[{{shards: '{captioned}/*.tar'}}]", f"data.texts_per_image={each}"]
    outputs = []
    for count in (0, 3):
        _, task, batch = first_batch(run_config("run", *more, f"objective.wrong_texts={count}"))
        outputs.append((batch.texts, task(batch).losses))
    (texts, before), (same, after) = outputs
    assert texts == same and all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_drawn_and_what_is_bad(tokenizer_folder):
    from random import Random

    from vlp.data.bad_samples import BadSampleError, FilteredSampleError
    from vlp.data.shards import Sample

    examples = MatchingExamples(load_tokenizer(str(tokenizer_folder)), 30, "", 1, 4)

    def draw(captions, wrong):
        return examples.draw(Sample("k", "s", b"", None, captions, {"wrong_texts": wrong}), Random(0))

    right, wrong = draw(["a dog"], ["a cat", "A  cat.", "...", "a dog", "a cow"])
    assert right == ["a dog"] and len(wrong) == 2
    plain = CaptionExamples(examples.tokenizer, 30)
    assert draw(["a", "b", "c"], None).right == plain.draw(Sample("k", "s", b"", None, ["a", "b", "c"], {}), Random(0))
    with pytest.raises(FilteredSampleError):
        draw([], ["..."])
    with pytest.raises(BadSampleError, match="bad wrong_texts"):
        draw(["a"], "a cat")


def test_a_filter_finetunes_on_them_and_other_tasks_refuse(run_config, judged):
    result = train(run_config("run", "task=retrieval", judged, "objective.wrong_texts=2", "steps=2"))
    assert result["itm"] > 0
    with pytest.raises(UserError, match=r"^objective\.wrong_texts is for task retrieval; leave it out for task pretr"):
        train(run_config("other", judged, "objective.wrong_texts=2"))
