"""Checks before the first step: what would otherwise end a run hours or days later."""

import logging
import os
import shutil
import socket
import time
from pathlib import Path

import torch
from torch import nn

from vlp.config import PRETRAINING, ObjectiveConfig, RunConfig
from vlp.data.loader import is_streamed
from vlp.data.policy_augment import read_policy
from vlp.data.shard_index import expand_shards
from vlp.data.streamed_loader import check_streams, stream_count
from vlp.data.tokenizer import load_tokenizer
from vlp.distributed import barrier, gather_objects, is_main, run_on_main, world_size
from vlp.errors import FullDiskError, UserError, WorkError
from vlp.files import prepare_output, write_errors
from vlp.training.classifier_setup import check_classification
from vlp.training.resume_settings import check_resumed_settings
from vlp.training.trackers import check_tracker
from vlp.training.validation import check_validation

log = logging.getLogger("vlp")
CAPTION_TASKS = ("pretrain", "captioning", "retrieval", "contrastive")  # tasks that score tables can give texts to
APPEARS_WITHIN = 3.0  # seconds


def check_config(config: RunConfig) -> None:
    """Check what can be checked without the model: settings, files, and the folders that the config names.

    Raises:
        UserError: a setting or a file is missing or wrong.
    """
    if not config.output:
        raise UserError("output is empty: name the folder for the run.")
    if config.steps and config.epochs:
        raise UserError(f"steps is {config.steps} and epochs is {config.epochs:g}; set epochs=0 or steps=0.")
    if not config.steps and not config.epochs:
        raise UserError("steps and epochs are 0; set one of them to the length of the run.")
    if config.batch_size % config.accumulation:
        raise UserError(f"batch_size ({config.batch_size}) must be a multiple of accumulation ({config.accumulation}).")
    if config.batch_size // config.accumulation % world_size():
        raise UserError(
            f"batch_size / accumulation ({config.batch_size // config.accumulation}) must be a multiple of the number "
            f"of processes ({world_size()})."
        )
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    check_tracker(config.tracker)
    for source in config.data.sources:
        if not source.dataset:  # a data set is opened once, by the loader
            expand_shards(source.shards)
    if is_streamed(config.data):
        micro_batch = config.batch_size // config.accumulation
        check_streams(stream_count(config.data, micro_batch), micro_batch, world_size())
    if config.task not in CAPTION_TASKS and any(source.texts for source in config.data.sources):
        raise UserError(f"data.sources: texts names captions, which task {config.task} does not use; remove texts.")
    check_contrastive(config)
    check_image_schedule(config)
    for name, value in (
        ("altered_texts", config.objective.altered_texts),
        ("hardness_ramp", config.objective.hardness_ramp),
    ):
        if value and config.task not in ("pretrain", "retrieval"):
            raise UserError(
                f"objective.{name} is for tasks pretrain and retrieval; leave it out for task {config.task}."
            )
    if config.objective.wrong_texts and config.task != "retrieval":
        raise UserError(f"objective.wrong_texts is for task retrieval; leave it out for task {config.task}.")
    if config.stop_after and not config.best_by:
        raise UserError("stop_after needs best_by; name the score of validation that must get better.")
    if config.best_by and not config.evaluate_every:
        raise UserError("best_by needs evaluate_every and validation, whose best model it keeps.")
    if config.image_size and not config.start_from:
        raise UserError(
            "image_size is for runs with start_from; set model.image_encoder.image_size for a new model instead."
        )
    if config.data.augment.policy:
        read_policy(config.data.augment.policy)
    if config.task == "classification":
        check_classification(config)
    _check_tokenizer(config)
    check_validation(config)


def _check_tokenizer(config: RunConfig) -> None:
    """Read the tokenizer that the config names; raises UserError where that fails."""
    if not config.tokenizer:
        return
    try:
        load_tokenizer(config.tokenizer)
    except UserError as error:
        if not config.start_from:
            raise
        raise UserError(f"{str(error).rstrip('.')}; `tokenizer=` takes that of the model in start_from.") from None


