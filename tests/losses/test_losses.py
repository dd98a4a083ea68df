"""Losses against plain references, and the distribution of hard negatives."""

import math

import pytest
import torch

from vlp.losses import parts
from vlp.losses.matching import draw_hard_negatives, matching_loss, uniform_noise
from vlp.losses.soft_targets import contrastive_loss, contrastive_targets
from vlp.tasks.itc import Columns, Draw, Rows, contrast


def test_contrastive_loss_equals_a_plain_loop():
    torch.manual_seed(0)
    rows, columns, alpha = 4, 9, 0.3
    online, twin = torch.randn(rows, columns), torch.randn(rows, columns)
    positives = torch.zeros(rows, columns, dtype=torch.bool)
    positives[0, [0, 6]] = positives[1, 1] = positives[2, 2] = positives[3, [3, 8]] = True
    expected = 0.0
    for i in range(rows):
        scores = [math.exp(value) for value in twin[i].tolist()]
        target = [alpha * score / sum(scores) for score in scores]
        for j in positives[i].nonzero().flatten().tolist():
            target[j] += (1 - alpha) / int(positives[i].sum())
        total = math.log(sum(math.exp(value) for value in online[i].tolist()))
        expected -= sum(t * (value - total) for t, value in zip(target, online[i].tolist(), strict=True)) / rows
    targets = contrastive_targets(twin, positives, alpha)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(rows))
    assert abs(contrastive_loss(online, targets).item() - expected) < 1e-5


def test_absent_columns_change_nothing():
    torch.manual_seed(0)
    scores = torch.randn(3, 5, requires_grad=True)
    positives = torch.eye(3, 5, dtype=torch.bool)
    loss = contrastive_loss(scores, contrastive_targets(scores.detach(), positives, 0.4))
    loss.backward()
    wide = torch.cat([scores.detach(), torch.full((3, 4), float("-inf"))], dim=1).requires_grad_()
    wide_positives = torch.cat([positives, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    again = contrastive_loss(wide, contrastive_targets(wide.detach(), wide_positives, 0.4))
    again.backward()
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(wide.grad[:, :5], scores.grad)


def test_hard_negatives_follow_the_softmax_and_avoid_forbidden_columns():
    torch.manual_seed(0)
    scores = torch.tensor([2.0, 0.0, 1.0, -1.0]).repeat(40_000, 1)
    forbidden = torch.tensor([True, False, False, False]).repeat(40_000, 1)
    drawn, valid = draw_hard_negatives(scores, forbidden, torch.rand_like(scores))
    assert valid.all()
    share = drawn.flatten().bincount(minlength=4) / len(drawn)
    expected = torch.tensor([0.0, *torch.tensor([0.0, 1.0, -1.0]).softmax(0).tolist()])
    assert (share - expected).abs().max() < 0.01
    _, valid = draw_hard_negatives(scores[:2], torch.ones(2, 4, dtype=torch.bool), torch.rand(2, 4))
    assert not valid.any()


def test_several_hard_negatives_are_drawn_without_replacement():
    torch.manual_seed(0)
    scores = torch.tensor([2.0, 0.0, 1.0, -1.0]).repeat(40_000, 1)
    forbidden = torch.tensor([True, False, False, False]).repeat(40_000, 1)
    drawn, valid = draw_hard_negatives(scores, forbidden, torch.rand_like(scores), 4)
    assert valid.all(dim=0).tolist() == [True, True, True, False]
    assert torch.equal(drawn[:, :3].sort(dim=1).values, torch.tensor([[1, 2, 3]]).expand(40_000, 3))
    one, two, _ = torch.tensor([0.0, 1.0, -1.0]).softmax(0)
    both = ((drawn[:, 0] == 2) & (drawn[:, 1] == 1)).float().mean()
    assert (both - two * one / (1 - two)).abs() < 0.01


def test_matching_loss_leaves_out_uncounted_pairs():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0]])
    total, right, pairs = matching_loss(logits, torch.tensor([1, 0, 0]), torch.tensor([True, True, False]))
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert abs(total.item() - expected) < 1e-6
    assert (right.item(), pairs.item()) == (2, 2)


def test_noise_depends_on_the_pair_only_and_is_uniform():
    rows = torch.arange(500)
    noise = uniform_noise(7, rows, 400)
    assert torch.equal(uniform_noise(7, rows[123:125], 400), noise[123:125])
    assert not torch.equal(uniform_noise(8, rows, 400), noise)
    assert noise.min() >= 0 and noise.max() < 1 and len(noise.unique()) > 190_000
    assert torch.histc(noise, 50, 0, 1) == pytest.approx(torch.full((50,), 4000.0), abs=320)  # five deviations
    for neighbours in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1]):
        assert neighbours.mean() == pytest.approx(0.25, abs=0.003)


@pytest.mark.parametrize("same_image", [False, True])
def test_rows_in_parts_equal_rows_at_once(same_image, monkeypatch):
    torch.manual_seed(0)
    features, twin, columns = (torch.randn(many, 6).requires_grad_(many == 11) for many in (11, 11, 30))
    temperature = torch.tensor(0.5, requires_grad=True)
    image_hashes, text_hashes = torch.randint(8, (30,)), torch.randint(15, (16,))
    numbers = torch.arange(30)
    own = numbers[3:14]
    rows = Rows(features, twin.detach(), own, own, image_hashes[3:14], text_hashes[3:14, None])
    numbers = numbers.masked_fill(numbers >= 16, -1)
    present = torch.arange(30) < 25
    results = []
    for at_once in (256, 4):
        monkeypatch.setattr(parts, "ROWS_AT_ONCE", at_once)
        everything = Columns(columns, present, numbers, image_hashes, text_hashes[:, None])
        loss, drawn, found = contrast(rows, everything, temperature, 0.4, same_image, Draw(5, 2))
        results.append((loss, drawn, found, *torch.autograd.grad(loss, (features, temperature))))
    for once, parted in zip(*results, strict=True):
        torch.testing.assert_close(once, parted)
    _, drawn, found, *_ = results[0]
    assert (text_hashes[drawn] != text_hashes[3:14, None])[found].all()


@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
def test_hardness_scales_the_similarities_that_negatives_are_drawn_by(hardness):
    count, numbers = 20_000, torch.arange(4)
    features = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    cosines = torch.tensor([1.0, 0.9, 0.0, 0.6])
    rows = Rows(
        features,
        features,
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count),
        torch.zeros(count, 1),
    )
    present = torch.tensor([True, True, True, False])
    columns = Columns(torch.stack([cosines, (1 - cosines**2).sqrt()], 1), present, numbers, numbers, numbers[:, None])
    _, drawn, found = contrast(rows, columns, torch.tensor(0.4), 0.0, False, Draw(3, 1, hardness))
    assert found.all()
    shares = torch.bincount(drawn.flatten(), minlength=4) / count
    expected = (hardness * cosines[1:3] / 0.4).softmax(0)  # the first is the own one, the last is absent
    torch.testing.assert_close(shares, torch.tensor([0.0, *expected, 0.0]), rtol=0, atol=0.015)
