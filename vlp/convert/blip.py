"""BLIP as `transformers` and the original code store it: settings from theirs, weights by the tables."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlp.config import ImageEncoderConfig, ModelConfig, Sharing, TextTowerConfig
from vlp.convert.tables import (
    LANGUAGE_HEAD,
    Table,
    blip_image_table,
    carry,
    count_layers,
    group_names,
    prefixed,
    text_table,
    timm_image_table,
)
from vlp.errors import UserError

if TYPE_CHECKING:
    from transformers import BlipConfig

HEADS: Table = {"image_projection": ("vision_proj",), "text_projection": ("text_proj",), "itm_head": ("itm_head",)}
HEAD_WIDTH = 64  # of every BLIP; a .pth does not say it
# Of a .pth: what only training needs, and buffers that hold no weight.
NOT_THE_MODEL = re.compile(r"(_m\.|queue|ptr|position_ids$|cls\.predictions\.decoder\.)")


@dataclass
class Carried:
    """Settings and weights in our names; `started` and `left` as in `Source`."""

    config: ModelConfig
    state: dict[str, Tensor]
    started: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def transformers_table(kind: str, config: ModelConfig) -> Table:
    """Our names to those of the `transformers` class for "captioning", "retrieval", "vqa" or "features" (BlipModel)."""
    layers, sharing = config.text_tower.layers, config.text_tower.sharing
    encoder = text_table(layers, "encoder", sharing)
    decoder = text_table(layers, "decoder", sharing)
    image = prefixed(blip_image_table(config.image_encoder.layers), "image_encoder.tower.", "vision_model.")
    head = prefixed(LANGUAGE_HEAD, "language_head.", "text_decoder.cls.predictions.")
    if kind == "captioning":
        return image | prefixed(decoder, "text_tower.", "text_decoder.bert.") | head
    if kind == "retrieval":
        return image | prefixed(encoder, "text_tower.", "text_encoder.") | HEADS
    if kind == "features":
        projections = {"image_projection": ("visual_projection",), "text_projection": ("text_projection",)}
        return image | prefixed(encoder, "text_tower.", "text_model.") | projections
    both = prefixed(decoder, "text_tower.", "text_decoder.bert.") | prefixed(encoder, "text_tower.", "text_encoder.")
    return image | both | head


def from_transformers(folder: Path, weights: dict[str, Tensor]) -> Carried:
    """A `transformers` BLIP folder.

    Raises:
        UserError: its settings are not readable, or it is no BLIP that is known.
    """
    from transformers import BlipConfig

    try:
        theirs = BlipConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}/config.json is not readable as BLIP's: {str(error).splitlines()[0]}.") from None
    kind = _kind(weights, folder)
    config = from_config(theirs, "nothing" if kind == "vqa" else "all_but_self_attention")
    if kind == "features":
        config = replace(config, embed_dim=theirs.projection_dim)
    table = transformers_table(kind, config)
    carried = _carry(config, table, weights)
    if kind == "features":  # cosines there are multiplied by exp(logit_scale), and projected without a bias
        carried.state["log_temperature"] = -weights["logit_scale"].float()
        for name in ("image_projection.bias", "text_projection.bias"):
            carried.state[name] = torch.zeros(config.embed_dim)
        carried.left = [name for name in carried.left if name != "logit_scale"]
    return carried


def from_config(theirs: "BlipConfig", sharing: Sharing = "all_but_self_attention") -> ModelConfig:
    """Our settings from `transformers`' BlipConfig.

    Raises:
        UserError: it has activations that ours has not.
    """
    text, vision = theirs.text_config, theirs.vision_config
    if text.hidden_act != "gelu" or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise UserError(f"The activations {text.hidden_act} and {vision.hidden_act} are not known here; gelu is.")
    return ModelConfig(
        ImageEncoderConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            layers=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            feed_forward=vision.intermediate_size,
            norm_eps=vision.layer_norm_eps,
            activation=vision.hidden_act,
        ),
        TextTowerConfig(
            vocabulary=text.vocab_size,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            feed_forward=text.intermediate_size,
            positions=text.max_position_embeddings,
            norm_eps=text.layer_norm_eps,
            sharing=sharing,
        ),
        embed_dim=theirs.image_text_hidden_size,
    )


def from_original(weights: dict[str, Tensor], path: str) -> Carried:
    """A .pth of the original code: pretraining, captioning, retrieval, VQA or NLVR2.

    Raises:
        UserError: it is no such checkpoint.
    """
    if "visual_encoder.pos_embed" not in weights:
        raise UserError(f"{path} is no checkpoint of BLIP: it has no visual_encoder.pos_embed.")
    weights = {_first_of_two(name): tensor for name, tensor in weights.items()}
    encodes = "text_encoder.embeddings.word_embeddings.weight" in weights
    decodes = "text_decoder.bert.embeddings.word_embeddings.weight" in weights
    if not (encodes or decodes):
        raise UserError(f"{path} is no checkpoint of BLIP: it has neither text_encoder nor text_decoder.")
    heads = "itm_head.weight" in weights
    sharing: Sharing = "nothing" if encodes and decodes and not heads else "all_but_self_attention"
    config = _original_config(weights, "text_encoder." if encodes else "text_decoder.bert.", sharing)
    layers = config.text_tower.layers
    table = prefixed(timm_image_table(config.image_encoder.layers), "image_encoder.tower.", "visual_encoder.")
    if decodes:
        table |= prefixed(text_table(layers, "decoder", sharing), "text_tower.", "text_decoder.bert.")
        table |= prefixed(LANGUAGE_HEAD, "language_head.", "text_decoder.cls.predictions.")
    if encodes:
        table |= prefixed(text_table(layers, "encoder", sharing), "text_tower.", "text_encoder.") | HEADS
    carried = _carry(config, table, weights)
    if "temp" in weights:
        carried.state["log_temperature"] = weights["temp"].float().log().reshape(())
        carried.left = [name for name in carried.left if name != "temp"]
    return carried


def _original_config(weights: dict[str, Tensor], text: str, sharing: Sharing) -> ModelConfig:
    """Settings from the shapes of the weights."""
    image = {name.removeprefix("visual_encoder."): weight for name, weight in weights.items()}
    words = weights[f"{text}embeddings.word_embeddings.weight"]
    return ModelConfig(
        vit_config(image, heads=max(image["cls_token"].shape[-1] // HEAD_WIDTH, 1)),
        TextTowerConfig(
            vocabulary=words.shape[0],
            width=words.shape[1],
            layers=count_layers(weights, f"{text}encoder.layer."),
            heads=max(words.shape[1] // HEAD_WIDTH, 1),
            feed_forward=weights[f"{text}encoder.layer.0.intermediate.dense.weight"].shape[0],
            positions=weights[f"{text}embeddings.position_embeddings.weight"].shape[0],
            sharing=sharing,
        ),
        embed_dim=weights["vision_proj.weight"].shape[0] if "vision_proj.weight" in weights else 256,
    )


def vit_config(
    state: dict[str, Tensor], heads: int, norm_eps: float = 1e-6, activation: str = "gelu"
) -> ImageEncoderConfig:
    """Settings of a ViT from its weights in our names, and from what weights do not say.

    Raises:
        UserError: the patches are no square grid, or the activation is unknown.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    places = state["pos_embed"].shape[1] - 1
    side = math.isqrt(places)
    if side * side != places:
        raise UserError(f"The {places} patches of pos_embed are no square grid; images are square here.")
    if activation not in ("gelu", "quick_gelu"):
        raise UserError(f"The image encoder's activation is {activation}; gelu and quick_gelu are known.")
    return ImageEncoderConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=count_layers(state, "blocks."),
        heads=heads,
        feed_forward=state["blocks.0.mlp.fc1.weight"].shape[0],
        norm_eps=norm_eps,
        pre_norm="norm_pre.weight" in state,
        activation=activation,
    )


