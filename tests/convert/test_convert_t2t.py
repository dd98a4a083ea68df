"""Published checkpoints of T2T-ViT become our encoders; they are built from the names and shapes."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.convert.towers import IMAGENET, image_tower, with_colors
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower, resolve


def published(width: int, layers: int, hidden: int, performer: bool, rows: int = 197) -> dict[str, torch.Tensor]:
    """A state dict with the published names and shapes."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, rows, width), "norm.weight": (width,), "norm.bias": (width,)}
    for number, wide in ((1, 147), (2, 576)):
        layer = f"tokens_to_token.attention{number}"
        shapes |= {f"{layer}.norm1.{part}": (wide,) for part in ("weight", "bias")}
        shapes |= {f"{layer}.norm2.{part}": (64,) for part in ("weight", "bias")}
        if performer:
            shapes |= {f"{layer}.w": (32, 64), f"{layer}.kqv.weight": (192, wide), f"{layer}.kqv.bias": (192,)}
            inner = ("proj", "mlp.0", "mlp.2")
        else:
            shapes |= {f"{layer}.attn.qkv.weight": (192, wide)}
            inner = ("attn.proj", "mlp.fc1", "mlp.fc2")
        for name in inner:
            shapes |= {f"{layer}.{name}.weight": (64, 64), f"{layer}.{name}.bias": (64,)}
    shapes |= {"tokens_to_token.project.weight": (width, 576), "tokens_to_token.project.bias": (width,)}
    for number in range(layers):
        block = f"blocks.{number}"
        shapes |= {f"{block}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{block}.attn.qkv.weight": (3 * width, width)}
        for name, inputs, outputs in (
            ("attn.proj", width, width),
            ("mlp.fc1", width, hidden),
            ("mlp.fc2", hidden, width),
        ):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
    shapes |= {"head.weight": (1000, width), "head.bias": (1000,)}
    rng = torch.Generator().manual_seed(0)
    return {
        name: 0.05 * torch.randn(shape, generator=rng) + float("norm" in name and "weight" in name)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ("t2t:7", published(256, 7, 512, True)),
        ("t2t:14", published(384, 14, 1152, True)),
        ("t2t:t-14", published(384, 14, 1152, False)),
        ("t2t:19", published(448, 19, 1344, True)),
    ],
)
def test_published_checkpoints_have_our_variants_shapes(variant, weights, tmp_path):
    torch.save({"epoch": 309, "state_dict_ema": weights}, tmp_path / "model.pth.tar")
    config, state = image_tower(str(tmp_path / "model.pth.tar"))
    expected = with_colors(resolve(ImageEncoderConfig(variant, 224)), *IMAGENET)
    assert config == replace(expected, performer_floor=1e-8 if config.performer else 0.0)
    with torch.device("meta"):
        tower = build_tower(config)
    tower.load_state_dict(state, assign=True)


@pytest.mark.parametrize("performer", [False, True])
def test_features_equal_the_published_formulas(performer, tmp_path):
    """The layers between the splits as published; the blocks are our ViT's, which other tests hold to timm's."""
    weights = published(64, 1, 128, performer, rows=5)
    torch.save({"module." + name: weight for name, weight in weights.items()}, tmp_path / "small.pth")
    config, state = image_tower(str(tmp_path / "small.pth"))
    assert (config.image_size, config.layers, config.performer) == (32, 1, performer)
    tower = build_tower(config).eval()
    tower.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = F.unfold(images, 7, padding=2, stride=4).transpose(1, 2)
        for number, side in ((1, 8), (2, 4)):
            layer = f"tokens_to_token.attention{number}."
            part = {name.removeprefix(layer): weight for name, weight in weights.items() if name.startswith(layer)}
            x = (published_performer if performer else published_transformer)(part, x)
            x = F.unfold(x.transpose(1, 2).reshape(2, 64, side, side), 3, padding=1, stride=2).transpose(1, 2)
        x = linear(weights, "tokens_to_token.project", x)
        torch.testing.assert_close(tower.tokens_to_token(images), x, rtol=1e-4, atol=1e-4)
        x = torch.cat([weights["cls_token"].expand(2, -1, -1), x], dim=1) + weights["pos_embed"]
        torch.testing.assert_close(tower(images), tower.norm(tower.blocks[0](x)), rtol=1e-4, atol=1e-4)


def linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def published_transformer(part: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Scores are divided by the square root of the width before narrowing."""
    query, key, value = linear(part, "attn.qkv", norm(part, "norm1", x)).chunk(3, dim=-1)
    weights = (query @ key.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(dim=-1)
    x = value + linear(part, "attn.proj", weights @ value)
    return x + linear(part, "mlp.fc2", F.gelu(linear(part, "mlp.fc1", norm(part, "norm2", x))))


def published_performer(part: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    key, query, value = linear(part, "kqv", norm(part, "norm1", x)).chunk(3, dim=-1)
    key, query = ((one @ part["w"].T - one.square().sum(-1, keepdim=True) / 2).exp() / 32**0.5 for one in (key, query))
    pairs = query @ key.transpose(1, 2)
    x = value + linear(part, "proj", pairs @ value / (pairs.sum(dim=-1, keepdim=True) + 1e-8))
    return x + linear(part, "mlp.2", F.gelu(linear(part, "mlp.0", norm(part, "norm2", x))))


def test_other_structures_are_refused(tmp_path):
    torch.save(published(64, 1, 128, True, rows=7), tmp_path / "odd.pth")
    with pytest.raises(UserError, match="6 places of pos_embed form no square grid"):
        image_tower(str(tmp_path / "odd.pth"))
    weights = published(64, 1, 128, True, rows=5) | {"blocks.0.attn.se.weight": torch.zeros(2)}
    torch.save(weights, tmp_path / "se.pth")
    with pytest.raises(UserError, match=r"se.pth does not fit its settings: blocks.0.attn.se.weight differ"):
        image_tower(str(tmp_path / "se.pth"))