def check_contrastive(config: RunConfig) -> None:
    """Check the settings of contrastive training.

    Raises:
        UserError: they contradict each other, or belong to a run of another task.
    """
    given, default = config.objective, ObjectiveConfig()
    if config.task != "contrastive":
        for name in ("contrastive", "locked", "gradient_cache"):
            if getattr(given, name) != getattr(default, name):
                raise UserError(f"objective.{name} is for task contrastive; leave it out for task {config.task}.")
        return
    if given.locked and not config.start_from:
        raise UserError(
            f"objective.locked: {given.locked} would keep the {given.locked} tower at random weights; set start_from "
            "to a model with a trained one."
        )
    for name in ("patch_dropout", "first_image_size"):
        if given.locked == "image" and getattr(given, name):
            raise UserError(f"objective.{name} would change the features of the locked image tower; set one of both.")
    if given.contrastive == "sigmoid" and not config.start_from and given.temperature != default.temperature:
        raise UserError(
            "objective.temperature is for the softmax loss; the sigmoid loss starts with 0.1, so leave it out."
        )


def check_image_schedule(config: RunConfig) -> None:
    """Check the settings that make images cheaper for a part of the run.

    Raises:
        UserError: they belong to a run of another task, or one lacks the other that it changes.
    """
    given = config.objective
    for name, value in (("patch_dropout", given.patch_dropout), ("first_image_size", given.first_image_size)):
        if value and config.task not in PRETRAINING:
            raise UserError(
                f"objective.{name} is for tasks {' and '.join(PRETRAINING)}; leave it out for task {config.task}."
            )
    if given.unmasked_share and not given.patch_dropout:
        raise UserError("objective.unmasked_share is the end of a run with objective.patch_dropout; set that, too.")


def open_run_folder(config: RunConfig, resume: bool) -> bool:
    """Create the run folder, or check that it may be resumed; all processes must see it. All processes call it.

    Returns:
        Whether the run in it was finished before, with these settings.

    Raises:
        UserError: the folder exists and `resume` is not set, its run has other settings, or it is not shared.
        WorkError: it cannot be written.
    """
    output = Path(config.output)
    finished = run_on_main(lambda: _open(output, config, resume))
    check_shared(output)
    if finished and is_main():
        log.info("%s was finished before, with these settings; its model is %s", output, output / "model")
    return finished


def check_disk_space(output: Path, task: nn.Module, config: RunConfig) -> None:
    """Make sure that the run folder's disk has room for two checkpoints and the model. All processes call it.

    Raises:
        FullDiskError: it has not.
    """
    weights = sum(value.numel() * value.element_size() for value in task.state_dict().values())  # twin, queue included
    trained = sum(one.numel() * one.element_size() for one in task.parameters() if one.requires_grad)
    needed = 2 * (weights + 2 * trained) + weights  # AdamW keeps two moments; the model is part of `weights`
    needed += 2 * trained * (config.optim.average > 0) + 2 * weights * bool(config.best_by)

    def check() -> None:
        existing = sum(file.stat().st_size for file in output.glob("checkpoints/step-*/*"))
        free = shutil.disk_usage(output).free
        if free + existing < needed:
            raise FullDiskError(
                f"{output} has {free / 2**30:.1f} GiB free, but two checkpoints and the model need "
                f"{needed / 2**30:.1f} GiB; free some space or choose another output."
            )

    run_on_main(check)


def _open(output: Path, config: RunConfig, resume: bool) -> bool:
    extended = False
    if resume:
        if output.is_file() or (not (output / "config.yaml").exists() and list(output.glob("[!.]*"))):
            raise UserError(f"{output} is not a run folder; resume with the output of the run.")
        extended = check_resumed_settings(output, config)
    else:
        prepare_output(output)
    with write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK | os.X_OK):
        raise WorkError(f"{output} cannot be written: permission denied.")
    finished = output / "results.json"
    if extended:
        finished.unlink(missing_ok=True)
    return finished.exists()


def check_shared(output: Path) -> None:
    """Make sure that all processes see the folder in which the first one writes checkpoints. All processes call it.

    Raises:
        UserError: the processes run on several machines without a shared folder.
    """
    if world_size() == 1:
        return
    (token, *_) = gather_objects(f".seen-by-all-{os.getpid()}-{socket.gethostname()}")
    if is_main():
        with write_errors(output):
            (output / token).touch()
    barrier()
    seen = gather_objects((socket.gethostname(), _appears(output / token)))
    if is_main():
        (output / token).unlink()
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        sentence = (
            f"{', '.join(blind)} cannot see the run folder {output} of {seen[0][0]}; "
            "set output to a folder on a file system that all machines share."
        )
        raise UserError(sentence) if is_main() else SystemExit(2)


def _appears(path: Path) -> bool:
    """Whether a file exists, at once or after the delay that a network file system may have."""
    deadline = time.monotonic() + APPEARS_WITHIN
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return path.exists()
