"""The dataclasses of every config file; `vlp.config_reader` fills them from YAML and key=value."""

import math
from dataclasses import dataclass, field
from typing import Literal

from vlp.errors import UserError

Sharing = Literal["all", "all_but_cross_attention", "all_but_self_attention", "nothing"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
TaskName = Literal["pretrain", "captioning", "retrieval"]
ScoreName = Literal["itm", "itc", "clip"]


@dataclass
class ImageEncoderConfig:
    """The image tower; the defaults are ViT-B/16 at 224 pixels."""

    name: str = "vit"  # or timm:NAME, whose shape is timm's: only image_size, width and drop_path are read then
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 0  # 0: four times the width
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    pre_norm: bool = False  # a norm before the first block, as in CLIP
    activation: Literal["gelu", "quick_gelu"] = "gelu"


@dataclass
class TextTowerConfig:
    """The text tower; the defaults are BERT-base with BLIP's sharing (paper, Table 3)."""

    vocabulary: int = 0  # 0: the size of the tokenizer
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    positions: int = 512
    dropout: float = 0.1
    norm_eps: float = 1e-12
    sharing: Sharing = "all_but_self_attention"


@dataclass
class ModelConfig:
    """One BLIP model: two towers and the width of the contrastive space."""

    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text_tower: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed_dim: int = 256


@dataclass
class TextChoiceConfig:
    """How a sample's text is drawn from the score tables beside the shards; docs/capfilt.md tells it in full.

    `web`, `human` and `synthetic` are the chances of each source; those that an image has no text of are left out and
    the others rescaled.
    """

    table: str = "capfilt"  # NAME of the tables: 00012.tar has its texts in 00012.NAME.parquet
    web: float = 0.5
    human: float = 0.5
    synthetic: float = 0.5
    score: ScoreName = "itm"  # what floor, fallback and sampling read
    floor: float | None = None  # no text that scores below this is used
    fallback: float | None = None  # no web text that scores below this is used: a synthetic one takes its place
    sampling: float = 0.0  # temperature of drawing by score among an image's texts of a source; 0: all are alike

    def __post_init__(self) -> None:
        chances = {"web": self.web, "human": self.human, "synthetic": self.synthetic}
        for name, value in {**chances, "sampling": self.sampling}.items():
            if not 0 <= value < math.inf:
                raise UserError(f"texts.{name} must be a number that is not negative, not {value}.")
        if not any(chances.values()):
            raise UserError("texts: web, human and synthetic are all 0, so no text could be drawn; raise one of them.")
        if not self.table:
            raise UserError(
                "texts.table must name the score tables; to draw from the shards' own texts, set texts: null."
            )


@dataclass
class SourceConfig:
    """One set of shards. Each of its samples is seen `weight` times an epoch."""

    shards: str | list[str] = ""
    weight: float = 1.0
    texts: TextChoiceConfig | None = None  # none: any of the sample's own captions


@dataclass
class AugmentConfig:
    """How a training image is cropped and changed (BLIP's values; `crop_min: 1` and zeros switch it off)."""

    crop_min: float = 0.2
    crop_max: float = 1.0
    flip: bool = True
    operations: int = 2  # RandAugment: how many operations an image
    magnitude: int = 5  # RandAugment: 0 to 10
    probability: float = 0.5  # RandAugment: that an operation is applied at all


@dataclass
class DataConfig:
    """Where samples come from and how they become batches."""

    sources: list[SourceConfig] = field(default_factory=list)
    workers: int = 2
    shuffle_buffer: int = 10_000  # samples; how far shuffling moves one
    max_tokens: int = 30
    max_bad_share: float = 0.1
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class ObjectiveConfig:
    """What the losses need; the defaults are BLIP's."""

    queue_size: int = 57_600
    momentum: float = 0.995
    alpha: float = 0.4  # share of the momentum twin's soft targets
    alpha_ramp_epochs: float = 2.0
    temperature: float = 0.07
    label_smoothing: float = 0.1
    itc_weight: float = 1.0
    itm_weight: float = 1.0
    lm_weight: float = 1.0
    prompt: str = ""  # captioning: its tokens are not in the loss


@dataclass
class OptimConfig:
    """AdamW and its schedule. `decay_rate` is per epoch and used by `exponential` alone."""

    learning_rate: float = 3e-4
    warmup_start: float = 1e-6
    warmup_steps: int = 3000
    decay: Literal["exponential", "cosine", "constant"] = "exponential"
    decay_rate: float = 0.9
    floor: float = 1e-6
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip_norm: float = 0.0  # 0: no clipping


@dataclass
class RunConfig:
    """One training run, from shards to a model folder."""

    task: TaskName = "pretrain"
    output: str = ""
    start_from: str = ""  # a model folder whose weights and tokenizer the run starts from
    tokenizer: str = ""  # a tokenizer folder; not needed with start_from
    image_size: int = 0  # with start_from: pixels to go on with, position embeddings interpolated; 0 keeps the model's
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: int = 600  # samples an optimiser step, over all processes and accumulation steps
    accumulation: int = 1
    steps: int = 0  # optimiser steps; 0: take them from epochs
    epochs: float = 0.0
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: bool = False  # blocks, by torch.compile; pays on GPUs, where a minute of it begins the run
    log_every: int = 20
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # the newest; 0 keeps all
    validation: str = ""  # shards scored every evaluate_every steps
    evaluate_every: int = 0


@dataclass
class DecodingConfig:
    """How captions are made. With `beams` above 0 beam search is used, else nucleus sampling."""

    beams: int = 0
    top_p: float = 0.9
    top_k: int = 0
    temperature: float = 1.0
    repetition_penalty: float = 1.1
    length_penalty: float = 1.0  # beam search: score = sum of log-probabilities / length ** length_penalty
    min_length: int = 5  # tokens, those of the prompt counted
    max_length: int = 20
    no_repeat_ngram: int = 0  # no sequence of this many tokens occurs twice; 0: any may
    banned_words: list[str] = field(default_factory=list)
    prompt: str = ""


@dataclass
class RoundsConfig:
    """CapFilt several times over; each training is a YAML file or stands here whole.

    The rounds say where a training writes and what a finetuning starts from. Without `data.sources` it learns from
    `human`; pretraining learns from the selected shards as well.
    """

    count: int = 0  # 0: score and select once, and train nothing
    pretrain: str | RunConfig = ""
    captioner: str | RunConfig = ""
    filter: str | RunConfig = ""


@dataclass
class CapFiltConfig:
    """Caption and filter shards: what `vlp capfilt run` does."""

    shards: str | list[str] = ""
    human: str | list[str] = ""  # clean shards that join the output as they are
    captioner: str | list[str] = ""  # model folders, or hf:NAME for an image-to-text model of transformers
    filter: str | list[str] = ""  # model folders, or open_clip:NAME,PRETRAINED
    output: str = ""
    name: str = "capfilt"  # of the score tables: SHARD.NAME.parquet
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    num_captions: int = 1  # an image and captioner
    rules: str = "itm >= 0.5"  # which texts stay; vlp/capfilt/rules.py says the language
    batch_size: int = 64
    precision: Precision = "auto"
    compile: bool = False  # blocks, by torch.compile; pays on GPUs
    seed: int = 0
    max_bad_share: float = 0.1
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
