"""CLIP's and SigLIP's losses: the equations, rows in parts, bounded memory, and two processes equal one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.processes import run_ranks
from vlp.losses import parts
from vlp.losses.info_nce import info_nce
from vlp.losses.sigmoid import sigmoid_loss

SCALARS = (0.2, -3.0)  # temperature and bias


def vectors(images: int, count: int = 1, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(many, width, generator=generator), dim=1) for many in (images, images * count)]
    return rows[0], rows[1]


def plain_softmax(images, texts, temperature, _bias):
    """The mean of two cross-entropies; an image's target is uniform over its texts."""
    count, logits = len(texts) // len(images), images @ texts.T / temperature
    truth = torch.eye(len(images)).repeat_interleave(count, dim=1)  # [images, texts]
    by_image = F.cross_entropy(logits, truth / count)
    return (by_image + F.cross_entropy(logits.T, truth.T.argmax(dim=1))) / 2


def plain_sigmoid(images, texts, temperature, bias):
    """Equation 1 of SigLIP, pair by pair."""
    count, total = len(texts) // len(images), torch.zeros(())
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            z = 1 if j // count == i else -1
            total = total + torch.log(1 / (1 + torch.exp(z * (-(image @ text) / temperature - bias))))
    return -total / len(texts)


LOSSES = {
    "softmax": (plain_softmax, lambda images, texts, temperature, _: info_nce(images, texts, temperature)),
    "sigmoid": (plain_sigmoid, sigmoid_loss),
}


def with_gradients(loss, images, texts) -> list[torch.Tensor]:
    """The loss, and its gradients with respect to images, texts, temperature and bias."""
    leaves = [images.clone(), texts.clone(), *map(torch.tensor, SCALARS)]
    for leaf in leaves:
        leaf.requires_grad_()
    value = 3 * loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros(()) if one is None else one for one in gradients)]


@pytest.mark.parametrize("at_once", [256, 4])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_the_equations(name, count, at_once, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", at_once)
    plain, ours = LOSSES[name]
    rows = vectors(10, count)
    for expected, found in zip(with_gradients(plain, *rows), with_gradients(ours, *rows), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@contextmanager
def keeping() -> Iterator[list[int]]:
    """Yields the numbers of elements of the tensors that are kept for the backward pass."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        yield kept


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        made = function(*arguments, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_grows_with_the_square_of_the_batch(name, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 8)
    for images in (64, 256):
        with LargestTensor() as largest:
            with_gradients(LOSSES[name][1], *vectors(images))
        assert largest.elements <= max(8 * images, images * 12)
        with keeping() as kept:
            LOSSES[name][1](*(rows.requires_grad_() for rows in vectors(images)), *map(torch.tensor, SCALARS))
        assert sum(kept) <= 100 * images  # parts are dropped and computed again


def _in_two(rank: int, meeting_point: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    found = {}
    for name, (_, ours) in LOSSES.items():
        for count in (1, 3):
            images, texts = (rows.chunk(2)[rank] for rows in vectors(10, count))
            found[name, count] = with_gradients(ours, images, texts)
    torch.save(found, f"{results}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    run_ranks(_in_two, str(tmp_path / "meet"), str(tmp_path / "found"))
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    for name, (plain, _) in LOSSES.items():
        for count in (1, 3):
            loss, images, texts, *scalars = with_gradients(plain, *vectors(10, count))
            first, second = (one[name, count] for one in found)
            # DDP averages the gradients of weights over processes, so that those of features are divided by two.
            torch.testing.assert_close((first[0] + second[0]) / 2, loss)
            torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, images, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(torch.cat([first[2], second[2]]) / 2, texts, atol=1e-5, rtol=1e-5)
            for place, expected in enumerate(scalars, start=3):
                torch.testing.assert_close((first[place] + second[place]) / 2, expected, atol=1e-5, rtol=1e-5)


def test_siglip_starts_where_its_paper_says():
    images, texts = vectors(16)
    start = sigmoid_loss(images, texts, torch.tensor(0.1), torch.tensor(-10.0))
    # Nearly all pairs are negative, and the bias makes them so: only the positive pairs cost something.
    assert start == pytest.approx(10 - 10 * (images * texts).sum(dim=1).mean().item(), abs=0.1)
    assert math.isclose(math.log(10), -math.log(0.1))
