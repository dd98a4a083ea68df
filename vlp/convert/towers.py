"""Converting text towers of the BERT family and image encoders of timm, transformers and open_clip."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.convert.blip import Converted, vit_config
from vlp.convert.compact import compact_from_published
from vlp.convert.files import find_folder, read_checkpoint, read_json, read_weights
from vlp.convert.hybrid import hybrid_from_timm
from vlp.convert.open_clip_models import OpenClipModel, create_open_clip
from vlp.convert.pyramids import (
    KINDS,
    TIMM_CLASS,
    pyramid_from_published,
    pyramid_from_timm,
    pyramid_from_transformers,
)
from vlp.convert.t2t import t2t_from_published
from vlp.convert.tables import (
    Table,
    blip_image_table,
    clip_image_table,
    count_layers,
    group_names,
    prefixed,
    text_table,
    to_our_names,
    vit_image_table,
)
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower
from vlp.models.image_encoders.timm_tower import create_trunk
from vlp.models.image_encoders.vit import build_vit

IMAGE_PREFIXES = ("timm:", "open_clip:")
PREPROCESSOR = "preprocessor_config.json"
# Mean and deviation of colors, with which the published models were trained.
Colors = tuple[float, float, float]
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SMALLEST_OF_IMAGENET = 128  # pixels; smaller published models were trained on CIFAR
CHECKPOINTS = (".pth", ".pt", ".bin", ".tar", ".safetensors")
# Each returns None for the weights of something else.
PUBLISHED = [compact_from_published, t2t_from_published, hybrid_from_timm, pyramid_from_published]
WORDS = "embeddings.word_embeddings.weight"
# Names of the head of a masked language model: in BERT, then in RoBERTa.
MASKED_HEADS = (
    {
        "transform": ("cls.predictions.transform.dense",),
        "norm": ("cls.predictions.transform.LayerNorm",),
        "bias": ("cls.predictions.bias",),
    },
    {"transform": ("lm_head.dense",), "norm": ("lm_head.layer_norm",), "bias": ("lm_head.bias",)},
)


def text_tower(folder: Path, weights: dict[str, Tensor]) -> Converted:
    """Convert an encoder of the BERT family to a text tower, together with a randomly initialized ViT-B/16.

    BLIP has no token types; the embedding of type 0 is added to all position embeddings. The positions of RoBERTa start
    after its padding token's id.

    Raises:
        UserError: the folder does not contain such an encoder.
    """
    facts = read_json(folder / "config.json")
    weights = {name.replace("LayerNorm.gamma", "LayerNorm.weight"): tensor for name, tensor in weights.items()}
    weights = {name.replace("LayerNorm.beta", "LayerNorm.bias"): tensor for name, tensor in weights.items()}
    prefix = next((name.removesuffix(WORDS) for name in weights if name.endswith(WORDS)), None)
    if prefix is None:
        raise UserError(f"{folder} contains no text encoder of the BERT family: it has no {WORDS}.")
    if facts.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{folder} has relative positions, which BLIP's text tower does not support.")
    places = weights[f"{prefix}embeddings.position_embeddings.weight"]
    if facts["model_type"] != "bert":
        places = places[facts.get("pad_token_id", 1) + 1 :]
    types = weights.get(f"{prefix}embeddings.token_type_embeddings.weight")
    weights[f"{prefix}embeddings.position_embeddings.weight"] = places if types is None else places + types[0]
    try:
        config = ModelConfig(
            ImageEncoderConfig(),
            TextTowerConfig(
                vocabulary=len(weights[f"{prefix}{WORDS}"]),
                width=facts["hidden_size"],
                layers=facts["num_hidden_layers"],
                heads=facts["num_attention_heads"],
                feed_forward=facts["intermediate_size"],
                positions=len(places),
                norm_eps=facts.get("layer_norm_eps", 1e-12),
            ),
        )
    except KeyError as error:
        raise UserError(f"{folder}/config.json has no {error}.") from None
    if facts.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder} has the activation {facts['hidden_act']!r}; the text tower supports gelu.")
    side = text_table(config.text_tower.layers, "encoder", config.text_tower.sharing, cross_attention=False)
    table: Table = prefixed(side, "text_tower.", prefix)
    for head in MASKED_HEADS:
        if head["bias"][0] in weights:
            table |= prefixed(head, "language_head.", "")
    state, used = to_our_names(table, weights)
    used |= {f"{prefix}embeddings.token_type_embeddings.weight"}
    rest = [name for name in weights if name not in used and not name.endswith("position_ids")]
    return Converted(config, state, group_names(rest))


def is_image_source(source: str) -> bool:
    """Whether a source starts with the name of an image encoder library."""
    return source.startswith(IMAGE_PREFIXES)


def image_tower(source: str) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """The settings of an image encoder, and its weights under our names.

    Args:
        source: "timm:NAME" or "timm:NAME,FILE", "open_clip:NAME,PRETRAINED" (a tag or a file), the folder or hub name
            of an image encoder of `transformers`, or a checkpoint file that a paper published.

    Raises:
        UserError: the source is not available, or its architecture is not supported.
    """
    if source.startswith("timm:"):
        return _from_timm(source.removeprefix("timm:"))
    if source.startswith("open_clip:"):
        return open_clip_image_tower(create_open_clip(source))
    if source.endswith(CHECKPOINTS):
        return _from_published(Path(source))
    config, state = _from_transformers(source)
    return replace(config, **_normalization(find_folder(source))), state


def _from_transformers(source: str) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    folder = find_folder(source)
    facts, weights = read_json(folder / "config.json"), read_weights(folder)
    facts = facts.get("vision_config", facts)
    kind = str(facts.get("model_type"))
    if kind in KINDS:
        return _checked(*pyramid_from_transformers(facts, weights), source)
    if kind not in ("vit", "deit", "blip_vision_model"):
        raise UserError(f"{source} is of the kind {kind!r}, no image encoder; for CLIP use open_clip:NAME,PRETRAINED.")
    make, layers, token = (
        (blip_image_table, "encoder.layers.", "class_embedding")
        if kind == "blip_vision_model"
        else (vit_image_table, "encoder.layer.", "cls_token")
    )
    prefix = next((p for p in ("", "vit.", "deit.", "vision_model.") if f"{p}embeddings.{token}" in weights), None)
    if prefix is None:
        raise UserError(f"{source} has no class token, which the image encoder needs.")
    state, _ = to_our_names(prefixed(make(count_layers(weights, prefix + layers)), "", prefix), weights)
    eps, activation = facts.get("layer_norm_eps", 1e-12), facts.get("hidden_act", "gelu")
    return _checked(vit_config(state, facts["num_attention_heads"], eps, activation), state, source)


def with_colors(config: ImageEncoderConfig, mean: Sequence[float], deviation: Sequence[float]) -> ImageEncoderConfig:
    """The settings with another normalization of colors."""
    return replace(config, mean=list(mean), deviation=list(deviation))


def _published_colors(config: ImageEncoderConfig) -> tuple[Colors, Colors]:
    """The mean and deviation of colors with which a published file of this family was trained."""
    if config.name == "hybrid":
        return HALF
    return CIFAR if config.image_size < SMALLEST_OF_IMAGENET else IMAGENET


def _normalization(folder: Path) -> dict[str, list[float]]:
    """How a folder of `transformers` normalizes colors; {}, and so CLIP's way, where it does not say."""
    if not (folder / PREPROCESSOR).is_file():
        return {}
    facts = read_json(folder / PREPROCESSOR)
    given = {"mean": facts.get("image_mean"), "deviation": facts.get("image_std")}
    return {name: value for name, value in given.items() if isinstance(value, list) and len(value) == 3}


