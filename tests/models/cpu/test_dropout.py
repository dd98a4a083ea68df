"""Dropout on a CPU: it zeros the right share, scales the rest, and follows seeds and dtypes."""

import pytest
import torch
from torch import nn

from vlp.models.cpu.dropout import CpuDropout, dropout
from vlp.models.cpu.optimise import optimise_for_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_right_share_becomes_zero(dtype, probability):
    torch.manual_seed(0)
    x = torch.ones(301, 1003, dtype=dtype, requires_grad=True)
    y = dropout(x, probability)
    assert y.dtype == dtype
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / x.numel()) ** 0.5)
    assert y[y != 0].unique().tolist() == pytest.approx(
        [1 / (1 - probability)], rel=1e-2 if dtype.itemsize == 2 else 1e-4
    )
    for dimension in (0, 1):  # no pattern along rows or columns
        shares = (y == 0).float().mean(dimension)
        expected = (probability * (1 - probability) / x.shape[dimension]) ** 0.5
        assert shares.std().item() == pytest.approx(expected, rel=0.2)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert torch.equal(gradient, y)


def test_it_follows_pytorchs_seed():
    x = torch.ones(50, 7)
    torch.manual_seed(3)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3), first) and not torch.equal(first, second)


def test_the_module_drops_only_in_training():
    module, x = optimise_for_cpu(nn.Sequential(nn.Dropout(0.5)))[0], torch.ones(1000)
    assert type(module) is CpuDropout
    assert 0 < (module(x) == 0).sum() < 1000
    assert torch.equal(module.eval()(x), x)
    assert dropout(x, 0.0) is x and not dropout(x, 1.0).any()
