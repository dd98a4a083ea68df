"""Packed linear layers: the same products, under the same names, also after their weights change."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny_model import make_model
from vlp.models.cpu.packed import PackedLinear, PackedProduct, pack_linears, packable

needs_packing = pytest.mark.skipif(not packable(), reason="this PyTorch has no packed products")


@needs_packing
@pytest.mark.parametrize("rows", [(1,), (5, 1), (3, 7)])
@pytest.mark.parametrize("dtype", sorted(packable(), key=str))
@torch.no_grad()
def test_equals_the_plain_product(rows, dtype):
    linear = nn.Linear(48, 80).to(dtype)
    x = torch.randn(*rows, 48, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    packed = PackedLinear(linear)
    torch.testing.assert_close(packed(x), linear(x), **close)
    assert packed.product.packed is not None  # not by the plain way
    torch.testing.assert_close(packed(x.transpose(0, -2)), linear(x.transpose(0, -2)), **close)  # no copy in order


@needs_packing
@torch.no_grad()
def test_under_autocast_it_computes_in_that_precision():
    linear = nn.Linear(48, 80)
    x = torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = PackedLinear(linear)(x), linear(x)
    assert ours.dtype == plain.dtype
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2)


@needs_packing
@torch.no_grad()
def test_changed_weights_are_packed_anew():
    packed = PackedLinear(nn.Linear(16, 24))
    x = torch.randn(2, 16)
    packed(x)
    packed.weight.mul_(3)
    torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))
    packed.weight.data = torch.randn(24, 16)
    torch.testing.assert_close(packed(x), F.linear(x, packed.weight, packed.bias))
    packed.double()  # a format that is not packed
    torch.testing.assert_close(packed(x.double()), F.linear(x.double(), packed.weight, packed.bias))


@needs_packing
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_equal_the_plain_ones(with_bias):
    linear = nn.Linear(48, 80, bias=with_bias)
    x = torch.randn(3, 7, 48, requires_grad=True)
    packed, weights = PackedLinear(linear), torch.randn(3, 7, 80)
    wanted = [x, *linear.parameters()]
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):  # the second is no copy in order
        ours, plain = (torch.autograd.grad((layer(given) * weights).sum(), wanted) for layer in (packed, linear))
        for mine, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    assert packed.product.packed is None
    linear.weight.requires_grad_(False)
    (ours,) = torch.autograd.grad((packed(x) * weights).sum(), x)
    torch.testing.assert_close(ours, plain[0], rtol=1e-5, atol=1e-5)


def test_training_in_bf16_goes_by_the_plain_way():
    packed = PackedLinear(nn.Linear(16, 24))
    with torch.autocast("cpu", torch.bfloat16):
        packed(torch.randn(2, 16)).sum().backward()
    assert packed.weight.grad is not None and packed.product.packed is None


@torch.no_grad()
def test_a_model_keeps_its_names_and_its_logits():
    plain = make_model().blip.eval()
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    assert not [one for one in packed.modules() if type(one) is nn.Linear]
    assert isinstance(packed.language_head.product, PackedProduct)
    before, after = plain.state_dict(), packed.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    size = plain.config.image_encoder.image_size
    images, ids = torch.randn(2, 3, size, size), torch.randint(5, plain.config.text_tower.vocabulary, (2, 6))
    for model in (packed, copy.deepcopy(packed)):
        memory, expected = (one.text_tower.project_image(one.encode_images(images)) for one in (model, plain))
        torch.testing.assert_close(model.caption_logits(ids, None, memory), plain.caption_logits(ids, None, expected))