def _from_published(path: Path) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """The settings and weights of a paper's own checkpoint, whose names say what it is."""
    weights = read_checkpoint(path)
    for read in PUBLISHED:
        found = read(weights)
        if found is not None:
            config, state = _checked(*found, str(path))
            return with_colors(config, *_published_colors(config)), state
    raise UserError(f"{path} holds no image encoder that `vlp convert` knows; docs/encoders.md lists them.")


def _from_timm(name: str) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    name, _, file = name.partition(",")
    trunk = create_trunk(name, pretrained=not file)
    state = trunk.state_dict()
    if file:
        state = {key: value for key, value in read_checkpoint(Path(file)).items() if key in state}
    config, state = _timm_config(name, trunk, state)
    images: Any = trunk.pretrained_cfg
    return with_colors(config, images["mean"], images["std"]), state


def _timm_config(name: str, trunk: Any, state: dict[str, Tensor]) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """A timm model as our ViT, hybrid or pyramid if it has the same architecture, else wrapped."""
    config = _same_vit(trunk, state)
    if config is not None:
        return config, state
    if type(trunk).__name__ == TIMM_CLASS:
        return _checked(*pyramid_from_timm(trunk, state), f"timm:{name}")
    found = hybrid_from_timm(state)
    if found is not None:
        return _checked(*found, f"timm:{name}")
    pretrained: Any = trunk.pretrained_cfg
    size = pretrained["input_size"][-1]
    config = ImageEncoderConfig(name=f"timm:{name}", image_size=size, width=trunk.num_features)
    return _checked(config, {f"trunk.{key}": value for key, value in state.items()}, f"timm:{name}")


