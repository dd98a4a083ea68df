"""A training run: everything that the loop works with, built from a config."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import KwargsHandler, set_seed
from torch import nn

from vlp.config import DecodingConfig, RunConfig
from vlp.data.loader import TrainingLoader, training_loader
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import largest, rank, run_on_main, world_size
from vlp.log import read_log
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.padding import skip_padding
from vlp.models.precision import compute_dtype
from vlp.models.untrained import trained_config
from vlp.tasks import build_examples, build_task
from vlp.tasks.task import Task
from vlp.training.average import AveragedWeights
from vlp.training.best import BestScore
from vlp.training.checkpoint import ResumeState, checkpoints, load_checkpoint, save_checkpoint
from vlp.training.checks import check_disk_space
from vlp.training.health import FiniteCheck, PlateauWatch
from vlp.training.model_setup import build_model, resolved_config
from vlp.training.optim import build_optimizer
from vlp.training.record_window import RecordWindow
from vlp.training.stop_signals import StopRequest
from vlp.training.validation import ModelScorer


class Outcome(IntEnum):
    """What the processes agree on after a step; the largest value of any process counts."""

    CONTINUE = 0
    STOP = 1
    NOT_FINITE = 2


@dataclass
class Schedule:
    """The length of a run."""

    steps: int
    steps_per_epoch: float


@dataclass
class Run:
    """A run and its position.

    Attributes:
        config: resolved, see `resolved_config`.
        decoding: the settings that are stored with the model.
        task: the module with losses, model, twin and queue.
        prepared: the same for forward passes, wrapped by accelerate.
        step: optimizer steps done.
        window: what the next log record will summarize.
        validated: whether the scores of this step are in the log, or not due.
        record: the last log record.
        earlier_seconds: of training before this window, without validation.
        scorers: measures of a model beside those of the validation shards.
        average: the averaged weights, where the config asks for them.
        best: the best validation, where the config asks for its model.
    """

    config: RunConfig
    output: Path
    accelerator: Accelerator
    tokenizer: CaptionTokenizer | None
    decoding: DecodingConfig
    task: Task
    prepared: nn.Module
    optimizer: torch.optim.Optimizer
    loader: TrainingLoader
    schedule: Schedule
    stop: StopRequest
    plateau: PlateauWatch
    finite: FiniteCheck
    step: int = 0
    window: RecordWindow = field(default_factory=RecordWindow)
    record: dict[str, float] = field(default_factory=dict)
    validated: bool = True
    cpu_group: dist.ProcessGroup | None = None
    earlier_seconds: float = 0.0
    scorers: Sequence[ModelScorer] = ()
    average: AveragedWeights | None = None
    best: BestScore | None = None

    @property
    def is_over(self) -> bool:
        """Whether the schedule has ended, or validation got no better for so long that the run ends early."""
        return self.step >= self.schedule.steps or self.ends_early

    @property
    def ends_early(self) -> bool:
        """Whether validation got no better for so long that the run ends."""
        return self.best is not None and self.best.ends_run

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """A block in which the model has the weights that are validated and saved: the averaged ones if there are."""
        return self.average.in_model() if self.average else nullcontext()

    @property
    def training_seconds(self) -> float:
        """How long the run has trained, over all resumes and without validation."""
        return self.earlier_seconds + self.window.seconds()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def is_due(self, every: int) -> bool:
        """Whether the current step is a multiple of `every`, or the last one. 0: the last one only."""
        return self.step == self.schedule.steps or (every > 0 and self.step % every == 0)

    def agree(self, wait: bool) -> Outcome:
        """What all processes do after this step. All processes call it.

        The processes exchange one number between their hosts after every step, in some 0.1 ms: so they stop at the
        same step, at once, even if a signal reaches only one of them. Nothing here waits for a GPU, unless `wait`.

        Args:
            wait: whether the check for finite losses must cover this step, as before a log record or a checkpoint.
        """
        if not self.finite.is_finite(wait):
            outcome = Outcome.NOT_FINITE
        else:
            outcome = Outcome.STOP if self.stop.requested else Outcome.CONTINUE
        return Outcome(largest(outcome, self.cpu_group))

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All processes call it."""
        return bool(largest(flag, self.cpu_group))

    def save_checkpoint(self, loader: dict | None = None) -> None:
        """Write a checkpoint of this step. All processes call it.

        Args:
            loader: the loader's state after this step; None: it has read no further.
        """
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        loaders = [loader or self.loader.state()]
        average = self.average.average if self.average else {}
        state = ResumeState(self.step, loaders, self.window.state(), scaler, self.training_seconds, average)
        save_checkpoint(self.output, self.task, self.optimizer, state, self.config.keep_checkpoints)
        if self.best:
            run_on_main(self.best.forget)


