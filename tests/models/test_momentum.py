"""The momentum twin follows the model, and the queue wraps around."""

import pytest
import torch

from vlp.config_model import ImageEncoderConfig, ModelConfig, StageConfig, TextTowerConfig
from vlp.models.blip import Blip
from vlp.models.momentum import FeatureQueue, MomentumTwin


def small_model() -> Blip:
    torch.manual_seed(0)
    image = ImageEncoderConfig(image_size=16, patch_size=8, width=24, layers=1, heads=2)
    text = TextTowerConfig(vocabulary=30, width=24, layers=2, heads=2, feed_forward=32, dropout=0.0)
    return Blip(ModelConfig(image, text, embed_dim=8)).eval()


def test_the_twin_starts_equal_and_holds_no_decoder():
    model = small_model()
    twin = MomentumTwin(model)
    assert not [name for name, _ in twin.named_parameters() if "decoder" in name or "cross_attention" in name]
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    ids, mask = torch.randint(1, 30, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    image, text = twin.embed(images, ids, mask)
    torch.testing.assert_close(image, model.embed_image_tokens(model.encode_images(images)).detach())
    torch.testing.assert_close(text, model.embed_texts(ids, mask).detach())
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_the_twin_follows():
    model = small_model()
    twin = MomentumTwin(model)
    before = {name: value.clone() for name, value in twin.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    twin.follow(model, 0.9)
    for name, value in twin.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1)


@pytest.mark.parametrize(
    "image",
    [
        ImageEncoderConfig("timm:resnet10t", image_size=32, width=512),
        ImageEncoderConfig("cvt", 32, 4, width=24, stages=[StageConfig(16, layers=2), StageConfig(24, layers=2)]),
    ],
    ids=["resnet", "cvt"],
)
def test_batch_norm_statistics_follow_in_one_process(image):
    torch.manual_seed(0)
    text = TextTowerConfig(vocabulary=30, width=24, layers=1, heads=2, feed_forward=32, dropout=0.0)
    model = Blip(ModelConfig(image, text, embed_dim=8)).train()
    twin = MomentumTwin(model).train()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    ids, mask = torch.randint(1, 30, (6, 5)), torch.ones(6, 5, dtype=torch.bool)
    at_first, _ = twin.embed(images, ids, mask)
    for _ in range(3):
        model.encode_images(images)
        twin.embed(images, ids, mask)  # must not move the twin's statistics by itself
        twin.follow(model, 1.0)
    online = dict(model.named_buffers())
    statistics = {name: one for name, one in twin.named_buffers() if "running" in name or "batches" in name}
    assert len(statistics) >= 30 and not all(torch.equal(one, torch.zeros_like(one)) for one in statistics.values())
    for name, one in statistics.items():
        assert torch.equal(one, online[name]), name
    later, _ = twin.embed(images, ids, mask)  # the weights did not move
    assert (later - at_first).norm(dim=1).min() > (0.1 if image.name.startswith("timm") else 1e-3)
    torch.testing.assert_close(later, model.eval().embed_image_tokens(model.encode_images(images)).detach())


def test_the_queue_wraps_at_any_size():
    queue = FeatureQueue(7, 2)
    pushed = []
    for step in range(5):
        rows = torch.arange(3) + 3 * step
        queue.push(rows[:, None] * torch.ones(2), rows)
        pushed += rows.tolist()
        assert sorted(queue.image_hashes[queue.filled].tolist()) == pushed[-7:]
    assert torch.equal(queue.features[:, 0], queue.image_hashes.float())


def test_the_queue_takes_only_what_is_present():
    queue, plain = FeatureQueue(5, 1), FeatureQueue(5, 1)
    rng = torch.Generator().manual_seed(0)
    for step in range(12):
        rows = torch.arange(7) + 7 * step
        present = torch.rand(7, generator=rng) < 0.4
        queue.push(rows[:, None].float(), rows, present)
        plain.push(rows[present][:, None].float(), rows[present])
        for name, value in plain.named_buffers():
            assert torch.equal(value, queue.get_buffer(name)), (step, name)


def test_only_the_end_of_a_batch_larger_than_the_queue_is_kept():
    queue = FeatureQueue(4, 1)
    queue.push(torch.arange(10.0)[:, None], torch.arange(10))
    assert sorted(queue.image_hashes.tolist()) == [6, 7, 8, 9]


def test_no_queue():
    queue = FeatureQueue(0, 3)
    queue.push(torch.ones(2, 3), torch.ones(2, dtype=torch.int64))
    assert queue.features.shape == (0, 3)
