"""The dataclasses of a model's settings: an image encoder, a text tower, and the network that they make."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vlp.config_ranges import (
    AboveZero,
    DropShare,
    Layers,
    Length,
    Natural,
    Positive,
    Range,
    Share,
    Side,
    Width,
)
from vlp.errors import UserError

Sharing = Literal["all", "all_but_cross_attention", "all_but_self_attention", "nothing"]
NetworkName = Literal["blip", "clip", "classifier"]
FinetunedFor = Literal["", "vqa", "nlvr2", "visdial"]
Resize = Literal["squash", "shortest"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass
class StageConfig:
    """One stage of a pyramid; the first one has the largest grid."""

    width: Width = 64
    layers: Layers = 2
    heads: Positive = 1
    feed_forward: Natural = 0  # 0: four times the width
    reduction: Positive = 1  # pvt, pvt_v2: keys and values come from a grid whose side is smaller by this factor


@dataclass
class ImageEncoderConfig:
    """The image tower; the defaults are ViT-B/16 at 224 pixels. docs/encoders.md lists the fields of each family."""

    # A family: vit, hybrid, vit_lite, cvt_compact, cct, t2t, pvt, pvt_v2, cvt. FAMILY:VARIANT, such as vit:L/16 or
    # cct:7/3x1, takes the sizes of a paper. Or timm:NAME; timm then sets the shape, and only image_size, width and
    # drop_path are used.
    name: str = "vit"
    image_size: Side = 224
    patch_size: Side = 16
    width: Width = 768
    layers: Layers = 12
    heads: Positive = 12
    feed_forward: Natural = 0  # 0: four times the width
    drop_path: DropShare = 0.0
    norm_eps: AboveZero = 1e-6
    pre_norm: bool = False  # a norm before the first block, as in CLIP
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    registers: Natural = 0  # vit: tokens that belong to no place and are dropped at the end
    pooling: Literal["class", "mean"] = "class"  # vit: the summary is a class token, or the mean of the image tokens
    positions: Literal["learned", "sine", "none"] = "learned"  # vit_lite, cvt_compact, cct
    convolutions: Natural = 0  # vit, cct: how many make the tokens, each with pooling; 0: patches are mapped linearly
    kernel: Positive = 3  # vit, cct: side of these convolutions
    stem: list[Natural] = field(default_factory=list)  # hybrid: residual blocks in each stage of its ResNet
    performer: bool = False  # t2t: attention in linear time between its splits
    performer_floor: Share = 0.0  # t2t: added to a Performer's sums; the published weights were trained with 1e-8
    stages: list[StageConfig] = field(default_factory=list)  # pvt, pvt_v2, cvt
    linear_reduction: bool = False  # pvt_v2: keys and values come from a grid of 7 x 7
    last_stages: Annotated[int, Range(1, 2)] = 1  # pvt, pvt_v2, cvt: how many stages give image tokens
    # How images become the tower's input: the mean and standard deviation of each color, in units of full brightness
    # (the defaults are CLIP's), and what evaluation does with images of other shapes: squash changes the aspect ratio;
    # shortest gives the shorter side the size and cuts the rest.
    mean: Annotated[list[Share], Length(3)] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    deviation: Annotated[list[AboveZero], Length(3)] = field(
        default_factory=lambda: [0.26862954, 0.26130258, 0.27577711]
    )
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"


@dataclass
class TextTowerConfig:
    """The text tower; the defaults are BERT-base with BLIP's sharing (paper, Table 3)."""

    vocabulary: Natural = 0  # 0: the size of the tokenizer
    width: Width = 768
    layers: Layers = 12
    heads: Positive = 12
    feed_forward: Width = 3072
    positions: Annotated[int, Range(2, 65_536)] = 512
    dropout: DropShare = 0.1
    norm_eps: AboveZero = 1e-12
    sharing: Sharing = "all_but_self_attention"
    causal: bool = False  # clip: each token attends only to those before it
    pooling: Literal["class", "end"] = "class"  # clip: the token whose state stands for the text, the first or the last
    name: Literal["bert", "clip"] = "bert"  # clip: CLIP's pre-norm transformer, only for model.network: clip
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"  # of name: clip


@dataclass
class ModelConfig:
    """A BLIP or CLIP model, with two towers and the width of the contrastive embeddings, or a classifier."""

    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text_tower: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed_dim: Width = 256
    untrained: list[str] = field(default_factory=list)  # parts with random weights, which a converted source lacked
    finetuned_for: FinetunedFor = ""  # the task whose finetuning added parts to the network; finetuning sets it
    # clip: two towers without matching and captions, for task contrastive. classifier: an image encoder with a linear
    # head, for task classification; of the settings here it uses only `image_encoder`.
    network: NetworkName = "blip"
    image_projection_bias: bool = False  # clip: whether the projection of images has a bias, as in some CLIP models
    text_projection_bias: bool = False  # clip: as in SigLIP
    classes: list[str] = field(default_factory=list)  # of a classifier, their names by number; training sets it

    def __post_init__(self) -> None:
        if self.finetuned_for == "vqa" and self.text_tower.sharing != "nothing":
            raise UserError("model.finetuned_for: vqa needs model.text_tower.sharing: nothing.")
        if self.classes and self.network != "classifier":
            raise UserError("model.classes needs model.network: classifier.")
        text, default = self.text_tower, TextTowerConfig()
        if self.network == "clip":
            if self.finetuned_for:
                raise UserError(f"model.network: clip cannot be finetuned for {self.finetuned_for}.")
            if text.sharing != default.sharing:
                raise UserError("model.network: clip has no decoder; leave model.text_tower.sharing out.")
            if text.causal and text.pooling == "class":
                raise UserError(
                    "model.text_tower: with causal: true the class token reads no other token; set pooling: end."
                )
        else:
            for name in ("causal", "pooling", "name", "activation"):
                if getattr(text, name) != getattr(default, name):
                    raise UserError(f"model.text_tower.{name} needs model.network: clip.")
