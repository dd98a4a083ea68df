"""Published checkpoints of Compact Transformers become our encoders; they are built from the names and shapes."""

import pytest
import torch
from torch import nn

from vlp.config_model import ImageEncoderConfig
from vlp.convert.towers import CIFAR, IMAGENET, image_tower, with_colors
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower, resolve
from vlp.models.image_encoders.layers import sine_positions


def published(
    width: int, layers: int, hidden: int, kernel: int, convolutions: int, rows: int, sequence_pool: bool, patches: bool
) -> dict[str, torch.Tensor]:
    """A state dict with the published names; positions are learned."""
    rng = torch.Generator().manual_seed(0)
    shapes = {}
    channels = [3, *[64] * (convolutions - 1), width]
    for number in range(convolutions):
        shapes[f"tokenizer.conv_layers.{number}.0.weight"] = (channels[number + 1], channels[number], kernel, kernel)
    if patches:
        shapes["tokenizer.conv_layers.0.0.bias"] = (width,)
    if sequence_pool:
        shapes |= {"classifier.attention_pool.weight": (1, width), "classifier.attention_pool.bias": (1,)}
    else:
        shapes["classifier.class_emb"] = (1, 1, width)
    shapes["classifier.positional_emb"] = (1, rows, width)
    for layer in range(layers):
        linear = {
            "self_attn.qkv": (3 * width, width),
            "self_attn.proj": (width, width),
            "linear1": (hidden, width),
            "linear2": (width, hidden),
        }
        for name, shape in linear.items():
            shapes[f"classifier.blocks.{layer}.{name}.weight"] = shape
            if name != "self_attn.qkv":
                shapes[f"classifier.blocks.{layer}.{name}.bias"] = shape[:1]
        for name in ("pre_norm", "norm1"):
            shapes |= {f"classifier.blocks.{layer}.{name}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {"classifier.norm.weight": (width,), "classifier.norm.bias": (width,)}
    shapes |= {"classifier.fc.weight": (10, width), "classifier.fc.bias": (10,)}
    return {name: 0.02 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("variant", "size", "weights"),
    [
        ("cct:7/3x1", 32, published(256, 7, 512, 3, 1, 256, True, False)),
        ("cct:2/3x2", 32, published(128, 2, 128, 3, 2, 64, True, False)),
        ("cct:14/7x2", 224, published(384, 14, 1152, 7, 2, 196, True, False)),
        ("vit_lite:7/4", 32, published(256, 7, 512, 4, 1, 65, False, True)),
        ("cvt_compact:7/4", 32, published(256, 7, 512, 4, 1, 64, True, True)),
    ],
)
def test_published_checkpoints_have_our_variants_shapes(variant, size, weights, tmp_path):
    torch.save(weights, tmp_path / "checkpoint.pth")
    config, state = image_tower(str(tmp_path / "checkpoint.pth"))
    expected = with_colors(resolve(ImageEncoderConfig(variant, size)), *(CIFAR if size == 32 else IMAGENET))
    assert config == expected
    tower = build_tower(config).eval()
    tower.load_state_dict(state)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        tokens = tower.tokenizer(images)
        convolution = weights["tokenizer.conv_layers.0.0.weight"]
        stride = convolution.shape[-1] if "cct" not in variant else None
        if stride:  # patches: the first one by hand
            first = (convolution * images[0, :, :stride, :stride]).sum(dim=(1, 2, 3))
            torch.testing.assert_close(tokens[0, 0], first + weights["tokenizer.conv_layers.0.0.bias"])
        assert tower(images).isfinite().all()


def test_sine_positions_are_recognised(tmp_path):
    weights = published(128, 2, 128, 3, 2, 64, True, False)
    weights["classifier.positional_emb"] = sine_positions(64, 128)
    torch.save(weights, tmp_path / "checkpoint.pth")
    config, state = image_tower(str(tmp_path / "checkpoint.pth"))
    assert config.positions == "sine" and config.image_size == 32 and "positional_emb" not in state


def test_other_checkpoints_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UserError, match=r"linear.pth holds no image encoder that `vlp convert` knows"):
        image_tower(str(tmp_path / "linear.pth"))
    weights = published(128, 2, 128, 3, 2, 63, True, False)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="63 places of positional_emb form no square grid"):
        image_tower(str(tmp_path / "odd.pth"))
