"""The dataclasses of every config file; `vlp.config_reader` fills them from YAML and key=value."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vlp.config_ranges import (
    AboveZero,
    DropShare,
    FileNamePart,
    Layers,
    Length,
    Natural,
    NonNegative,
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
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Finetuning = Literal["captioning", "retrieval", "self_critical", "vqa", "nlvr2", "visdial", "classification"]
TaskName = Literal["pretrain", "contrastive", Finetuning]
PRETRAINING: tuple[TaskName, ...] = ("pretrain", "contrastive")  # tasks of `vlp pretrain`
ScoreName = Literal["itm", "itc", "clip"]
Resize = Literal["squash", "shortest"]
Interpolation = Literal["bicubic", "bilinear"]
Beams = Annotated[int, Range(0, 1_000)]
Nucleus = Annotated[float, Range(above=0, most=1)]
LengthPenalty = Annotated[float, Range(-100, 100)]


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


@dataclass
class TextChoiceConfig:
    """How a sample's text is drawn from score tables; see docs/capfilt.md.

    `web`, `human` and `synthetic` are the probabilities of the sources of texts. Where an image has no text of a
    source, the others are rescaled. Samples without any usable text are filtered: they leave the epoch.
    """

    table: FileNamePart = "capfilt"  # NAME of the tables: those of 00012.tar are in 00012.NAME.parquet
    tables: str = ""  # folder or URL of the tables; empty: next to the shards
    web: NonNegative = 0.5
    human: NonNegative = 0.5
    synthetic: NonNegative = 0.5
    score: ScoreName = "itm"  # the score that floor, fallback and sampling use
    floor: float | None = None  # texts that score below this are not used
    fallback: float | None = None  # web texts that score below this are replaced by synthetic ones
    sampling: NonNegative = 0.0  # temperature of drawing by score among an image's texts of one source; 0: uniform

    def __post_init__(self) -> None:
        if not (self.web or self.human or self.synthetic):
            raise UserError("texts: web, human and synthetic are all 0, so no text can be drawn; raise one of them.")


@dataclass
class SourceConfig:
    """One set of shards, or one data set. Each of its samples is seen `weight` times per epoch."""

    shards: str | list[str] = ""
    dataset: str = ""  # instead of shards: a folder, parquet file or name that Hugging Face `datasets` reads
    split: str = "train"  # of the dataset; several as train+restval
    image: str = ""  # column of the dataset; empty: guessed
    text: str = ""  # column of the dataset; empty: guessed
    index: str = ""  # folder that `vlp data index` wrote for these shards; empty: built into the cache
    keep: str = ""  # list of the samples to use: uids in a .npy, keys in a .txt, either in a .parquet; empty: all
    samples: Natural = 0  # streamed reading: number of samples; 0: counted or estimated
    weight: NonNegative = 1.0
    texts: TextChoiceConfig | None = None  # null: any of the sample's own captions

    def __post_init__(self) -> None:
        if not self.dataset:
            if self.image or self.text:
                raise UserError("data.sources: image and text name columns of a dataset; set dataset, or remove them.")
            return
        for name in ("shards", "index", "keep", "texts"):
            if getattr(self, name):
                raise UserError(f"data.sources: a source with a dataset cannot have {name}; make two sources of it.")


@dataclass
class AugmentConfig:
    """How training images are cropped and augmented, with BLIP's values; `crop_min: 1` and zeros switch it off."""

    crop_min: AboveZero = 0.2
    crop_max: Annotated[float, Range(above=0, most=1)] = 1.0
    flip: bool = True
    operations: Annotated[int, Range(0, 100)] = 2  # RandAugment: operations per image
    magnitude: Annotated[int, Range(0, 10)] = 5  # RandAugment: 0 to 10
    probability: Share = 0.5  # RandAugment: probability that an operation is applied
    policy: str = ""  # a RandAugment of timm, such as rand-m9-mstd0.5-inc1, instead of BLIP's; operations must be 0
    erase: Share = 0.0  # probability that a random rectangle is replaced by noise

    def __post_init__(self) -> None:
        if self.policy and self.operations:
            raise UserError("data.augment: policy replaces BLIP's RandAugment; set operations to 0.")


