"""A tiny random model and images for tests."""

import torch
from torch import nn

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.data.tokenizer import train_tokenizer
from vlp.model import Model
from vlp.models.blip import Blip
from vlp.models.clip import Clip

WORDS = "a red blue green circle square star above below left of right the large small shape on white and near"
SIZE = 32


def make_model(precision="fp32", sharing="all_but_self_attention", seed=0, size=SIZE, dropout=0.1) -> Model:
    """A model of two text layers and one image layer, whose captions end after a few words."""
    tokenizer = train_tokenizer([WORDS] * 3, size=200)
    torch.manual_seed(seed)
    image = ImageEncoderConfig(image_size=size, patch_size=16, width=32, layers=1, heads=2)
    text = TextTowerConfig(
        len(tokenizer), width=32, layers=2, heads=2, feed_forward=64, positions=48, dropout=dropout, sharing=sharing
    )
    blip = Blip(ModelConfig(image, text, embed_dim=16))
    with torch.no_grad():  # larger weights, so that outputs depend on the images and texts differ
        for module in blip.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.mul_(8)
        blip.language_head.bias[tokenizer.sep_id] += 3
    return Model(blip, tokenizer, precision)


def make_images(count: int) -> torch.Tensor:
    """Random images: uint8 [count, 3, SIZE, SIZE], the same in every call."""
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def make_clip(seed=0, size=SIZE, dropout=0.0, **text_settings) -> Model:
    """A CLIP model of two text layers and one image layer; further arguments are settings of its text tower."""
    tokenizer = train_tokenizer([WORDS] * 3, size=200)
    torch.manual_seed(seed)
    image = ImageEncoderConfig(image_size=size, patch_size=16, width=32, layers=1, heads=2)
    text = TextTowerConfig(
        len(tokenizer), width=24, layers=2, heads=2, feed_forward=64, positions=48, dropout=dropout, **text_settings
    )
    clip = Clip(ModelConfig(image, text, embed_dim=16, network="clip"))
    with torch.no_grad():
        for module in clip.text_tower.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.mul_(4)
    return Model(clip, tokenizer, "fp32")
