"""Leaving the padding out changes no number, and no gradient."""

import pytest
import torch

from vlp.config import TextTowerConfig
from vlp.models import text_tower
from vlp.models.cpu.unpadded import places_of, without_padding

LENGTHS = torch.tensor([3, 9, 1, 5])


@pytest.fixture
def tower():
    torch.manual_seed(0)
    tower = text_tower.TextTower(TextTowerConfig(60, width=32, layers=2, heads=2, feed_forward=64, dropout=0.0), 24)
    with torch.no_grad():  # larger weights, so that tokens matter
        for parameter in tower.parameters():
            parameter.mul_(4)
    return tower


def test_rows_leave_and_come_back():
    mask = torch.arange(9) < LENGTHS[:, None]
    unpadded = without_padding(mask)
    assert len(unpadded.index) == 24 and mask.flatten()[unpadded.index[:18]].all()  # 18 tokens, rounded up
    x = torch.randn(4, 9, 5, dtype=torch.float64, requires_grad=True)
    kept = unpadded.remove(x)
    assert torch.equal(kept[:18], x[mask])
    assert torch.equal(unpadded.put_back(kept)[mask], x[mask])
    assert (unpadded.put_back(kept) == 0).all(dim=2).sum() == 36 - 24
    assert torch.autograd.gradcheck(lambda x: unpadded.put_back(unpadded.remove(x).sin()), (x,))
    assert without_padding(torch.ones(4, 9, dtype=torch.bool)) is None and without_padding(None) is None


def test_batches_of_like_sizes_have_few_shapes():
    """A new shape costs oneDNN more than its product."""
    shapes = set()
    for seed in range(100):
        lengths = torch.randint(6, 26, (64, 1), generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(32) < lengths
        places = places_of(mask)
        assert mask.flatten()[places].sum() == mask.sum() and len(places.unique()) == len(places)
        assert mask.sum() <= len(places) <= mask.sum() * 9 / 8
        shapes.add(len(places))
    assert len(shapes) <= 5


@pytest.mark.parametrize("use", ["encode", "match", "decode"])
def test_the_text_tower_gives_the_same(tower, use, monkeypatch):
    ids = torch.randint(5, 60, (4, 9))
    mask = torch.arange(9) < LENGTHS[:, None]
    image_tokens = torch.randn(2, 7, 24, requires_grad=True)
    weights = torch.randn(4, 9, 32) * mask[:, :, None]
    seen = []
    monkeypatch.setattr(text_tower.FeedForward, "forward", record(seen, text_tower.FeedForward.forward))
    results = []
    for leave_out in (True, False):
        if not leave_out:
            monkeypatch.setattr(text_tower, "without_padding", lambda mask: None)
        memory = () if use == "encode" else (tower.project_image(image_tokens, "decoder"),)
        hidden = getattr(tower, use)(ids, mask, *memory)
        wanted = list(tower.parameters()) + ([] if use == "encode" else [image_tokens])
        gradients = torch.autograd.grad((hidden * weights).sum(), wanted, allow_unused=True)
        results.append((hidden * mask[:, :, None], *(one for one in gradients if one is not None)))
    assert seen[:2] == [(24, 32)] * 2 and seen[2:] == [(4, 9, 32)] * 2
    assert len(results[0]) > 20
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * plain.detach().abs().max().item())


def record(shapes, forward):
    return lambda self, x: shapes.append(tuple(x.shape)) or forward(self, x)
