"""A tiny random model and images for tests."""

import torch
from torch import nn

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.data.tokenizer import train_tokenizer
from vlp.model import Model
from vlp.models.blip import Blip
from vlp.models.clip import Clip
from vlp.models.image_memory import ImageMemory
from vlp.models.text_rows import Layout, RowGroup, TextRows, TextUse

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


def attend(cross_attention: nn.Module, x: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
    """A module's cross-attention of padded texts x [texts, tokens, width] to images, which have equally many texts."""
    memory = ImageMemory([cross_attention.project(image_tokens)]).for_texts(None, x.dtype)(0)
    use = TextRows(Layout.padded(x[:, :, 0]), memory=memory)
    return cross_attention(x.flatten(0, 1), RowGroup("encoder", [use])).view_as(x)


def spy_on_uses(tower: nn.Module, monkeypatch) -> list[tuple[TextUse, torch.Tensor]]:
    """The uses of a text tower from now on, each with its states."""
    seen, run = [], tower.run

    def spy(uses):
        states = run(uses)
        seen.extend(zip(uses, states, strict=True))
        return states

    monkeypatch.setattr(tower, "run", spy)
    return seen
