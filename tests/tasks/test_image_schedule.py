"""Patch dropout with an unmasked end, and a lower resolution first, in pretraining."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from vlp.config import ObjectiveConfig
from vlp.data.loader import training_loader
from vlp.models.image_encoders.encoder import resize_positions
from vlp.tasks import build_examples, build_task
from vlp.tasks.image_schedule import ImageView, image_view
from vlp.training.model_setup import build_model

CHEAP = ["objective.patch_dropout=0.75", "objective.unmasked_share=0.2"]
SMALL = ["objective.first_image_size=16", "objective.first_size_share=0.5"]


@pytest.fixture
def made(run_config):
    """A function that builds the task of a config and two batches."""

    def make(*overrides):
        config = run_config("run", *overrides)
        torch.manual_seed(0)
        model, tokenizer, _ = build_model(config)
        loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
        return build_task(config, model, tokenizer).eval(), list(itertools.islice(loader, 2))

    return make


def test_the_view_of_a_step_depends_on_its_share_of_the_run():
    objective = ObjectiveConfig(patch_dropout=0.5, unmasked_share=0.2, first_image_size=96, first_size_share=0.6)
    views = [image_view(objective, step / 10) for step in range(10)]
    assert views == [ImageView(0.5, 96)] * 6 + [ImageView(0.5, 0)] * 2 + [ImageView(1.0, 0)] * 2
    assert image_view(ObjectiveConfig(), 0.0) == ImageView(1.0, 0)


def test_texts_meet_the_kept_patches_alone_and_the_twin_sees_the_same(made, monkeypatch):
    task, (batch, other) = made(*CHEAP)
    seen = []
    plain = task.model.text_tower.project_image
    monkeypatch.setattr(
        task.model.text_tower,
        "project_image",
        lambda tokens, *more: seen.append(tokens) or plain(tokens, *more),
    )
    task.start_step(3, 1.0, 0.7)
    first = task(batch).losses
    assert [tokens.shape[1] for tokens in seen] == [1 + 4] * len(seen)
    # The twin equals the model before its first move. So its features, in the queue, are those of the same patches.
    queued = task.alignment.image_queue.features[:8]
    torch.testing.assert_close(queued, task.model.embed_image_tokens(seen[0]).detach())
    task.alignment.image_queue.filled[:] = task.alignment.text_queue.filled[:] = False
    task.start_step(3, 1.0, 0.7)  # the step and the sample decide which patches stay
    torch.manual_seed(5)
    again = task(batch).losses
    assert all(torch.equal(first[name], again[name]) for name in first)
    seen.clear()
    task.start_step(3, 1.0, 0.8)
    task(other)
    assert [tokens.shape[1] for tokens in seen] == [1 + 16] * len(seen)


def test_the_first_steps_equal_those_of_a_resized_model_on_smaller_images(made):
    task, (batch, other) = made(*SMALL)
    low, _ = made()
    low.load_state_dict(task.state_dict())
    for holder in (low.model, low.alignment.twin):
        encoder = holder.image_encoder
        config = type(encoder.config)(**{**vars(encoder.config), "image_size": 16})
        holder.image_encoder = resize_positions(encoder, config).eval()
    for one, progress in ((batch, 0.0), (other, 0.49)):
        for each in (task, low):
            each.start_step(0, 0.5, progress)
        found = task(one).losses
        one.images = F.interpolate(task.model.image_encoder.normalize(one.images), size=(16, 16), mode="area")
        for name, loss in low(one).losses.items():
            torch.testing.assert_close(found[name], loss, atol=1e-5, rtol=0)
    task.start_step(1, 0.5, 0.5)
    assert task.view == ImageView(1.0, 0)
