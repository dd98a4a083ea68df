"""Hard negatives never equal the true text, and the losses of tasks equal a plain computation."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.tiny_model import spy_on_uses
from vlp.data.loader import training_loader
from vlp.tasks import alignment, build_examples, build_task
from vlp.training.model_setup import build_model

WITHOUT_TWIN = ("objective.queue_size=0", "objective.alpha=0")


@pytest.fixture
def made(run_config):
    """A function that builds the task and batches of a config."""

    def make(*overrides, count=3):
        config = run_config("run", *overrides)
        torch.manual_seed(0)
        model, tokenizer, _ = build_model(config)
        loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
        return build_task(config, model, tokenizer), list(itertools.islice(loader, count))

    return make


def repeat(batch, rows):
    """Copy some captions over others, so that the batch holds equal texts."""
    batch.text_ids, batch.text_mask = batch.text_ids[rows], batch.text_mask[rows]
    batch.text_hashes = batch.text_hashes[rows]
    return batch


def test_hard_negatives_are_never_an_equal_text(made, monkeypatch):
    task, (batch, *_) = made("batch_size=12", count=1)
    batch = repeat(batch, torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]))
    seen = spy_on_uses(task.model.text_tower, monkeypatch)
    for step in range(20):
        seen.clear()
        task.start_step(step, 0.0)
        task(batch)
        own, hard = seen[2][0].ids.view(12, 2, -1).unbind(1)  # ITC and LM come before
        assert torch.equal(own[:, 1:], batch.text_ids[:, 1:])
        assert not (own == hard).all(dim=1).any()


def test_a_batch_of_one_caption_has_no_negatives_and_a_finite_loss(made):
    task, (batch,) = made(count=1)
    batch = repeat(batch, torch.zeros(8, dtype=torch.int64))
    task.start_step(0, 0.0)
    losses, metrics = task(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in [*losses.values(), *metrics.values()])


def test_the_language_loss_equals_a_plain_one(made):
    task, (batch, *_) = made("objective.label_smoothing=0")
    task.start_step(0, 0.0)
    model = task.model.eval()
    lm = task(batch).losses["lm"]
    total, words = 0.0, 0
    for image, ids, mask in zip(batch.images, batch.text_ids, batch.text_mask, strict=True):
        memory = model.text_tower.project_image(model.encode_images(image[None]), "decoder")
        text = ids[mask].clone()
        text[0] = task.dec_id
        log_p = model.caption_logits(text[None, :-1], None, memory)[0].log_softmax(-1)
        total -= log_p[torch.arange(len(text) - 1), text[1:]].sum()
        words += len(text) - 1
    torch.testing.assert_close(lm, total / words)


def test_matching_pairs_each_text_with_its_own_image(made, monkeypatch):
    task, (batch, *_) = made()
    model = task.model.eval()
    task.start_step(0, 0.0)
    seen = spy_on_uses(model.text_tower, monkeypatch)
    task(batch)
    monkeypatch.undo()
    tokens = model.encode_images(batch.images)
    (own, states), (other, _) = seen[2:]  # ITC and LM come before
    for i in range(16):
        memory = model.text_tower.project_image(tokens[i // 2 : i // 2 + 1])
        expected = model.text_tower.match(own.ids[i : i + 1], own.mask[i : i + 1], memory)[0, 0]
        torch.testing.assert_close(states[i, 0], expected, rtol=1e-4, atol=1e-5)
    assert other.memory is own.memory and other.image_index.shape == (8,)
    assert (other.image_index != torch.arange(8)).all()  # the hard images are not the text's own
    torch.testing.assert_close(other.ids, own.ids[::2])


@pytest.mark.parametrize("sharing", ["all", "all_but_cross_attention", "all_but_self_attention", "nothing"])
@pytest.mark.parametrize("task_name", ["pretrain", "captioning", "retrieval"])
def test_every_trained_weight_gets_a_gradient(made, task_name, sharing):
    task, batches = made(f"task={task_name}", f"model.text_tower.sharing={sharing}")
    for step, batch in enumerate(batches):
        task.start_step(step, 0.1)
        sum(task(batch).losses.values()).backward()
    missing = [name for name, value in task.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


def test_retrieval_counts_all_captions_of_an_image_as_positives(made):
    task, (batch, *_) = made("task=retrieval", "objective.alpha=0")
    task.model.eval()
    batch.image_hashes[1] = batch.image_hashes[0]  # two captions of one image
    task.start_step(0, 0.0)
    images = task.model.embed_image_tokens(task.model.encode_images(batch.images))
    texts = task.model.embed_texts(batch.text_ids, batch.text_mask)
    scores = images @ texts.T / task.model.temperature
    target = torch.eye(8)
    target[:2, :2] = 0.5
    expected = (
        -(target * scores.log_softmax(1)).sum(1).mean() / 2 - (target * scores.T.log_softmax(1)).sum(1).mean() / 2
    )
    torch.testing.assert_close(task(batch).losses["itc"], expected, rtol=1e-4, atol=1e-5)


def test_retrieval_counts_captions_of_the_same_image_in_the_queue_as_positives(made):
    task, (batch, other, *_) = made("task=retrieval", "objective.alpha=0")
    task.model.eval()
    task.start_step(0, 0.0)
    task(batch)
    other.image_hashes[2] = batch.image_hashes[5]  # another caption of an image of the batch before
    images = task.model.embed_image_tokens(task.model.encode_images(other.images))
    texts = task.model.embed_texts(other.text_ids, other.text_mask)
    image_queue, text_queue = task.alignment.image_queue, task.alignment.text_queue
    target = torch.cat([torch.eye(8), torch.zeros(8, 8)], dim=1)
    target[2, [2, 8 + 5]] = 0.5

    def loss(rows, columns, in_queue):
        scores = rows @ torch.cat([columns, in_queue.features[in_queue.filled]]).T / task.model.temperature
        return -(target * scores.log_softmax(1)).sum(1).mean()

    expected = (loss(images, texts, text_queue) + loss(texts, images, image_queue)) / 2
    torch.testing.assert_close(task(other).losses["itc"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_without_queue_and_soft_targets_itc_is_info_nce_and_there_is_no_twin(made, task):
    task, (batch, *_) = made(f"task={task}", *WITHOUT_TWIN)
    assert task.alignment.twin is None
    model = task.model.eval()
    task.start_step(3, 0.1)
    images = model.embed_image_tokens(model.encode_images(batch.images))
    texts = model.embed_texts(batch.text_ids, batch.text_mask)
    scores, own = images @ texts.T / model.temperature, torch.arange(8)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    itc = task(batch).losses["itc"]
    torch.testing.assert_close(itc, expected, rtol=1e-5, atol=1e-6)
    weights = [model.text_projection.weight, *model.image_encoder.parameters()]
    for got, plain in zip(torch.autograd.grad(itc, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("one", WITHOUT_TWIN)
def test_soft_targets_or_a_queue_need_the_twin(made, one):
    assert made(one)[0].alignment.twin is not None


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_negatives_get_harder_over_the_first_share_of_the_steps(made, task, monkeypatch):
    task, (batch, *_) = made(f"task={task}", "objective.hardness_ramp=0.5")
    seen, plain = [], alignment.contrast
    monkeypatch.setattr(alignment, "contrast", lambda *given: seen.append(given[-1].hardness) or plain(*given))
    for step in range(4):
        task.start_step(step, 0.1, step / 4)
        task(batch)
    assert seen == [0, 0, 0.5, 0.5, 1, 1, 1, 1]  # of images and of texts


def test_the_prompt_is_not_in_the_loss(made, run_config):
    task, (batch, *_) = made("task=captioning", "objective.prompt=a large", "objective.label_smoothing=0")
    model = task.model.eval()
    losses = task(batch).losses["lm"]
    ids, mask = batch.text_ids, batch.text_mask
    memory = model.text_tower.project_image(model.encode_images(batch.images), "decoder")
    first = ids.clone()
    first[:, 0] = task.dec_id
    log_p = model.caption_logits(first[:, :-1], None, memory).log_softmax(-1)
    words = mask[:, 1:].clone()
    words[:, :2] = False
    picked = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(losses, -(picked * words).sum() / words.sum())


class DeviceMask:
    """A mask on a GPU, whose number of tokens takes long to arrive."""

    def __init__(self, texts, tokens):
        self.device, self.shape = torch.device("cuda"), (texts, tokens)

    def __len__(self):
        return self.shape[0]

    def sum(self):
        return "waited"


@pytest.mark.parametrize(
    ("lengths", "processes", "rows"),
    [([6] * 9 + [14], 1, 68 + 140), ([6] * 9 + [14], 2, 68 + 160), ([4] * 9 + [14], 1, 101), ([4] * 10, 2, 101)],
)
def test_rows_for_the_longest_texts_spare_a_gpu_the_wait_unless_texts_differ_much(
    lengths, processes, rows, monkeypatch
):
    """Ten own texts, and ten drawn ones; those of other processes have at most 16 tokens."""
    monkeypatch.setattr(alignment, "on_its_way", lambda number: lambda: {"waited": 101}[number])
    monkeypatch.setattr(alignment, "world_size", lambda: processes)
    assert alignment.token_count(DeviceMask(20, 16), lengths)() == rows


def test_on_a_cpu_only_the_tokens_are_computed():
    mask = torch.arange(8) < torch.tensor([[3], [8], [4], [1]])
    assert alignment.token_count(mask, [4, 3])() == 16
