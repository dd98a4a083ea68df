"""LM's loss in chunks: value and gradients equal those of the plain loss, with fewer logits in memory."""

import pytest
import torch
from torch.nn import functional as F

from vlp.config_model import TextTowerConfig
from vlp.losses import language
from vlp.losses.language import NOT_COUNTED
from vlp.models.language_head import LanguageHead

VOCABULARY, WIDTH, ROWS = 37, 16, 23


@pytest.fixture
def parts() -> tuple[LanguageHead, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = LanguageHead(TextTowerConfig(VOCABULARY, width=WIDTH))
    with torch.no_grad():
        head.bias.normal_()
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    words = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    targets = torch.randint(VOCABULARY, (ROWS,))
    targets[::5] = NOT_COUNTED
    return head, hidden, words, targets


def plain_loss(head: LanguageHead, hidden: torch.Tensor, words: torch.Tensor, targets: torch.Tensor, smoothing: float):
    """The formula of cross-entropy with label smoothing, row by row."""
    log_p = head(hidden, words).float().log_softmax(dim=-1)
    total = torch.zeros(())
    for row, target in zip(log_p, targets.tolist(), strict=True):
        if target != NOT_COUNTED:
            total = total - (1 - smoothing) * row[target] - smoothing * row.mean()
    return total


def gradients(loss: torch.Tensor, head: LanguageHead, hidden: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss * 0.3, [hidden, words, *head.parameters()]))


@pytest.mark.parametrize("rows_at_once", [1, 7, 23, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_equals_the_plain_loss_for_any_chunk_size(parts, monkeypatch, rows_at_once, smoothing):
    monkeypatch.setattr(language, "LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    head, hidden, words, targets = parts
    loss, expected = head.loss(hidden, words, targets, smoothing), plain_loss(head, hidden, words, targets, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    logits = head(hidden, words)
    theirs = F.cross_entropy(logits, targets, ignore_index=NOT_COUNTED, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)
    for mine, plain in zip(gradients(loss, head, hidden, words), gradients(expected, head, hidden, words), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_under_autocast_only_the_products_are_in_bf16(parts):
    head, hidden, words, targets = parts
    expected = plain_loss(head, hidden, words, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(hidden, words, targets, 0.1)
    assert loss.dtype == torch.float32 and 0 < (loss - expected).abs() < 0.02 * expected
    made, plain = gradients(loss, head, hidden, words), gradients(expected, head, hidden, words)
    assert [one.dtype for one in made] == [torch.float32] * len(made)
    for mine, other in zip(made, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.1, atol=0.03 * other.abs().max().item())


@pytest.mark.parametrize("rows_at_once", [12, 1000])
def test_logits_are_saved_only_if_one_chunk_holds_all(parts, monkeypatch, rows_at_once):
    monkeypatch.setattr(language, "LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    head, hidden, words, targets = parts
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        head.loss(hidden, words, targets, 0.1)
    assert bool({rows * VOCABULARY for rows in (12, 11, ROWS)} & set(kept)) == (rows_at_once > ROWS)


def test_it_is_zero_without_counted_rows(parts):
    head, hidden, words, targets = parts
    for none in (torch.full_like(targets, NOT_COUNTED), targets[:0]):
        rows = hidden[: len(none)]
        loss = head.loss(rows, words, none, 0.1)
        assert loss == 0 and all((one == 0).all() for one in gradients(loss, head, rows, words))
