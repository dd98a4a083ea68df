"""Reading a model of open_clip as a CLIP of ours, with equal features."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.convert.clip_tokenizers import read_clip_tokenizer
from vlp.convert.open_clip_check import check_features
from vlp.convert.open_clip_models import OPEN_CLIP, OpenClipModel, create_open_clip
from vlp.convert.open_clip_tables import open_clip_text_table
from vlp.convert.tables import group_names, to_our_names
from vlp.convert.towers import open_clip_image_tower
from vlp.errors import UserError
from vlp.model_folder import SavedModel
from vlp.models.clip import Clip

State = dict[str, Tensor]


def read_open_clip(source: str, tokenizer: str = "", image_size: int = 0) -> SavedModel:
    """Read a model of open_clip.

    Args:
        source: as in `create_open_clip`.
        tokenizer: folder or hub name of the tokenizer, in place of the one that the model names.
        image_size: in pixels; position embeddings are resized to it. 0 keeps the model's size.

    Raises:
        UserError: the model or its tokenizer is not available, or our networks have no such architecture.
    """
    found = create_open_clip(source)
    image, image_state = _image_side(found)
    text, text_state = _text_side(found)
    reads_padding = not text.causal or found.settings["text_cfg"].get("pool_type") == "last"
    words = read_clip_tokenizer(found.name, found.settings["text_cfg"], reads_padding, _tokenizer(found, tokenizer))
    if len(words) > text.vocabulary:
        raise UserError(
            f"{OPEN_CLIP}{found.name} has {text.vocabulary} word embeddings, and its tokenizer has {len(words)} words."
        )
    projections = {name: f"{name}_projection.bias" in (image_state | text_state) for name in ("image", "text")}
    config = ModelConfig(
        image,
        text,
        len(text_state["text_projection.weight"]),
        network="clip",
        image_projection_bias=projections["image"],
        text_projection_bias=projections["text"],
    )
    clip = Clip(config).eval()
    bias = found.model.logit_bias
    state = {
        **image_state,
        **text_state,
        "log_temperature": -found.model.logit_scale.detach().reshape(()),
        "logit_bias": torch.zeros(()) if bias is None else bias.detach().reshape(()),
    }
    clip.load_state_dict({name: value.float() for name, value in state.items()})
    check_features(found.model, clip, words, f"open_clip's {found.name}")
    if image_size not in (0, image.image_size):
        clip.resize_images(image_size)
    return SavedModel(clip, words)


def _tokenizer(found: OpenClipModel, tokenizer: str) -> str:
    """The folder of the tokenizer: the one that was given, or that of a local model."""
    local = found.name.startswith("local-dir:") and found.settings["text_cfg"].get("hf_tokenizer_name")
    return tokenizer or (found.name.removeprefix("local-dir:") if local else "")


def _image_side(found: OpenClipModel) -> tuple[ImageEncoderConfig, State]:
    """The settings of the image encoder, and the weights of it and its projection."""
    config, state = open_clip_image_tower(found)
    images, tower = found.preprocessing, found.model.visual
    if images["resize_mode"] not in ("squash", "shortest"):
        raise UserError(f"open_clip's {found.name} resizes images by {images['resize_mode']!r}; vlp cannot.")
    interpolation = "bilinear" if images["interpolation"] == "bilinear" else "bicubic"
    config = replace(config, resize=images["resize_mode"], interpolation=interpolation)
    made = {f"image_encoder.tower.{name}": value for name, value in state.items()}
    if not hasattr(tower, "trunk"):
        return config, made | _projection("image", tower.proj, config.width)
    classifier = tower.trunk.get_classifier()
    parts = [classifier] if isinstance(classifier, nn.Linear) else []
    parts += [part for part in tower.head if not isinstance(part, (nn.Identity, nn.Dropout))]
    if len(parts) > 1 or not all(isinstance(part, nn.Linear) for part in parts):
        raise UserError(f"open_clip's {found.name} pools or projects its image features in a way that vlp has not.")
    return config, made | _projection("image", parts[0] if parts else None, config.width)


def _text_side(found: OpenClipModel) -> tuple[TextTowerConfig, State]:
    """The settings of the text tower, and the weights of it and its projection."""
    from open_clip.transformer import TextTransformer

    model = found.model
    tower = getattr(model, "text", model)
    if tower is not model and not isinstance(tower, TextTransformer):
        raise UserError(f"open_clip's {found.name} has a {type(tower).__name__}; its own TextTransformer is supported.")
    pooling = model.text_pool_type if tower is model else tower.pool_type
    if pooling not in ("argmax", "eos", "first", "last"):
        raise UserError(f"open_clip's {found.name} pools text by {pooling!r}, which vlp does not.")
    causal = tower.attn_mask is not None
    block: Any = tower.transformer.resblocks[0]
    layers = len(tower.transformer.resblocks)
    weights = {name: value for name, value in tower.state_dict().items() if not name.startswith("visual.")}
    state, used = to_our_names(open_clip_text_table(layers), weights)
    rest = weights.keys() - used - {"logit_scale", "logit_bias"}
    rest = [name for name in rest if not name.startswith("text_projection")]
    if rest:
        parts = ", ".join(sorted(group_names(rest))[:5])
        raise UserError(f"open_clip's {found.name} has parts that our text tower does not have: {parts}.")
    config = TextTowerConfig(
        vocabulary=len(weights["token_embedding.weight"]),
        width=tower.token_embedding.embedding_dim,
        layers=layers,
        heads=block.attn.num_heads,
        feed_forward=block.mlp.c_fc.out_features,
        positions=len(weights["positional_embedding"]),
        dropout=0.0,
        norm_eps=block.ln_1.eps,
        name="clip",
        activation=_activation(block.mlp.gelu),
        causal=causal,
        pooling="class" if pooling == "first" else "end",
    )
    made = {f"text_tower.{name}": value for name, value in state.items()}
    return config, made | _projection("text", tower.text_projection, config.width)


def _projection(side: str, theirs: Any, width: int) -> State:
    """The weights of a projection: a linear layer, a matrix [width, embed_dim], or None for the identity."""
    name = f"{side}_projection"
    if theirs is None:
        return {f"{name}.weight": torch.eye(width)}
    if not isinstance(theirs, nn.Linear):
        return {f"{name}.weight": theirs.detach().T.contiguous()}
    bias = {} if theirs.bias is None else {f"{name}.bias": theirs.bias.detach()}
    return {f"{name}.weight": theirs.weight.detach(), **bias}


def _activation(module: nn.Module) -> Any:
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return "quick_gelu"