def _same_vit(trunk: Any, state: dict[str, Tensor]) -> ImageEncoderConfig | None:
    """The settings of our ViT that computes the same as a timm model; None if none does."""
    from timm.models.vision_transformer import VisionTransformer

    if type(trunk) is not VisionTransformer or trunk.cls_token is None or trunk.num_prefix_tokens != 1:
        return None
    try:
        block: Any = trunk.blocks[0]
        config = vit_config(state, block.attn.num_heads, block.norm1.eps, _activation(block.mlp.act))
    except (UserError, AttributeError, KeyError):  # another activation, other positions, blocks or patches
        return None
    same = _shapes(build_vit, config) == {name: value.shape for name, value in state.items()}
    return config if same else None


def open_clip_image_tower(found: OpenClipModel) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """The settings and weights of the image tower of an open_clip model, without its projection.

    Raises:
        UserError: our image encoders have no such architecture.
    """
    config, state = _open_clip_tower(found)
    images = found.preprocessing
    return with_colors(config, images["mean"], images["std"]), state


def _open_clip_tower(found: OpenClipModel) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    from open_clip.transformer import VisionTransformer as ClipVisionTransformer

    tower = found.model.visual
    if hasattr(tower, "trunk"):  # a timm model
        inner = found.settings["vision_cfg"]["timm_model_name"]
        known = create_trunk(inner).state_dict()
        return _timm_config(inner, tower.trunk, {k: v for k, v in tower.trunk.state_dict().items() if k in known})
    if not isinstance(tower, ClipVisionTransformer):
        raise UserError(f"open_clip's {found.name} has a {type(tower).__name__}; ViTs and timm models are supported.")
    weights = tower.state_dict()
    weights["class_embedding"] = weights["class_embedding"].view(1, 1, -1)
    weights["positional_embedding"] = weights["positional_embedding"][None]
    state, used = to_our_names(clip_image_table(count_layers(weights, "transformer.resblocks.")), weights)
    rest = group_names(weights.keys() - used - {"proj"})
    if rest:
        raise UserError(
            f"open_clip's {found.name} has parts that our ViT does not have: {', '.join(sorted(rest)[:5])}."
        )
    if "norm_pre.weight" not in state:  # CLIP's patch embedding has no bias
        state["patch_embed.proj.bias"] = torch.zeros_like(state["norm.bias"])
    transformer: Any = tower.transformer
    block = transformer.resblocks[0]
    config = vit_config(state, block.attn.num_heads, block.ln_1.eps, _activation(block.mlp.gelu))
    return _checked(config, state, f"open_clip:{found.name}")


def _activation(module: nn.Module) -> str:
    return "quick_gelu" if type(module).__name__ == "QuickGELU" else type(module).__name__.lower()


def _checked(
    config: ImageEncoderConfig, state: dict[str, Tensor], source: str
) -> tuple[ImageEncoderConfig, dict[str, Tensor]]:
    """The settings and weights, after checking that the weights are exactly those of our encoder.

    Raises:
        UserError: a weight is missing, unexpected or of another shape.
    """
    ours = _shapes(build_tower, config)
    given = {name: tensor.shape for name, tensor in state.items()}
    wrong = [name for name in ours.keys() | given.keys() if ours.get(name) != given.get(name)]
    if wrong:
        raise UserError(f"{source} does not fit its settings: {', '.join(sorted(wrong)[:5])} differ.")
    return config, state


def _shapes(build: Callable[[ImageEncoderConfig], nn.Module], config: ImageEncoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(config).state_dict().items()}
