"""T2T-ViT equals a plain reference: windows cut by loops, and every layer written out."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.layers import recording
from vlp.models.image_encoders.t2t import TokenPerformer, build_t2t, soft_split

SMALL = {"image_size": 32, "width": 32, "layers": 2, "heads": 2, "feed_forward": 64}


def windows(grid: torch.Tensor, side: int, stride: int, padding: int) -> torch.Tensor:
    """[batch, channels, height, width] -> [batch, windows, channels x side x side], window by window."""
    batch, channels, height, width = grid.shape
    padded = torch.zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = grid
    tokens = []
    for top in range(0, height + 2 * padding - side + 1, stride):
        for left in range(0, width + 2 * padding - side + 1, stride):
            tokens.append(padded[:, :, top : top + side, left : left + side].reshape(batch, -1))
    return torch.stack(tokens, dim=1)


def back_to_grid(tokens: torch.Tensor) -> torch.Tensor:
    side = math.isqrt(tokens.shape[1])
    rows = [torch.stack([tokens[:, row * side + column] for column in range(side)], dim=-1) for row in range(side)]
    return torch.stack(rows, dim=-2)  # [batch, width, side, side]


def plain_transformer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    query, key, value = layer.attn.qkv(layer.norm1(x)).split(64, dim=-1)
    weights = (query @ key.transpose(1, 2) / 8).softmax(dim=-1)
    x = value + layer.attn.proj(weights @ value)
    return x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(x))))


def plain_performer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    key, query, value = layer.kqv(layer.norm1(x)).split(64, dim=-1)
    x = value + layer.proj(plain_estimate(layer, query, key, value))
    return x + layer.mlp[2](F.gelu(layer.mlp[0](layer.norm2(x))))


def plain_estimate(layer: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The weights of all pairs of tokens written out, which the layer never computes, in numbers that reach 1e-308."""
    dtype, w = value.dtype, layer.w.double()
    query, key = query.double(), key.double()
    features = [(one @ w.T - (one**2).sum(dim=-1, keepdim=True) / 2).exp() / math.sqrt(len(w)) for one in (query, key)]
    kernel = features[0] @ features[1].transpose(1, 2)  # [batch, tokens, tokens]
    return (kernel / (kernel.sum(dim=-1, keepdim=True) + layer.floor) @ value.double()).to(dtype)


