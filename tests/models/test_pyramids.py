"""Spatial reduction equals loops over places; the tokens of two stages; settings that do not fit are refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.errors import UserError
from vlp.models.image_encoders.cvt import DepthwiseConvolution
from vlp.models.image_encoders.families import build_tower
from vlp.models.image_encoders.pyramid import ReducedAttention, to_tokens

STAGES = [StageConfig(16, layers=1, reduction=2), StageConfig(24, layers=1, heads=2)]
SMALL = ImageEncoderConfig("pvt", 32, 4, width=24, stages=STAGES)


@pytest.mark.parametrize("pool", [False, True])
def test_spatial_reduction_equals_a_plain_reference(pool):
    torch.manual_seed(0)
    side, small = (14, 7) if pool else (6, 3)
    attention = ReducedAttention(8, 2, 2, pool, 1e-6)
    x = torch.randn(2, side**2, 8)
    kernel, bias = attention.sr.weight, attention.sr.bias
    sources = []
    for row in range(small):
        for column in range(small):
            square = [x[:, (2 * row + i) * side + 2 * column + j] for i in (0, 1) for j in (0, 1)]
            if pool:
                mapped = sum(square) / 4 @ kernel[:, :, 0, 0].T + bias
            else:
                mapped = sum(one @ kernel[:, :, n // 2, n % 2].T for n, one in enumerate(square)) + bias
            normalized = attention.norm(mapped)
            sources.append(F.gelu(normalized) if pool else normalized)
    keys, values = attention.kv(torch.stack(sources, dim=1)).split(8, dim=-1)
    queries, heads = attention.q(x), []
    for one in (slice(0, 4), slice(4, 8)):
        scores = queries[..., one] @ keys[..., one].transpose(1, 2) / 4**0.5
        heads.append(scores.softmax(dim=-1) @ values[..., one])
    expected = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pvt", "pvt_v2", "cvt"])
def test_tokens_of_the_stage_before_are_appended(name):
    config = replace(SMALL, name=name)
    torch.manual_seed(0)
    one, two = build_tower(config).eval(), build_tower(replace(config, last_stages=2)).eval()
    two.load_state_dict(one.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    below = []
    two.stages[0].register_forward_hook(lambda *given: below.append(given[2]))
    with torch.no_grad():
        tokens = two(images)
        assert tokens.shape == (2, 1 + 16 + 64, 24)
        torch.testing.assert_close(tokens[:, :17], one(images))
        torch.testing.assert_close(tokens[:, 17:], two.lateral(below[0]))
        if name == "pvt_v2":
            torch.testing.assert_close(tokens[:, 0], tokens[:, 1:17].mean(dim=1))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_strided_convolution_stays_in_float32_under_autocast_on_a_cpu(stride):
    """PyTorch's backward pass of it takes 20 to 40 times as long in bf16."""
    torch.manual_seed(0)
    layer, found = DepthwiseConvolution(8, stride).train(), []
    for enabled in (False, True):
        grid = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            tokens = layer(grid)
        weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
        (tokens.float() * weights).sum().backward()
        found.append((tokens, grid.grad, layer.conv.weight.grad.clone()))
        layer.zero_grad()
    assert found[1][0].dtype == (torch.float32 if stride == 2 else torch.bfloat16)
    for plain, autocast in zip(*found, strict=True):
        near = (
            {"rtol": 1e-5, "atol": 1e-5}
            if stride == 2
            else {"rtol": 0.1, "atol": 0.05 * float(plain.detach().abs().max())}
        )
        torch.testing.assert_close(autocast.float(), plain, **near)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, r"pvt needs model.image_encoder.stages; list them, or choose a variant"),
        ({"image_size": 36}, r"image_size \(36\) must be a multiple of 8 for pvt with patch_size 4"),
        ({"stages": [replace(STAGES[0], reduction=4), STAGES[1]], "image_size": 24}, r"must be a multiple of 16"),
        (
            {"stages": [STAGES[0], replace(STAGES[1], heads=5)]},
            r"width of stage 2 \(24\) must be a multiple",
        ),
        ({"width": 32}, r"width \(32\) must be the width of the last stage \(24\)"),
        ({"stages": STAGES[1:], "last_stages": 2}, r"last_stages is 2; pvt has one stage"),
        ({"stages": [STAGES[0], replace(STAGES[1], reduction=2)]}, r"the last stage of pvt needs reduction: 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_tower(replace(SMALL, **changes))


def test_folded_normalization_equals_the_plain_one():
    torch.manual_seed(0)
    layer, grid = DepthwiseConvolution(4, 2).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for one in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean):
            one.normal_()
        layer.bn.running_var.copy_(torch.tensor([1e-6, 1e-3, 1, 10]))  # a small one shows whether eps is added
        torch.testing.assert_close(layer(grid), to_tokens(layer.bn(layer.conv(grid))), rtol=1e-4, atol=1e-4)
