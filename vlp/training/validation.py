"""Scores on the validation shards, during a run and at its end."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext

import torch

from vlp.config import DecodingConfig, RunConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.labelled_images import is_labelled, open_labelled
from vlp.data.shard_index import ShardIndex, expand_shards, index_shard
from vlp.data.shard_stream import read_shard
from vlp.data.shards import Sample, ShardReader
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import run_on_main
from vlp.errors import UserError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.classification import evaluate_classification
from vlp.evaluation.nlvr2 import evaluate_nlvr2
from vlp.evaluation.results import Results
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.settings import EvaluationSettings
from vlp.evaluation.visdial import evaluate_visdial
from vlp.evaluation.vqa import evaluate_vqa
from vlp.model import Model
from vlp.models.network import Network
from vlp.remote import is_remote
from vlp.training.stop_signals import StopRequest

ANNOTATIONS = {"vqa": "questions", "nlvr2": "sentence", "visdial": "dialog"}  # what the JSON of samples must have
RERANK = 16  # candidates, far fewer than at the end, so that validation costs little


ModelScorer = Callable[[Model], dict[str, float]]


class _Stopped(Exception):
    """A signal arrived during validation."""


def check_validation(config: RunConfig) -> None:
    """Make sure that `validate` will find samples with what the task is scored by.

    Where that is captions, each sample must have one; those with a text file are not read. Otherwise only the first
    sample is read, as of remote shards.

    Raises:
        UserError: no shard matches, or the shards hold no sample, or samples of another kind.
    """
    if not config.validation:
        if config.evaluate_every:
            raise UserError("evaluate_every is set but validation is empty; name the validation shards, or set 0.")
        return
    try:
        if config.task == "classification" or (config.task == "contrastive" and is_labelled(config.validation)):
            open_labelled(config.validation, label=config.data.label)
            return
        paths = expand_shards(config.validation)
        if config.task in ANNOTATIONS or any(map(is_remote, paths)):
            _check_first_sample(paths[0], ANNOTATIONS.get(config.task, ""))
            return
        indexes = [index_shard(path) for path in paths]
    except UserError as error:
        raise UserError(f"validation: {error}") from None
    if not any(index.keys for index in indexes):
        raise UserError(f"validation: {config.validation} holds no sample; name other shards.")
    with closing(ShardReader()) as reader:
        for index in indexes:
            for row in (index.members[:, 2] == 0).nonzero()[0].tolist():
                if not _has_caption(reader, index, row):
                    raise UserError(
                        f"validation: sample {index.keys[row]} of {index.path} has no caption; every image needs one."
                    )


def _check_first_sample(path: str, annotation: str) -> None:
    """Make sure that a shard begins with a sample, and that its JSON has the annotation; the rest is not read."""
    with closing(read_shard(path)) as samples:
        sample = next(samples, None)
    if sample is None:
        raise UserError(f"{path} holds no sample; name other shards.")
    if annotation and isinstance(sample, Sample) and annotation not in sample.info:
        raise UserError(f"{path} has no {annotation!r} in the JSON of its samples; name shards of this task.")


def _has_caption(reader: ShardReader, index: ShardIndex, row: int) -> bool:
    try:
        return bool(reader.read(index, row).captions)
    except BadSampleError:
        return True  # bad samples are skipped


def validate(
    config: RunConfig,
    network: Network,
    tokenizer: CaptionTokenizer | None,
    decoding: DecodingConfig,
    stop: StopRequest,
    scorers: Sequence[ModelScorer] = (),
    limit: int | None = None,
) -> dict[str, float] | None:
    """Scores on the validation shards: {} where the config names none, None if a signal arrived meanwhile.

    All processes call it; the first one computes the scores.

    Args:
        scorers: add measures of their own to those of the task's evaluation.
        limit: at most this many samples of the shards; None: all.
    """
    if not config.validation:
        return {}

    def stop_between_batches(_stage: str, _items: int) -> None:
        if stop.reached_any():
            raise _Stopped

    def scores() -> dict[str, float] | None:
        model = Model(network, tokenizer, config.precision, decoding=decoding)
        # Blocks are compiled for training. The caches and batch sizes of validation would compile further programs.
        stance = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
        # Training draws the same random numbers with and without a validation in between.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with stance, torch.random.fork_rng(devices):
            try:
                settings = EvaluationSettings(progress=stop_between_batches, limit=limit)
                metrics = _evaluate(config, model, settings).metrics
                for scorer in scorers:
                    metrics |= scorer(model)
                    stop_between_batches("", 0)
                return {name: value for name, value in metrics.items() if value is not None}
            except _Stopped:
                return None

    return run_on_main(scores, while_waiting=stop.tell_main)


def _evaluate(config: RunConfig, model: Model, settings: EvaluationSettings) -> Results:
    """Score a model on the validation shards by the evaluation of the run's task."""
    shards = config.validation
    match config.task:
        case "classification":
            return evaluate_classification(model, open_labelled(shards, label=config.data.label), settings=settings)
        case "captioning" | "self_critical":
            return evaluate_captioning(model, shards, settings=settings)
        case "vqa":
            return evaluate_vqa(model, shards, settings=settings)
        case "nlvr2":
            return evaluate_nlvr2(model, shards, settings)
        case "visdial":
            return evaluate_visdial(model, shards, settings)
        case "contrastive" if is_labelled(shards):
            return evaluate_classification(model, open_labelled(shards), settings=settings)
        case "contrastive":
            return evaluate_retrieval(model, shards, settings=settings)
        case "pretrain" | "retrieval":
            return evaluate_retrieval(model, shards, rerank=RERANK, settings=settings)
