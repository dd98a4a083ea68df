"""Writing a CLIP of ours as a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers
from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.convert.clip_tokenizers import END, START
from vlp.convert.open_clip_check import check_features
from vlp.convert.open_clip_models import create_open_clip
from vlp.convert.open_clip_tables import open_clip_image_table, open_clip_text_table
from vlp.convert.tables import prefixed, text_table, to_their_names
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import UNWANTED
from vlp.errors import UserError
from vlp.files import absolute, prepare_output, writing_folder
from vlp.model_folder import SavedModel
from vlp.models.clip import Clip
from vlp.models.network import require_network

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
NORM_EPS = 1e-5  # of open_clip's norms
PATCH_BIAS = "tower.patch_embed.proj.bias"
State = dict[str, Tensor]


def write_open_clip(saved: SavedModel, folder: str | Path) -> None:
    """Write the folder: open_clip_config.json, open_clip_model.safetensors and the files of the tokenizer.

    A text tower of the BERT family becomes open_clip's text tower of `transformers`, whose config.json open_clip reads
    at the absolute path of the folder, which open_clip_config.json names.

    Raises:
        UserError: the folder exists, the model is no CLIP, or open_clip has no such architecture.
    """
    prepare_output(folder)
    require_network(saved.network.config, "clip", "be converted to open_clip")
    clip, tokenizer = saved.network, saved.tokenizer
    assert isinstance(clip, Clip) and tokenizer is not None  # only classifiers have none
    config = clip.config
    vision, image_state = _image_side(clip)
    bert = config.text_tower.name == "bert"
    text, text_state = (_bert_side if bert else _clip_side)(clip, tokenizer)
    state = {**image_state, **text_state, "logit_scale": -clip.log_temperature.detach()}
    settings: dict[str, Any] = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if "quick_gelu" in (config.image_encoder.activation, config.text_tower.activation):
        settings["quick_gelu"] = True
    if clip.logit_bias.item() != 0:
        state["logit_bias"] = clip.logit_bias.detach()
        settings["init_logit_bias"] = -10
    if any(name.startswith("text.") for name in state):
        settings["custom_text"] = True
    with writing_folder(folder) as temporary:
        save_file({name: value.contiguous().clone() for name, value in state.items()}, temporary / WEIGHTS)
        if bert:
            _write_bert(temporary, config.text_tower, tokenizer)
        if "hf_tokenizer_name" in text:
            _write_tokenizer(temporary, tokenizer)
        _write_config(temporary, settings, config.image_encoder, temporary)
        check_features(_load(temporary), clip, tokenizer, "The model")
        _write_config(temporary, settings, config.image_encoder, absolute(folder))


def _image_side(clip: Clip) -> tuple[dict[str, Any], State]:
    """The settings `vision_cfg`, and the weights of the image tower and its projection."""
    config, state = clip.image_encoder.config, clip.image_encoder.state_dict()
    projection = clip.image_projection
    if config.name.startswith("timm:"):
        weights = {f"visual.trunk.{name.removeprefix('tower.trunk.')}": value for name, value in state.items()}
        vision = {"image_size": config.image_size, "timm_model_name": config.name.removeprefix("timm:")}
        vision |= {"timm_model_pretrained": False, "timm_pool": ""}  # the timm model's own
        if _is_identity(projection):
            pool = getattr(clip.image_encoder.tower.trunk, "global_pool", "")
            return {**vision, "timm_pool": pool, "timm_proj": "none"}, weights
        weights |= {f"visual.head.proj.{name}": value for name, value in projection.state_dict().items()}
        return {**vision, "timm_proj": "linear", "timm_proj_bias": projection.bias is not None}, weights
    weights, used = to_their_names(open_clip_image_table(config.layers), _with_prefix(state, "image_encoder."))
    rest = {name.removeprefix("image_encoder.") for name in _with_prefix(state, "image_encoder.").keys() - used}
    if config.name != "vit" or config.pooling != "class" or rest - {PATCH_BIAS} or projection.bias is not None:
        raise UserError(
            f"open_clip has no image tower like {config.name} with these settings; a vit with a class token and timm "
            "models can be converted."
        )
    weights["visual.class_embedding"] = weights["visual.class_embedding"].view(-1)
    positions = weights["visual.positional_embedding"][0].clone()
    if not config.pre_norm:  # open_clip's patches have no bias
        positions[1:] += state[PATCH_BIAS]
    weights["visual.positional_embedding"] = positions
    weights["visual.proj"] = projection.weight.detach().T
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "head_width": config.width // config.heads,
        "no_ln_pre": not config.pre_norm,
        **_sizes(config),
    }
    return vision, weights


def _clip_side(clip: Clip, tokenizer: CaptionTokenizer) -> tuple[dict[str, Any], State]:
    """The settings `text_cfg` and the weights, for open_clip's own text tower."""
    config, projection = clip.config.text_tower, clip.text_projection
    image_gelu = clip.config.image_encoder.activation == "quick_gelu" and not _is_timm(clip.config)
    if not _is_timm(clip.config) and image_gelu != (config.activation == "quick_gelu"):
        raise UserError("open_clip has one activation for both towers: quick_gelu in both, or in none.")
    prefix = "text." if clip.logit_bias.item() != 0 else ""
    table = prefixed(open_clip_text_table(config.layers), "text_tower.", prefix)
    weights, _ = to_their_names(table, _with_prefix(clip.text_tower.state_dict(), "text_tower."))
    text = {
        "context_length": config.positions,
        "vocab_size": config.vocabulary,
        "heads": config.heads,
        **_sizes(config),
        "no_causal_mask": not config.causal,
    }
    if config.activation == "gelu_tanh":
        text["act_kwargs"] = {"approximate": "tanh"}
    if _is_identity(projection):
        text["proj_type"] = "none"
    elif projection.bias is None:
        weights[f"{prefix}text_projection"] = projection.weight.detach().T
    else:
        text["proj_bias"] = True
        weights |= _with_prefix(projection.state_dict(), f"{prefix}text_projection.")
    return {**text, **_pooling(config, tokenizer), **_tokenizer_settings(tokenizer)}, weights