def prepare_run(config: RunConfig, resume: bool, stop: StopRequest, scorers: Sequence[ModelScorer] = ()) -> Run:
    """Build the model, the data and the optimizer, and restore the last checkpoint when resuming.

    Raises:
        UserError: the config is wrong, or the checkpoint does not fit it.
        WorkError: the disk is too full.
    """
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)  # equal weights in all processes
    model, tokenizer, decoding = build_model(config)
    config = resolved_config(config, model)
    (optimise_for_cpu if accelerator.device.type == "cpu" else skip_padding)(model)
    if config.activation_checkpointing:
        model.checkpoint_activations()
    task = build_task(config, model, tokenizer)
    model.config = trained_config(model, model.config)
    config = replace(config, model=model.config)
    if config.compile:
        compile_blocks(task)
    output = Path(config.output)
    check_disk_space(output, task, config)
    loader = training_loader(
        config.data,
        model.config.image_encoder.image_size,
        build_examples(config, tokenizer),
        config.batch_size // config.accumulation,
        rank(),
        world_size(),
        config.seed,
    )
    set_seed(config.seed + 1000 * rank())  # dropout differs between processes
    products = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    prepared, optimizer = accelerator.prepare(task, build_optimizer(config.optim, task, products))
    if world_size() > 1:  # twin and queue are equal in all processes; newer torch warns of this as an argument
        prepared.broadcast_buffers = False
    run = Run(
        config,
        output,
        accelerator,
        tokenizer,
        decoding,
        task,
        prepared,
        optimizer,
        loader,
        make_schedule(config, loader.epoch_size),
        stop,
        PlateauWatch(config.optim.warmup_steps, config.objective.altered_texts / config.data.texts_per_image),
        FiniteCheck(accelerator.device),
        cpu_group=_cpu_group(config),
        scorers=scorers,
        average=AveragedWeights(task.model, config.optim.average) if config.optim.average else None,
        best=BestScore(output, config.best_by, config.stop_after) if config.best_by else None,
    )
    if resume:
        _restore(run)
    return run


def make_schedule(config: RunConfig, epoch_size: int) -> Schedule:
    """Steps of the run and of an epoch."""
    per_epoch = epoch_size / config.batch_size
    return Schedule(config.steps or max(1, round(config.epochs * per_epoch)), per_epoch)


def _accelerator(config: RunConfig) -> Accelerator:
    # Not static_graph: PyTorch 2.15 fails in the first backward pass under no_sync, and it would save only the search
    # for unused parameters, which is off: tasks freeze what they do not run.
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    cpu = not torch.cuda.is_available()
    dtype = compute_dtype(config.precision, torch.device("cpu" if cpu else "cuda"))
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "no"}[dtype]
    return Accelerator(mixed_precision=name, kwargs_handlers=handlers, cpu=cpu)


def _cpu_group(config: RunConfig) -> dist.ProcessGroup | None:
    """The group for numbers that stay on the host: the default one on CPUs, another one next to NCCL's on GPUs."""
    if world_size() == 1 or not torch.cuda.is_available():
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(minutes=config.collective_timeout_minutes))
    return cast(dist.ProcessGroup, group)


def _restore(run: Run) -> None:
    """Continue from the last checkpoint; from the start where there is none yet."""
    found = checkpoints(run.output)
    if not found:
        return
    state = load_checkpoint(found[-1], run.task, run.optimizer)
    run.step = state.step
    run.loader.load_states(state.loaders)
    if state.window:
        run.window.load_state(state.window, run.accelerator.device)
    run.earlier_seconds = state.seconds - run.window.seconds()
    if run.average:
        run.average.load(state.average)
    if run.accelerator.scaler and state.scaler:
        run.accelerator.scaler.load_state_dict(state.scaler)
    log = run.output / "log.jsonl"
    records = [record for record in read_log(log) if record["step"] <= run.step] if log.exists() else []
    due = run.config.evaluate_every > 0 and run.step % run.config.evaluate_every == 0
    scored = any(record["step"] == run.step and "learning_rate" not in record for record in records)
    run.validated = scored or not due or run.step == run.schedule.steps
    if run.best:
        run.best.load(record for record in records if "learning_rate" not in record)
    for record in (record for record in records if "learning_rate" in record):
        run.record = record
        if "itm" in record:
            run.plateau.observe(int(record["step"]), record["itm"])
