"""Attention by the faster kernel equals PyTorch's and timm's own."""

import copy

import pytest
import torch

from vlp.config_model import ImageEncoderConfig
from vlp.models.cpu import attention
from vlp.models.cpu.attention import CpuDotProduct, fused_attention, plain_attention
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.cpu.timm_attention import CpuTimmAttention
from vlp.models.image_encoders.timm_tower import create_trunk
from vlp.models.image_encoders.vit import build_vit


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("fused", [None, False])  # None: whichever is faster
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_image_attention_equals_the_plain_one(kind, gradients, fused, monkeypatch):
    if fused is not None:
        monkeypatch.setattr(attention, "use_fused_kernel", lambda *_: fused)
    if kind == "vit":
        plain = build_vit(ImageEncoderConfig(image_size=160, patch_size=16, width=64, layers=2, heads=4)).eval()
    else:
        plain = create_trunk("vit_tiny_patch16_224", 160, embed_dim=64, depth=2, num_heads=4).eval()
    fast = optimise_for_cpu(copy.deepcopy(plain))
    assert sum(type(module) in (CpuDotProduct, CpuTimmAttention) for module in fast.modules()) == 2
    images = torch.randn(2, 3, 160, 160)
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        with torch.set_grad_enabled(gradients):
            ours, expected = (tower.to(dtype)(images.to(dtype)) for tower in (fast, plain))
        torch.testing.assert_close(ours, expected, rtol=near, atol=near)
        if gradients:
            weights = torch.randn(ours.shape)
            a, b = (
                torch.autograd.grad((tokens.float() * weights).sum(), tower.blocks[0].attn.qkv.weight)[0].float()
                for tokens, tower in ((ours, fast), (expected, plain))
            )
            assert (a - b).norm() < near * b.norm()


@pytest.mark.parametrize("queries", [1, 8, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_plain_attention_equals_the_fused_kernel(queries, with_bias):
    query, key, value = (torch.randn(2, 3, many, 16) for many in (queries, 50, 50))
    bias = torch.randn(2, 1, queries, 50) if with_bias else None
    plain, fused = (kernel(query, key, value, bias, 0.0) for kernel in (plain_attention, fused_attention))
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias_rows", [None, 1, 100])
def test_many_queries_are_attended_in_parts_without_gradients(bias_rows, monkeypatch):
    monkeypatch.setattr(attention, "MAX_PAIRS", 7 * 50)
    query, key, value = (torch.randn(2, 3, many, 16, dtype=torch.bfloat16) for many in (100, 50, 50))
    bias = None if bias_rows is None else torch.randn(2, 1, bias_rows, 50, dtype=torch.bfloat16)
    sizes = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: sizes.append(x.shape[2]) or softmax(x, dim))
    with torch.no_grad():
        ours = attention.attend(query, key, value, bias)
    assert sizes == [7] * 14 + [2]
    expected = fused_attention(query.float(), key.float(), value.float(), None if bias is None else bias.float(), 0.0)
    torch.testing.assert_close(ours.float(), expected, rtol=3e-2, atol=3e-2)
    assert attention.use_fused_kernel(query.device, query.dtype, 100, 50)  # with gradients, where scores would be kept
