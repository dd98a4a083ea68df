"""The hybrid ViT's stem: padding, standardized filters, its CPU path, and refused settings."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.constant_weights import constant_weights, kept
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.image_encoders.hybrid import Bottleneck, ResNet, StandardizedConv2d, build_hybrid, same_padding

SMALL = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "heads": 2, "stem": [1, 1, 2]}


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(7, 2, (2, 3)), (3, 2, (0, 1)), (3, 1, (1, 1)), (1, 2, (0, 0))]
)
def test_padding_is_tensorflows(side, stride, padding):
    assert same_padding(side, stride) == padding


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1), (1, 2)])
def test_a_standardized_convolution_equals_a_plain_reference(side, stride):
    torch.manual_seed(0)
    convolution, fast = (StandardizedConv2d(4, 6, side, stride) for _ in range(2))
    with torch.no_grad():
        convolution.weight.mul_(3).add_(5)
    fast.load_state_dict(convolution.state_dict())
    optimise_for_cpu(fast)
    filters = torch.stack([(one - one.mean()) / one.std(correction=0) for one in convolution.weight])
    images = torch.randn(2, 4, 8, 8)
    before, after = same_padding(side, stride)
    expected = F.conv2d(F.pad(images, (before, after, before, after)), filters, stride=stride)
    assert expected.shape[-1] == 8 // stride
    torch.testing.assert_close(convolution(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), constant_weights():
        torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_of_the_cpu_path_equal_the_plain_ones(bf16):
    torch.manual_seed(0)
    plain, fast = ResNet([1, 2]), ResNet([1, 2])
    fast.load_state_dict(plain.state_dict())
    optimise_for_cpu(fast)
    images = torch.randn(2, 3, 32, 32)
    for network in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(images).float().square().mean().backward()
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        if bf16:
            assert (other.grad - one.grad).norm() <= 0.05 * one.grad.norm()
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-6)


def test_constant_weights_are_standardized_and_packed_once():
    network = optimise_for_cpu(ResNet([1, 2]))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        with constant_weights():
            first = network(images)
            packed = len(kept() or {})
            assert packed and torch.equal(network(images), first) and len(kept() or {}) == packed
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape))
        with constant_weights():
            assert not torch.allclose(network(images), first)


def test_new_residual_blocks_start_as_their_shortcuts():
    tower = build_hybrid(ImageEncoderConfig("hybrid", **SMALL))
    blocks = [module for module in tower.modules() if isinstance(module, Bottleneck)]
    second, x = blocks[-1], torch.randn(2, 1024, 2, 2).relu()
    assert isinstance(second.downsample, nn.Identity)
    assert torch.equal(second(x), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, r"image_size \(40\) must be a multiple of its patch_size \(16\)\.$"),
        ({"patch_size": 8}, r"patch_size \(8\) must be a multiple of 16, the stride of a stem of 3 stages\.$"),
        ({"stem": [1, 0]}, r"stem \(\[1, 0\]\) must have at least one block in each stage\.$"),
        ({"heads": 3}, r"width \(32\) must be a multiple of heads \(3\)\.$"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_hybrid(ImageEncoderConfig("hybrid", **{**SMALL, **changes}))