def _carry(config: ModelConfig, table: Table, weights: dict[str, Tensor]) -> Carried:
    """The weights in our names, and the names of those that found no place."""
    state, used = carry(table, weights)
    left = [name for name in weights.keys() - used if not (NOT_THE_MODEL.search(name) or _tied(name, weights))]
    return Carried(config, state, left=group_names(sorted(left)))


def _tied(name: str, weights: dict[str, Tensor]) -> bool:
    """Whether a weight of the original's decoder is its encoder's over again."""
    encoder = weights.get(name.replace("text_decoder.bert.", "text_encoder."))
    return name.startswith("text_decoder.bert.") and encoder is not None and torch.equal(encoder, weights[name])


def _kind(weights: dict[str, Tensor], folder: Path) -> str:
    """Which of the `transformers` classes a folder is of, by what it holds."""
    heads = {name.split(".")[0] for name in weights}
    for kind, needed in (
        ("vqa", {"text_encoder", "text_decoder"}),
        ("captioning", {"text_decoder"}),
        ("retrieval", {"text_encoder", "itm_head"}),
        ("features", {"text_model", "visual_projection"}),
    ):
        if needed <= heads:
            return kind
    raise UserError(f"{folder} holds no BLIP that is known: its parts are {', '.join(sorted(heads))}.")


def _first_of_two(name: str) -> str:
    """NLVR2 has two cross-attentions a layer; the first takes the place of ours, the second is left behind."""
    return name.replace("crossattention.self0.", "crossattention.self.").replace("output.dense0.", "output.dense.")
