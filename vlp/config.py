"""The dataclasses of every config file; `vlp.config_reader` fills them from YAML and key=value."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vlp.config_model import ModelConfig
from vlp.config_ranges import (
    AboveZero,
    DropShare,
    FileNamePart,
    Length,
    Natural,
    NonNegative,
    Positive,
    Range,
    Share,
)
from vlp.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Finetuning = Literal["captioning", "retrieval", "self_critical", "vqa", "nlvr2", "visdial", "classification"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow", "none"]
TaskName = Literal["pretrain", "contrastive", Finetuning]
PRETRAINING: tuple[TaskName, ...] = ("pretrain", "contrastive")  # tasks of `vlp pretrain`
ScoreName = Literal["itm", "itc", "clip"]
Beams = Annotated[int, Range(0, 1_000)]
Nucleus = Annotated[float, Range(above=0, most=1)]
LengthPenalty = Annotated[float, Range(-100, 100)]


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
    # Texts of an image in a step, which share its encoding. pretrain, captioning, retrieval: distinct captions at most;
    # contrastive: captions, some repeated where there are fewer; vqa: questions at most; visdial: rounds of a dialog
    texts_per_image: Positive = 1
    false_answers: Positive = 3  # visdial: false answers beside the true one of each round
    label: str = ""  # classification: column of datasets, or key in the JSON of samples; empty: guessed, or cls
    max_bad_share: Share = 0.1  # a larger share of bad (damaged) samples stops the run
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class ObjectiveConfig:
    """Settings of the losses; the defaults are BLIP's.

    With neither a queue nor soft targets (`queue_size: 0`, `alpha: 0`) there is no momentum twin: ITC contrasts the
    batch with itself and gradients flow into both sides, as in BLIP-2 (Li et al. 2023, section 3.2).
    """

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
    patch_dropout: DropShare = 0.0  # pretrain, contrastive: share of an image's patches that training leaves out (FLIP)
    unmasked_share: Share = 0.0  # of patch_dropout: the share of the steps, at the end of the run, that see all patches
    first_image_size: Natural = 0  # pretrain, contrastive: pixels, the lower resolution of the first steps; 0: none
    first_size_share: Share = 0.7  # of first_image_size: the share of the steps that see it, at the start of the run
    # pretrain, retrieval: the share of the steps, at the start of the run, over which ITM's negatives in the batch go
    # from equally likely ones to hard ones; 0: they are hard from the first step, as BLIP's
    hardness_ramp: Share = 0.0
    # pretrain, retrieval: negatives of each image that ITM gets beside those of the batch, made of the image's captions
    # by swapping spans and replacing words; 0: none
    altered_texts: Annotated[int, Range(0, 64)] = 0
    # retrieval: negatives of an image that ITM gets from `wrong_texts` of the sample's JSON, such as the texts that
    # reviewers rejected; at most this many of an image in a step; 0: none
    wrong_texts: Annotated[int, Range(0, 64)] = 0
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
    """The optimizer and its schedule. `decay_rate` is per epoch; only `exponential` uses it."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: Muon for the matrices of the towers' blocks, AdamW for the rest
    learning_rate: NonNegative = 3e-4
    warmup_start: NonNegative = 1e-6
    warmup_steps: Natural = 3000
    decay: Literal["exponential", "cosine", "linear", "constant"] = "exponential"
    decay_rate: Annotated[float, Range(above=0, most=1)] = 0.9
    # cosine, linear: the share of the steps, at the end of the run, in which the rate decays; it is constant before
    decay_share: Annotated[float, Range(above=0, most=1)] = 1.0
    floor: NonNegative = 1e-6
    weight_decay: NonNegative = 0.05
    betas: Annotated[list[DropShare], Length(2)] = field(default_factory=lambda: [0.9, 0.999])
    clip_norm: NonNegative = 0.0  # 0: no clipping
    # A tower's layer has the learning rate times this to the power of the number of layers above it; 1: all are equal
    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    average: DropShare = 0.0  # decay of the moving average of the weights, which is validated and saved; 0: none

    def __post_init__(self) -> None:
        if self.decay_share < 1 and self.decay not in ("cosine", "linear"):
            raise UserError(f"optim.decay_share is for decay cosine and linear; leave it out for {self.decay}.")


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
    license: str = ""  # of the weights, for the model card, such as apache-2.0
    tracker: TrackerName = "tensorboard"  # gets the records of log.jsonl; tensorboard: where it is installed
    checkpoint_every: Natural = 1000  # steps between checkpoints; 0: only at the end
    keep_checkpoints: Natural = 2  # the newest; 0 keeps all
    validation: str = ""  # shards that are scored every evaluate_every steps and at the end
    evaluate_every: Natural = 0  # 0: only at the end
    best_by: str = ""  # score of validation, higher is better, whose best model is kept; empty: the last model is
    stop_after: Natural = 0  # validations without a better score of best_by that end the run; 0: it runs to its end
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