@dataclass
class DataConfig:
    """The training samples and how they become batches."""

    sources: list[SourceConfig] = field(default_factory=list)
    reading: Literal["auto", "indexed", "streamed"] = "auto"  # auto: streamed for URLs and datasets, indexed for files
    workers: Annotated[int, Range(0, 1_024)] = 2
    prefetch: Annotated[int, Range(1, 1_024)] = 4  # batches that each worker reads ahead
    pin_memory: Literal["auto", "on", "off"] = "auto"  # page-locked batches, which copy faster to a GPU; auto: with one
    shuffle_buffer: Natural = 10_000  # samples; the farthest that shuffling moves a sample
    streams: Natural = 0  # streamed reading: sequences that the shards are dealt to; 0: gcd(batch, 16)
    retries: Natural = 5  # streamed reading: attempts after a failed request, before the shard is given up
    cache: str = ""  # streamed reading: local folder for shards; empty: none
    cache_gib: AboveZero = 100.0  # size limit of the cache
    max_tokens: Annotated[int, Range(3, 65_536)] = 30
    # Of a visit. vqa: most questions of an image; visdial: rounds of a dialog; contrastive: captions of an image
    texts_per_image: Positive = 1
    false_answers: Positive = 3  # visdial: false answers beside the true one of each round
    label: str = ""  # classification: column of datasets, or key in the JSON of samples; empty: guessed, or cls
    max_bad_share: Share = 0.1  # a larger share of bad (damaged) samples stops the run
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class ObjectiveConfig:
    """Settings of the losses; the defaults are BLIP's."""

    queue_size: Natural = 57_600
    momentum: Share = 0.995
    alpha: Share = 0.4  # weight of the momentum twin's soft targets
    alpha_ramp_epochs: NonNegative = 2.0
    temperature: AboveZero = 0.07  # at the start; the sigmoid loss starts with 0.1 and a bias of -10
    label_smoothing: DropShare = 0.1
    itc_weight: NonNegative = 1.0
    itm_weight: NonNegative = 1.0
    lm_weight: NonNegative = 1.0
    classification_weight: NonNegative = 1.0
    reward_weight: NonNegative = 1.0
    reward_samples: Annotated[int, Range(2, 1_000)] = 5  # self_critical: captions that are sampled for each image
    prompt: str = ""  # put before every caption and stored with the model; captioning leaves it out of the loss
    contrastive: Literal["softmax", "sigmoid"] = "softmax"  # contrastive: CLIP's loss or SigLIP's
    locked: Literal["", "image", "text"] = ""  # contrastive: the tower that is not trained (LiT)
    patch_dropout: DropShare = 0.0  # contrastive: share of an image's patches that training leaves out (FLIP)
    gradient_cache: Natural = 0  # contrastive: images whose activations are in memory at once; 0: those of a batch


@dataclass
class ClassificationConfig:
    """Supervised classification: the classes, and how images of a batch are mixed in pairs."""

    classes: Natural = 0  # their number; 0: as many as have names, else one more than the largest label
    names: str = ""  # file with the names of the classes, one a line; empty: those that come with the data
    mixup: NonNegative = 0.0  # alpha of the Beta distribution of the weights of two images; 0: no mixup
    cutmix: NonNegative = 0.0  # the same for the area of the rectangle that an image takes from another; 0: no cutmix
    mixed: Share = 1.0  # share of the batches that are mixed
    cutmix_share: Share = 0.5  # of the mixed batches, where mixup and cutmix are both on
    mixed_epochs: NonNegative = 0.0  # later epochs are not mixed; 0: all are


@dataclass
class OptimConfig:
    """AdamW and its schedule. `decay_rate` is per epoch; only `exponential` uses it."""

    learning_rate: NonNegative = 3e-4
    warmup_start: NonNegative = 1e-6
    warmup_steps: Natural = 3000
    decay: Literal["exponential", "cosine", "constant"] = "exponential"
    decay_rate: Annotated[float, Range(above=0, most=1)] = 0.9
    floor: NonNegative = 1e-6
    weight_decay: NonNegative = 0.05
    betas: Annotated[list[DropShare], Length(2)] = field(default_factory=lambda: [0.9, 0.999])
    clip_norm: NonNegative = 0.0  # 0: no clipping


