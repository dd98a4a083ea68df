"""The loss of classification and its mixed batches, against plain ones and timm's."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch.nn import functional as F

from vlp.config import ClassificationConfig, ObjectiveConfig, RunConfig
from vlp.config_model import ImageEncoderConfig, ModelConfig
from vlp.data.examples_classification import LabelBatch
from vlp.models.classifier import Classifier
from vlp.tasks.classification import ClassificationTask
from vlp.tasks.mixing import BatchMixing

CLASSES = ["a", "b", "c"]


def images_and_labels(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 3, (count,), generator=generator)


def make_task(**settings):
    torch.manual_seed(0)
    encoder = ImageEncoderConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2)
    model = Classifier(ModelConfig(encoder, network="classifier", classes=CLASSES))
    config = RunConfig(classification=ClassificationConfig(**settings), objective=ObjectiveConfig(label_smoothing=0.2))
    return ClassificationTask(config, model)


def test_the_loss_equals_a_plain_one():
    task = make_task()
    images, labels = images_and_labels()
    losses, metrics = task(LabelBatch(images, [""] * 8, labels))
    logits = task.model.class_logits(task.model.encode_images(images))
    targets = F.one_hot(labels, 3) * 0.8 + 0.2 / 3
    torch.testing.assert_close(losses["classification"], -(targets * logits.log_softmax(1)).sum(1).mean())
    assert metrics["accuracy"] == (logits.argmax(1) == labels).float().mean()


def test_a_mixed_loss_equals_a_plain_one():
    task = make_task(mixup=0.8)
    images, labels = images_and_labels()
    task.start_step(3, 0.0)
    loss = task(LabelBatch(images, [""] * 8, labels)).losses["classification"]
    mixing = BatchMixing(ClassificationConfig(mixup=0.8), 3, 0.2, 0)
    mixing.start_step(3, 0.0)
    mixed, targets, _ = mixing(images, labels)
    share = (mixed[0, 0, 0, 0] - images[1, 0, 0, 0]) / (images[0].float() - images[1].float())[0, 0, 0]
    pairs = images.float().unflatten(0, (4, 2))  # neighbors are mixed
    expected = torch.cat(
        [share * pairs[:, 0] + (1 - share) * pairs[:, 1], (share * pairs[:, 1] + (1 - share) * pairs[:, 0]).flip(0)]
    )
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=0.05)
    logits = task.model.class_logits(task.model.encode_images(task.model.image_encoder.normalize(mixed)))
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    task.eval()
    plain = F.cross_entropy(task.model.class_logits(task.model.encode_images(images)), labels, label_smoothing=0.2)
    torch.testing.assert_close(task(LabelBatch(images, [""] * 8, labels)).losses["classification"], plain)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_pair_is_mixed_as_timm_mixes_it(settings):
    images, labels = images_and_labels(2)
    mixing = BatchMixing(ClassificationConfig(**settings), 3, 0.1, seed=5)
    for step in range(4):
        mixing.start_step(step, 0.0)
        found = mixing(images, labels)
        state = np.random.get_state()
        np.random.seed((5 * 1_000_003 + step * 1009) % 2**32)
        timms = Mixup(settings.get("mixup", 0), settings.get("cutmix", 0), label_smoothing=0.1, num_classes=3)
        expected = timms(images.float(), labels)
        np.random.set_state(state)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[1].sum(1), torch.ones(2))


def test_parts_of_a_batch_are_mixed_as_the_whole():
    images, labels = images_and_labels()
    config = ClassificationConfig(mixup=0.8, cutmix=1.0)
    for step in range(6):
        rows = []
        for parts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
            made = []
            for part in parts:  # of another process each
                mixing = BatchMixing(config, 3, 0.1, seed=1)
                mixing.start_step(step, 0.0)
                mixed, targets, _ = mixing(images[part], labels[part])
                made += [
                    tuple(image.flatten().tolist() + target.tolist())
                    for image, target in zip(mixed, targets, strict=True)
                ]
            rows.append(sorted(made))
        assert rows[0] == rows[1]


def test_batches_of_a_step_differ_and_the_random_state_is_kept():
    images, labels = images_and_labels()
    mixing = BatchMixing(ClassificationConfig(mixup=0.8), 3, 0.1, seed=1)
    before = np.random.get_state()[1].copy()
    mixing.start_step(0, 0.0)
    first, second = mixing(images, labels)[1], mixing(images, labels)[1]
    assert not torch.equal(first, second)
    mixing.start_step(0, 0.0)
    assert torch.equal(mixing(images, labels)[1], first)
    assert (np.random.get_state()[1] == before).all()


def test_later_epochs_are_not_mixed():
    images, labels = images_and_labels()
    mixing = BatchMixing(ClassificationConfig(mixup=0.8, mixed_epochs=2), 3, 0.0, seed=1)
    for epoch, mixes in ((1.9, True), (2.0, False)):
        mixing.start_step(7, epoch)
        mixed, targets, larger = mixing(images, labels)
        one_hot = set(targets.flatten().tolist()) <= {0.0, 1.0}
        assert one_hot is not mixes
    order = torch.tensor([0, 2, 4, 6, 7, 5, 3, 1])
    assert torch.equal(mixed, images[order].float()) and torch.equal(larger, labels[order])