def plain_block(block: nn.Module, x: torch.Tensor, heads: int) -> torch.Tensor:
    parts = [part.chunk(heads, dim=-1) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)]
    attended = []
    for query, key, value in zip(*parts, strict=True):
        attended.append((query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value)
    x = x + block.attn.proj(torch.cat(attended, dim=-1))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def plain_sines(rows: int, width: int) -> torch.Tensor:
    table = torch.zeros(rows, width)
    for row in range(rows):
        for column in range(width):
            angle = row / 10_000 ** (2 * (column // 2) / width)
            table[row, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


def random_norms(tower: nn.Module) -> nn.Module:
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return tower.eval()


@pytest.mark.parametrize(("side", "stride", "padding"), [(7, 4, 2), (3, 2, 1)])
def test_soft_split_equals_loops_over_windows(side, stride, padding):
    grid = torch.randn(2, 3, 16, 16)
    expected = windows(grid, side, stride, padding)
    assert expected.shape[1] == (16 // stride) ** 2
    assert torch.equal(soft_split(grid, side, stride, padding), expected)


@pytest.mark.parametrize(("performer", "floor"), [(False, 0.0), (True, 0.0), (True, 1e-8)])
def test_t2t_equals_a_plain_reference(performer, floor):
    torch.manual_seed(0)
    tower = build_t2t(ImageEncoderConfig("t2t", performer=performer, performer_floor=floor, **SMALL))
    tower = random_norms(tower)
    nn.init.normal_(tower.cls_token)
    images = torch.randn(2, 3, 32, 32)
    splits, layer = tower.tokens_to_token, plain_performer if performer else plain_transformer
    with torch.no_grad():
        x = layer(splits.attention1, windows(images, 7, 4, 2))  # [2, 8 x 8, 64]
        x = layer(splits.attention2, windows(back_to_grid(x), 3, 2, 1))  # [2, 4 x 4, 64]
        x = splits.project(windows(back_to_grid(x), 3, 2, 1))  # [2, 2 x 2, 32]
        x = torch.cat([tower.cls_token.expand(2, -1, -1), x], dim=1) + plain_sines(5, 32)
        for block in tower.blocks:
            x = plain_block(block, x, heads=2)
        torch.testing.assert_close(tower(images), tower.norm(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("floor", [0.0, 1e-8])
@pytest.mark.parametrize("length", [0.3, 1.0, 1.4, 2.0])  # of each entry; 1.4 is that of a trained small model
def test_performers_attend_with_vectors_of_any_length(length, floor):
    torch.manual_seed(0)
    layer = TokenPerformer(8, 64, 1e-5, floor)
    query, key, value = (scale * torch.randn(2, 50, 64) for scale in (length, length, 1.0))
    parts = [part.requires_grad_() for part in (query, key, value)]
    attended, expected = (attend(*parts) for attend in (layer._attend, partial(plain_estimate, layer)))
    torch.testing.assert_close(attended, expected, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(one.square().sum(), parts) for one in (attended, expected)]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()) + 1e-12)
    attends = bool(expected.abs().mean() > 0.05)
    assert attends == (floor == 0 or length < 1)  # the published sum leaves nothing of long vectors


def test_performers_estimate_softmax_attention():
    """With many random features the estimate nears softmax attention, which differs from the mean of the values."""
    torch.manual_seed(0)
    layer = TokenPerformer(8, 8, 1e-5)
    query, key, value = (scale * torch.randn(1, 20, 8) for scale in (0.4, 0.4, 1.0))
    exact = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
    with torch.no_grad():
        layer.w = nn.Parameter(torch.randn(200_000, 8), requires_grad=False)
        many = layer._attend(query, key, value)
    assert (many - exact).abs().mean() < 0.01
    assert (value.mean(dim=1) - exact).abs().mean() > 0.05


def test_performers_compute_in_float32_under_autocast():
    torch.manual_seed(0)
    layer = TokenPerformer(8, 64, 1e-5)
    # Exponents of a dozen: bf16 has no digit after the point there.
    parts = [scale * torch.randn(1, 50, 64) for scale in (0.5, 0.5, 1)]
    parts = [part.bfloat16() for part in parts]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = layer._attend(*parts)
    expected = layer._attend(*(part.float() for part in parts))
    assert mixed.dtype == torch.bfloat16 and expected.abs().mean() > 0.05
    torch.testing.assert_close(mixed.float(), expected, rtol=1e-2, atol=1e-3)


def test_performers_run_on_the_meta_device():
    with torch.device("meta"):
        tower = build_t2t(ImageEncoderConfig("t2t", performer=True, **SMALL))
        assert tower(torch.empty(1, 3, 32, 32)).shape == (1, 5, 32)


def test_projections_and_positions_are_saved_but_never_trained():
    tower = build_t2t(ImageEncoderConfig("t2t", performer=True, **SMALL))
    fixed = {name for name, weight in tower.named_parameters() if not weight.requires_grad}
    assert fixed == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    rows = tower.tokens_to_token.attention1.w
    torch.testing.assert_close(rows @ rows.T, 32 * torch.eye(32), rtol=1e-4, atol=1e-4)


def test_maps_of_both_transformers_between_the_splits_are_recorded():
    tower = build_t2t(ImageEncoderConfig("t2t", **SMALL))
    with recording(tower) as products:
        tower(torch.randn(1, 3, 32, 32))
        assert [tuple(one.recorded.shape) for one in products] == [
            (1, 1, 64, 64),
            (1, 1, 16, 16),
            (1, 2, 5, 5),
            (1, 2, 5, 5),
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, r"image_size \(40\) must be a multiple of the stride of t2t's splits \(16\)\.$"),
        ({"patch_size": 8}, r"patch_size \(8\) must be 16, the stride of t2t\.$"),
        ({"heads": 3}, r"width \(32\) must be a multiple of heads \(3\)\.$"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_t2t(ImageEncoderConfig("t2t", **{**SMALL, **changes}))
