"""Converting BLIP models of `transformers` and of the original code: settings, and weights by the tables."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlp.config import ANSWER_DECODING, DecodingConfig
from vlp.config_model import ImageEncoderConfig, ModelConfig, Sharing, TextTowerConfig
from vlp.convert.decoding import PUBLISHED, captioner_decoding
from vlp.convert.tables import (
    LANGUAGE_HEAD,
    Table,
    blip_image_table,
    count_layers,
    group_names,
    pair_table,
    prefixed,
    text_table,
    timm_image_table,
    to_our_names,
)
from vlp.errors import UserError

if TYPE_CHECKING:
    from transformers import BlipConfig

HEADS: Table = {"image_projection": ("vision_proj",), "text_projection": ("text_proj",), "itm_head": ("itm_head",)}
HEAD_WIDTH = 64  # of an attention head in every BLIP; a .pth file does not contain it
# Entries of a .pth file that only training needs, and buffers that are not weights.
NOT_THE_MODEL = re.compile(r"(_m\.|queue|ptr|position_ids$|cls\.predictions\.decoder\.)")


@dataclass
class Converted:
    """The settings of a source, and its weights under our names.

    Attributes:
        unused: parts of the source that have no counterpart in our network.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    unused: list[str] = field(default_factory=list)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


def transformers_table(kind: str, config: ModelConfig) -> Table:
    """The table for the `transformers` class of a kind: "captioning", "retrieval", "vqa" or "features" (BlipModel)."""
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


def from_transformers(folder: Path, weights: dict[str, Tensor]) -> Converted:
    """Convert a `transformers` BLIP folder.

    Raises:
        UserError: its settings are not readable, or it is not a known kind of BLIP.
    """
    from transformers import BlipConfig

    try:
        theirs = BlipConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}/config.json is not readable as a BLIP config: {str(error).splitlines()[0]}."
        ) from None
    kind = _kind(weights, folder)
    config = from_config(theirs, "nothing" if kind == "vqa" else "all_but_self_attention")
    config.finetuned_for = "vqa" if kind == "vqa" else ""
    if kind == "features":
        config = replace(config, embed_dim=theirs.projection_dim)
    table = transformers_table(kind, config)
    converted = _convert(config, table, weights)
    if kind == "captioning":
        converted.decoding = captioner_decoding(folder)
    if kind == "vqa":
        converted.decoding = replace(ANSWER_DECODING)
    if kind == "features":  # BlipModel multiplies cosines by exp(logit_scale), and its projections have no bias
        converted.state["log_temperature"] = -weights["logit_scale"].float()
        for name in ("image_projection.bias", "text_projection.bias"):
            converted.state[name] = torch.zeros(config.embed_dim)
        converted.unused = [name for name in converted.unused if name != "logit_scale"]
    return converted


def from_config(theirs: "BlipConfig", sharing: Sharing = "all_but_self_attention") -> ModelConfig:
    """Our settings from a BlipConfig of `transformers`.

    Raises:
        UserError: it has an activation that our network does not have.
    """
    text: Any = theirs.text_config
    vision: Any = theirs.vision_config
    if text.hidden_act != "gelu" or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise UserError(f"The activations {text.hidden_act} and {vision.hidden_act} are not supported; gelu is.")
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


def from_original(weights: dict[str, Tensor], path: str) -> Converted:
    """Convert a .pth file of the original code: pretraining, captioning, retrieval, VQA or NLVR2.

    Raises:
        UserError: it is not such a checkpoint.
    """
    if "visual_encoder.pos_embed" not in weights:
        raise UserError(f"{path} is not a BLIP checkpoint: it has no visual_encoder.pos_embed.")
    encodes = "text_encoder.embeddings.word_embeddings.weight" in weights
    decodes = "text_decoder.bert.embeddings.word_embeddings.weight" in weights
    if not (encodes or decodes):
        raise UserError(f"{path} is not a BLIP checkpoint: it has neither text_encoder nor text_decoder.")
    heads = "itm_head.weight" in weights
    sharing: Sharing = "nothing" if encodes and decodes and not heads else "all_but_self_attention"
    config = _original_config(weights, "text_encoder." if encodes else "text_decoder.bert.", sharing)
    layers = config.text_tower.layers
    table = prefixed(timm_image_table(config.image_encoder.layers), "image_encoder.tower.", "visual_encoder.")
    if decodes:
        table |= prefixed(text_table(layers, "decoder", sharing), "text_tower.", "text_decoder.bert.")
        table |= prefixed(LANGUAGE_HEAD, "language_head.", "text_decoder.cls.predictions.")
    if encodes:
        pairs = config.finetuned_for == "nlvr2"
        encoder = text_table(layers, "encoder", sharing, cross_attention=not pairs)
        table |= prefixed(encoder, "text_tower.", "text_encoder.") | (pair_table(layers) if pairs else HEADS)
    converted = _convert(config, table, weights)
    if decodes and not encodes:
        converted.decoding = replace(PUBLISHED)
    if config.finetuned_for == "vqa":
        converted.decoding = replace(ANSWER_DECODING)
    if "temp" in weights:
        converted.state["log_temperature"] = weights["temp"].float().log().reshape(())
        converted.unused = [name for name in converted.unused if name != "temp"]
    return converted


def _original_config(weights: dict[str, Tensor], text: str, sharing: Sharing) -> ModelConfig:
    """The settings that follow from the shapes of the weights."""
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
        finetuned_for="vqa" if sharing == "nothing" else "nlvr2" if "cls_head.0.weight" in weights else "",
    )


def vit_config(
    state: dict[str, Tensor], heads: int, norm_eps: float = 1e-6, activation: str = "gelu"
) -> ImageEncoderConfig:
    """The settings of a ViT, from its weights under our names and from what the weights do not show.

    Raises:
        UserError: the patches do not form a square grid, or the activation is not supported.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    patches = state["pos_embed"].shape[1] - 1  # without the class token
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"The {patches} patches of pos_embed do not form a square grid; images must be square.")
    if activation not in ("gelu", "quick_gelu"):
        raise UserError(f"The image encoder's activation is {activation}; gelu and quick_gelu are supported.")
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


def _convert(config: ModelConfig, table: Table, weights: dict[str, Tensor]) -> Converted:
    """The weights under our names, and the unused part of the source."""
    state, used = to_our_names(table, weights)
    rest = [name for name in weights.keys() - used if not (NOT_THE_MODEL.search(name) or _tied(name, weights))]
    return Converted(config, state, group_names(sorted(rest)))


def _tied(name: str, weights: dict[str, Tensor]) -> bool:
    """Whether a weight of the decoder is a copy of the encoder's, which the original code shares."""
    encoder = weights.get(name.replace("text_decoder.bert.", "text_encoder."))
    return name.startswith("text_decoder.bert.") and encoder is not None and torch.equal(encoder, weights[name])


def _kind(weights: dict[str, Tensor], folder: Path) -> str:
    """The kind of `transformers` class that wrote a folder, from the names of its weights."""
    heads = {name.split(".")[0] for name in weights}
    for kind, needed in (
        ("vqa", {"text_encoder", "text_decoder"}),
        ("captioning", {"text_decoder"}),
        ("retrieval", {"text_encoder", "itm_head"}),
        ("features", {"text_model", "visual_projection"}),
    ):
        if needed <= heads:
            return kind
    raise UserError(f"{folder} is not a known kind of BLIP: its parts are {', '.join(sorted(heads))}.")