def _pooling(config: TextTowerConfig, tokenizer: CaptionTokenizer) -> dict[str, Any]:
    """How open_clip finds the token that stands for a text."""
    if config.pooling == "class":
        return {"pool_type": "first"}
    if tokenizer.form.reads_padding:
        return {"pool_type": "last"}
    if tokenizer.sep_id == len(tokenizer) - 1:
        return {"pool_type": "argmax"}
    return {"pool_type": "eos", "eos_id": tokenizer.sep_id}


def _tokenizer_settings(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    """CLIP's own tokenizer needs no files; another one is read from the folder, whatever its name in the settings."""
    form = tokenizer.form
    if (tokenizer.roles["sep"], tokenizer.roles.get("cls")) == (END, START):
        return {} if form.cleaning == "lower" else {"tokenizer_kwargs": {"clean": form.cleaning}}
    cleaning = "whitespace" if form.cleaning == "caption" else form.cleaning
    return {"hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": {"clean": cleaning}}


def _bert_side(clip: Clip, tokenizer: CaptionTokenizer) -> tuple[dict[str, Any], State]:
    """The settings `text_cfg` and the weights, for a BERT of `transformers` as open_clip's text tower."""
    config = clip.config.text_tower
    if config.causal or config.pooling != "class" or clip.text_projection.bias is not None:
        raise UserError(
            "open_clip has no text tower of the BERT family that is causal, is pooled at the end token or has a bias "
            "in its projection."
        )
    table = text_table(config.layers, "encoder", "all", cross_attention=False)
    weights, _ = to_their_names(prefixed(table, "", "text.transformer."), clip.text_tower.state_dict())
    types = torch.zeros(1, config.width)
    weights |= {
        "text.transformer.embeddings.token_type_embeddings.weight": types,
        "text.proj.weight": clip.text_projection.weight.detach(),
    }
    text = {
        "context_length": tokenizer.longest(config.positions),
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_proj_type": "linear",
        **_tokenizer_settings(tokenizer),
    }
    return text, weights


def _write_bert(folder: Path, config: TextTowerConfig, tokenizer: CaptionTokenizer) -> None:
    """config.json, from which `transformers` makes the text tower."""
    from transformers import BertConfig

    BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward,
        max_position_embeddings=config.positions,
        layer_norm_eps=config.norm_eps,
        pad_token_id=tokenizer.pad_id,
        type_vocab_size=1,
    ).save_pretrained(folder)


def _write_tokenizer(folder: Path, tokenizer: CaptionTokenizer) -> None:
    """The files that open_clip's tokenizer reads; it then makes the same ids as ours."""
    tokenizer.write_files(folder)
    if tokenizer.form.cleaning != "caption":
        return
    copy = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    cleaning = [normalizers.Lowercase(), normalizers.Replace(Regex(UNWANTED.pattern), " ")]
    copy.normalizer = normalizers.Sequence([*cleaning, *([copy.normalizer] if copy.normalizer else [])])
    copy.save(str(folder / "tokenizer.json"))


def _write_config(folder: Path, settings: dict[str, Any], images: ImageEncoderConfig, place: Path) -> None:
    """open_clip_config.json; `place` is where open_clip will read the folder."""
    text = settings["text_cfg"]
    if "hf_pooler_type" in text:
        settings = {**settings, "text_cfg": {**text, "hf_model_name": str(place)}}
    preprocessing = {"mean": images.mean, "std": images.deviation}
    preprocessing |= {"interpolation": images.interpolation, "resize_mode": images.resize}
    values = {"model_cfg": settings, "preprocess_cfg": preprocessing}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def _load(folder: Path) -> Any:
    """The model that open_clip makes of the folder.

    Raises:
        UserError: it cannot load it, so it has no such architecture.
    """
    try:
        return create_open_clip(str(folder)).model
    except UserError as error:
        raise UserError(f"open_clip has no architecture for this model: {error}") from None


def _sizes(config: ImageEncoderConfig | TextTowerConfig) -> dict[str, Any]:
    """What open_clip calls equally in both towers."""
    hidden = config.feed_forward or 4 * config.width
    ratio = hidden / config.width
    if int(config.width * ratio) != hidden:  # open_clip rounds the product down
        ratio = (hidden + 0.5) / config.width
    sizes: dict[str, Any] = {"width": config.width, "layers": config.layers, "mlp_ratio": ratio}
    return sizes if config.norm_eps == NORM_EPS else {**sizes, "norm_kwargs": {"eps": config.norm_eps}}


def _is_timm(config: ModelConfig) -> bool:
    return config.image_encoder.name.startswith("timm:")


def _is_identity(projection: nn.Linear) -> bool:
    return projection.bias is None and torch.equal(projection.weight, torch.eye(*projection.weight.shape))


def _with_prefix(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}
