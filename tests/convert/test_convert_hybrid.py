"""The hybrid ViTs of timm become our encoders with equal features."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vlp.config_model import ImageEncoderConfig
from vlp.convert.towers import HALF, image_tower, with_colors
from vlp.errors import UserError
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.image_encoders.families import build_tower, resolve


def random_model(name: str, **sizes) -> nn.Module:
    """A model of timm whose norms and positions are random, too."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **sizes).eval()
    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    nn.init.normal_(model.pos_embed, std=0.2)
    nn.init.normal_(model.cls_token, std=0.2)
    return model


@pytest.mark.parametrize(
    ("name", "stem", "patch_size"),
    [
        ("vit_tiny_r_s16_p8_224", [], 32),
        ("vit_small_r26_s32_224", [2, 2, 2, 2], 32),
        ("vit_base_r50_s16_384", [3, 4, 9], 16),
        ("vit_large_r50_s32_224", [3, 4, 6, 3], 32),
    ],
)
def test_features_equal_timms(name, stem, patch_size, tmp_path):
    theirs = random_model(name, img_size=64, embed_dim=128, depth=2, num_heads=2)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config, state = image_tower(str(tmp_path / "model.safetensors"))
    assert (config.name, config.image_size, config.patch_size, config.stem) == ("hybrid", 64, patch_size, stem)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tower = build_tower(config).eval()
        tower.load_state_dict(state)
        single = tower(images), optimise_for_cpu(tower)(images)
        expected = theirs.double().forward_features(images.double())
        torch.testing.assert_close(tower.double()(images.double()), expected, rtol=1e-6, atol=1e-6)
    for features in single:  # rounding errors grow in deep stems
        torch.testing.assert_close(features.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_name_of_timm_and_a_file_become_our_variant(tmp_path):
    theirs = random_model("vit_tiny_r_s16_p8_224")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config, state = image_tower(f"timm:vit_tiny_r_s16_p8_224,{tmp_path / 'model.safetensors'}")
    assert config == with_colors(resolve(ImageEncoderConfig("hybrid:Ti/R", 224)), *HALF)
    tower = build_tower(config).eval()
    tower.load_state_dict(state)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), theirs.forward_features(images), rtol=1e-4, atol=1e-4)


def test_grids_that_are_not_square_are_refused(tmp_path):
    theirs = random_model("vit_tiny_r_s16_p8_224", img_size=(64, 96), embed_dim=64, depth=1, num_heads=1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="6 places of pos_embed form no square grid"):
        image_tower(str(tmp_path / "model.safetensors"))