@dataclass
class DecodingConfig:
    """How a model makes captions; stored in its folder. The defaults are BLIP's published settings for captioning."""

    prompt: str = ""  # every caption begins with these words, which are not part of the result
    beams: Beams = 3  # 0 samples, 1 is greedy search, more is beam search
    min_length: Natural = 5  # in tokens, including the prompt
    max_length: Positive = 20  # in tokens, including the prompt
    repetition_penalty: AboveZero = 1.0  # above 1: tokens that the text already contains become less likely
    length_penalty: LengthPenalty = 1.0  # beam search: score = sum of log-probabilities / length ** length_penalty
    top_p: Nucleus = 0.9  # sampling: draw from the smallest set of tokens with this total probability
    top_k: Natural = 0  # sampling: draw from this many of the most likely tokens; 0 disables
    temperature: AboveZero = 1.0  # sampling
    no_repeat_ngram: Natural = 0  # forbid repeated n-grams of this size; 0 disables
    banned_words: list[str] = field(default_factory=list)


ANSWER_DECODING = DecodingConfig(beams=3, min_length=1, max_length=10)  # BLIP's settings for VQA by generation


@dataclass
class DecodingOverrides:
    """Changes to a model's own decoding, with the fields of `DecodingConfig`; None keeps the model's value."""

    prompt: str | None = None
    beams: Beams | None = None
    min_length: Natural | None = None
    max_length: Positive | None = None
    repetition_penalty: AboveZero | None = None
    length_penalty: LengthPenalty | None = None
    top_p: Nucleus | None = None
    top_k: Natural | None = None
    temperature: AboveZero | None = None
    no_repeat_ngram: Natural | None = None
    banned_words: list[str] | None = None


@dataclass
class SamplingOverrides(DecodingOverrides):
    """The overrides of CapFilt: nucleus sampling with BLIP's p = 0.9 and repetition penalty 1.1."""

    beams: Beams | None = 0
    repetition_penalty: AboveZero | None = 1.1
    top_p: Nucleus | None = 0.9


@dataclass
class RunConfig:
    """One training run, from shards to a model folder."""

    task: TaskName = "pretrain"
    output: str = ""
    start_from: str = ""  # a model folder: its weights, tokenizer, shape and temperature are used
    tokenizer: str = ""  # a tokenizer folder; not needed with start_from
    # With start_from: the new image size in pixels; position embeddings are interpolated. 0 keeps the model's.
    image_size: Annotated[int, Range(0, 16_384)] = 0
    seed: Natural = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)  # stored in the model's folder
    batch_size: Positive = 600  # samples per optimizer step, over all processes and accumulation steps
    accumulation: Positive = 1
    steps: Natural = 0  # optimizer steps; 0: take them from epochs
    epochs: NonNegative = 0.0
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: bool = False  # compile the blocks by torch.compile; pays on GPUs, and takes about a minute at the start
    log_every: Natural = 20  # steps between log records; 0: only at the end
    checkpoint_every: Natural = 1000  # steps between checkpoints; 0: only at the end
    keep_checkpoints: Natural = 2  # the newest; 0 keeps all
    validation: str = ""  # shards that are scored every evaluate_every steps and at the end
    evaluate_every: Natural = 0  # 0: only at the end
    collective_timeout_minutes: AboveZero = 30.0  # a process that waits longer for another ends the run


@dataclass
class RoundsConfig:
    """Repeated CapFilt: each round scores, selects and trains. Trainings are given as YAML files or as whole sections.

    The rounds set the output of every training and the `start_from` of finetunings. A training without `data.sources`
    uses the shards of `human`; pretraining also uses the selected shards.
    """

    count: Natural = 0  # 0: score and select once, without training
    pretrain: str | RunConfig = ""
    captioner: str | RunConfig = ""
    filter: str | RunConfig = ""


@dataclass
class CapFiltConfig:
    """The settings of `vlp capfilt run`, which captions and filters shards."""

    shards: str | list[str] = ""
    human: str | list[str] = ""  # clean shards that are added to the output unchanged
    captioner: str | list[str] = ""  # model folders, or hf:NAME for an image-to-text model of transformers
    filter: str | list[str] = ""  # model folders, or open_clip:NAME,PRETRAINED
    output: str = ""
    name: FileNamePart = "capfilt"  # name of the score tables: SHARD.NAME.parquet
    tables: str = ""  # folder or URL of the score tables; empty: next to the shards
    decoding: SamplingOverrides = field(default_factory=SamplingOverrides)  # changes to the captioners' own settings
    num_captions: Annotated[int, Range(1, 10_000)] = 1  # per image and captioner
    rules: str = "itm >= 0.5"  # selection rules: which texts are kept; see docs/capfilt.md
    batch_size: Positive = 64
    precision: Precision = "auto"
    compile: bool = False  # compile the blocks by torch.compile; pays on GPUs
    seed: Natural = 0
    max_bad_share: Share = 0.1
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
