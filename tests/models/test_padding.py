"""Removing padding changes no number and no gradient."""

import copy

import pytest
import torch

from tests.tiny_model import make_images, make_model
from vlp.config import ObjectiveConfig, RunConfig
from vlp.config_model import TextTowerConfig
from vlp.data.batch import Batch
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.padding import skip_padding
from vlp.models.text_layers import FeedForward, Layer
from vlp.models.text_rows import layout_of, rounded_up, true_places
from vlp.models.text_tower import TextTower
from vlp.tasks.pretrain import PretrainTask

LENGTHS = torch.tensor([3, 9, 1, 5])


def test_rows_are_removed_and_put_back():
    mask = torch.arange(9) < LENGTHS[:, None]
    unpadded = layout_of(mask)
    assert len(unpadded.index) == 24 and mask.flatten()[unpadded.index[:18]].all()  # 18 tokens, rounded up
    x = torch.randn(4, 9, 5, dtype=torch.float64, requires_grad=True)
    kept = unpadded.remove_padding(x)
    assert torch.equal(kept[:18], x[mask])
    assert torch.equal(unpadded.put_back(kept)[mask], x[mask])
    assert (unpadded.put_back(kept) == 0).all(dim=2).sum() == 36 - 24
    assert torch.autograd.gradcheck(lambda x: unpadded.put_back(unpadded.remove_padding(x).sin()), (x,))
    assert layout_of(torch.ones(4, 9, dtype=torch.bool)) is None and layout_of(None) is None


def test_the_host_can_count_the_tokens_beforehand():
    mask = torch.arange(9) < LENGTHS[:, None]
    assert torch.equal(layout_of(mask, 18).index, layout_of(mask).index)
    assert torch.equal(true_places(mask.flatten(), 18), mask.flatten().nonzero()[:, 0])
    assert layout_of(mask, 34) is None  # removing so little does not pay


def test_batches_of_similar_sizes_have_few_shapes():
    """A new shape costs oneDNN more than its product."""
    shapes = set()
    for seed in range(100):
        lengths = torch.randint(6, 26, (64, 1), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(32) < lengths
        index = layout_of(mask).index
        assert mask.flatten()[index].sum() == mask.sum() and len(index.unique()) == len(index)
        assert mask.sum() <= len(index) == rounded_up(int(mask.sum())) <= mask.sum() * 9 / 8
        shapes.add(len(index))
    assert len(shapes) <= 5


@pytest.mark.parametrize("use", ["encode", "match", "decode"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded_memory", [False, True])
def test_the_text_tower_gives_the_same(use, checkpointing, padded_memory, monkeypatch):
    torch.manual_seed(0)
    plain = TextTower(TextTowerConfig(60, width=32, layers=2, heads=2, feed_forward=64, dropout=0.0), 24)
    with torch.no_grad():  # larger weights, so that tokens matter
        for parameter in plain.parameters():
            parameter.mul_(4)
    fast = optimise_for_cpu(copy.deepcopy(plain))
    fast.checkpointing = checkpointing
    ids = torch.randint(5, 60, (4, 9))
    mask = torch.arange(9) < LENGTHS[:, None]
    image_tokens = torch.randn(2, 7, 24, requires_grad=True)
    memory_mask = torch.arange(7) < torch.tensor([[7], [4]]) if padded_memory else None
    weights = torch.randn(4, 9, 32) * mask[:, :, None]
    shapes, forward = [], FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x, rows: shapes.append(x.shape) or forward(self, x, rows))
    results = []
    for tower in (fast, plain):
        memory = () if use == "encode" else (tower.project_image(image_tokens, "decoder", memory_mask),)
        hidden = getattr(tower, use)(ids, mask, *memory)
        wanted = list(tower.parameters()) + ([] if use == "encode" else [image_tokens])
        gradients = torch.autograd.grad((hidden * weights).sum(), wanted, allow_unused=True)
        results.append((hidden * mask[:, :, None], *(one for one in gradients if one is not None)))
    assert shapes[:2] == [(24, 32)] * 2 and shapes[-2:] == [(36, 32)] * 2
    assert len(results[0]) > 20
    for ours, expected in zip(*results, strict=True):
        # Processors round their products differently; one of them needs 1.3e-5.
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=5e-5 * expected.detach().abs().max().item())


def test_a_step_without_padding_is_the_plain_one(monkeypatch):
    """As on a GPU: no other fast path is on, and the loader has counted the tokens."""
    captions = [
        "a red circle",
        "a small blue square left of the large green star",
        "white shape",
        "a star on the right",
    ]
    taken = []
    for skips in (False, True):
        model = make_model(dropout=0.0)
        if skips:
            skip_padding(model.network)
        task = PretrainTask(RunConfig(objective=ObjectiveConfig(queue_size=8)), model.blip, model.tokenizer)
        ids, mask = model.tokenizer.encode(captions, 24)
        numbers = torch.arange(len(captions))
        batch = Batch(make_images(len(captions)), captions, ids, mask, numbers, numbers, captions)
        if skips:
            batch.lengths = mask.sum(dim=1).tolist()
            seen = spy_on_rows(model, monkeypatch)
        losses, _ = task(batch)
        sum(losses.values()).backward()
        gradients = {name: one.grad for name, one in task.named_parameters() if one.grad is not None}
        taken.append(({name: value.detach() for name, value in losses.items()}, gradients))
    assert len(seen) == 4 and all(rows < full for rows, full in seen)  # ITC, LM, ITM twice
    torch.testing.assert_close(taken[1], taken[0], rtol=1e-4, atol=1e-5)


def spy_on_rows(model, monkeypatch):
    """The rows of each use that enter the first layer, and those of the padded texts."""
    seen, forward = [], Layer.forward

    def spy(self, x, texts):
        if self is model.blip.text_tower.layers[0]:
            layouts = [use.layout for use in texts.together.uses]
            assert sum(one.rows for one in layouts) == len(x)
            seen.extend((one.rows, one.texts * one.tokens) for one in layouts)
        return forward(self, x, texts)

    monkeypatch.setattr(Layer, "forward", spy)
    return seen
