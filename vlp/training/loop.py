"""The only training loop, on accelerate: pretraining and every finetuning."""

import json
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from vlp.config import RunConfig
from vlp.config_reader import as_yaml, save_config
from vlp.data.loader import TrainingLoader
from vlp.data.tokenizer import CaptionTokenizer, load_tokenizer
from vlp.distributed import all_sum, barrier, is_main, join_processes, rank, world_size
from vlp.errors import UserError, WorkError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.files import prepare_output, write_json
from vlp.log import Progress, RunLog, read_log
from vlp.model import Model, load_model
from vlp.model_folder import save_model
from vlp.models.batch_norm import average_running_statistics
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.precision import compute_dtype
from vlp.tasks import build_task
from vlp.tasks.output import total_loss
from vlp.training.checkpoint import ResumeState, checkpoints, load_checkpoint, save_checkpoint
from vlp.training.health import PlateauWatch
from vlp.training.optim import build_optimizer, learning_rate


@dataclass
class Schedule:
    """How long a run is."""

    steps: int
    steps_per_epoch: float


def train(config: RunConfig, resume: bool = False) -> dict:
    """Train, and leave OUTPUT/model, log.jsonl, TensorBoard events, config.yaml, checkpoints and results.json.

    Args:
        resume: go on from the last complete checkpoint of OUTPUT; a finished run returns its results.

    Returns:
        What results.json holds: the last record of the log, and the validation scores where there are any.

    Raises:
        UserError: the config is wrong, or OUTPUT exists and `resume` is not set.
        WorkError: too many samples were bad, or the run was stopped.
    """
    output = Path(config.output)
    finished = output / "results.json"
    if resume and finished.exists():
        return json.loads(finished.read_text())
    accelerator = start(config, resume)
    torch.manual_seed(config.seed)  # equal weights on all processes
    model, tokenizer = build_model(config)
    if accelerator.device.type == "cpu":
        optimise_for_cpu(model)
    if config.activation_checkpointing:
        model.checkpoint_activations()
    task = build_task(config, model, tokenizer)
    if config.compile:
        compile_blocks(task)
    loader = TrainingLoader(
        config.data,
        model.config.image_encoder.image_size,
        tokenizer,
        config.batch_size // config.accumulation,
        rank(),
        world_size(),
        config.seed,
        config.objective.prompt,
    )
    schedule = make_schedule(config, loader.epoch_size)
    set_seed(config.seed + 1000 * rank())  # dropout differs between processes
    optimizer = build_optimizer(config.optim, task)
    prepared, optimizer = accelerator.prepare(task, optimizer)
    if world_size() > 1:  # twin and queue are equal everywhere; as an argument, newer torch warns of it
        prepared.broadcast_buffers = False
    step = _restore(output, task, optimizer, loader, accelerator) if resume else 0
    if is_main():
        save_config(config, output / "config.yaml")
    last = _train(config, accelerator, prepared, task, tokenizer, optimizer, loader, schedule, step)
    results = {**last, **validate(config, task.model, tokenizer)} if is_main() else last
    if is_main():
        if resume:  # killed when its model was there and its results were not
            shutil.rmtree(output / "model", ignore_errors=True)
        save_model(task.model, tokenizer, output / "model", _card(config, results, loader))
        write_json(finished, results)
    barrier()
    return results


def start(config: RunConfig, resume: bool) -> Accelerator:
    """Check the config and the output folder, and set the processes up."""
    if not config.output:
        raise UserError("output is empty: name the folder for the run.")
    if (config.steps > 0) == (config.epochs > 0):
        raise UserError("Set either steps or epochs to a positive number, not both.")
    if config.accumulation < 1 or config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size ({config.batch_size}) must be a multiple of accumulation ({config.accumulation}), "
            "as every accumulation step takes its share."
        )
    # Not static_graph: PyTorch 2.15 fails in the first backward pass under no_sync, and it would save only the search
    # for unused parameters, which is off: tasks freeze what they do not run.
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    cpu = not torch.cuda.is_available()
    dtype = compute_dtype(config.precision, join_processes())
    if dtype == torch.float16 and cpu:
        raise UserError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "no"}[dtype]
    accelerator = Accelerator(mixed_precision=name, kwargs_handlers=handlers, cpu=cpu)
    if is_main():
        if not resume:
            prepare_output(config.output)
        Path(config.output).mkdir(parents=True, exist_ok=True)
    barrier()
    return accelerator


def build_model(config: RunConfig) -> tuple[Blip, CaptionTokenizer]:
    """The network and its tokenizer: those of `start_from`, or new ones."""
    if config.start_from:
        started = load_model(config.start_from, device="cpu")
        if config.image_size:
            started.blip.resize_images(config.image_size)
        return started.blip.train(), started.tokenizer
    if config.image_size:
        raise UserError("image_size is for start_from; a new model's is model.image_encoder.image_size.")
    if not config.tokenizer:
        raise UserError("Set tokenizer to a tokenizer folder (`vlp tokenizer` makes one), or start_from to a model.")
    tokenizer = load_tokenizer(config.tokenizer)
    words = config.model.text_tower.vocabulary
    if words not in (0, len(tokenizer)):
        raise UserError(f"model.text_tower.vocabulary is {words} and the tokenizer has {len(tokenizer)} words; set 0.")
    config.model.text_tower.vocabulary = len(tokenizer)
    if config.data.max_tokens > config.model.text_tower.positions:
        raise UserError("data.max_tokens must not be above model.text_tower.positions.")
    return Blip(config.model, config.objective.temperature), tokenizer


def make_schedule(config: RunConfig, epoch_size: int) -> Schedule:
    """Steps of the run and of an epoch."""
    per_epoch = epoch_size / config.batch_size
    return Schedule(config.steps or max(1, round(config.epochs * per_epoch)), per_epoch)


def _train(
    config: RunConfig,
    accelerator: Accelerator,
    prepared: nn.Module,
    task: nn.Module,
    tokenizer: CaptionTokenizer,
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    schedule: Schedule,
    step: int,
) -> dict:
    """Optimiser steps from `step` to the end; returns the last record."""
    output = Path(config.output)
    watch = PlateauWatch(config.optim.warmup_steps)
    batches = iter(loader)
    window = Window()
    record = (read_log(output / "log.jsonl") or [{}])[-1] if step else {}  # a resume may have nothing left to do
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    prepared.train()
    with (
        closing(RunLog(output, step)) if is_main() else nullcontext() as log,
        Progress("steps", schedule.steps, step, quiet=not is_main()) as progress,
        _stop_signal() as stopped,
    ):
        while step < schedule.steps:
            rate = learning_rate(config.optim, step, schedule.steps, schedule.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            task.start_step(step, step / schedule.steps_per_epoch)
            for part in range(config.accumulation):
                waited = time.monotonic()
                batch = next(batches).to(accelerator.device)
                window.waited += time.monotonic() - waited
                last_part = part == config.accumulation - 1
                with nullcontext() if last_part else accelerator.no_sync(prepared):
                    losses, metrics = prepared(batch)
                    loss = total_loss(losses, config.objective)
                    accelerator.backward(loss / config.accumulation)
                window.add({**losses, **metrics, "loss": loss}, len(batch.keys))
            if config.optim.clip_norm > 0:
                accelerator.clip_grad_norm_(parameters, config.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            average_running_statistics(task.model)
            step += 1
            progress.advance()
            stopping = stopped.is_set and world_size() == 1
            if step % config.log_every == 0 or step == schedule.steps:
                record = {"step": step, "epoch": step / schedule.steps_per_epoch, "learning_rate": rate}
                record |= window.close()
                _report(record, log, watch, progress, loader)
                # Several processes stop together, at a step where they meet anyway.
                stopping = all_sum(torch.tensor(float(stopped.is_set), device=accelerator.device)).item() > 0
            if step % config.checkpoint_every == 0 or stopping:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                standing = ResumeState(step, loader.state(), scaler)
                save_checkpoint(output, task, optimizer, standing, config.keep_checkpoints)
            if stopping:
                raise WorkError(f"Stopped at step {step}; go on from there with --resume.")
            if config.evaluate_every and step % config.evaluate_every == 0 and step < schedule.steps:
                paused = time.monotonic()
                if is_main():
                    scores = validate(config, task.model, tokenizer)
                    log.write({"step": step, **scores})
                    progress.say(
                        "  ".join([f"step {step}", *(f"{name} {value:.3f}" for name, value in scores.items())])
                    )
                barrier()
                window.started += time.monotonic() - paused  # rates are those of training
    return record


class Window:
    """Means over the steps since the last record, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0  # seconds spent waiting for data
        self.pairs = 0
        self.forwards = 0
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add(self, named: dict[str, Tensor], pairs: int) -> None:
        """Add what a forward pass returned."""
        self.forwards += 1
        self.pairs += pairs
        for name, value in named.items():
            self.sums[name] = self.sums[name].to(value.device) + value.detach().float()

    def close(self) -> dict[str, float]:
        """Means over processes and steps, rates and memory; a new window begins."""
        names = list(self.sums)
        means = all_sum(torch.stack([self.sums[name] for name in names])) / (self.forwards * world_size())
        seconds = time.monotonic() - self.started
        record = dict(zip(names, means.tolist(), strict=True))
        record["pairs_per_second"] = self.pairs * world_size() / seconds
        record["data_wait_share"] = self.waited / seconds
        record["memory_gib"] = _memory_gib()
        self._clear()
        return record


def validate(config: RunConfig, blip: Blip, tokenizer: CaptionTokenizer) -> dict[str, float]:
    """Scores on the validation shards; nothing where the config names none."""
    if not config.validation:
        return {}
    model = Model(blip, tokenizer, config.precision)
    evaluate = evaluate_captioning if config.task == "captioning" else evaluate_retrieval
    # Blocks are compiled for training: caches and other batches would make programs of their own.
    with torch.compiler.set_stance("force_eager") if config.compile else nullcontext():
        return evaluate(model, config.validation)


def _report(record: dict, log: RunLog, watch: PlateauWatch, progress: Progress, loader: TrainingLoader) -> None:
    if not is_main():
        return
    record["bad_samples"] = sum(loader.bad_counts.values())
    record["filtered_samples"] = sum(loader.filtered_counts.values())
    log.write(record)
    losses = "  ".join(f"{name} {record[name]:.3f}" for name in ("itc", "itm", "lm") if name in record)
    progress.say(
        f"step {record['step']}/{progress.total}  {losses}  {record['pairs_per_second']:.0f} pairs/s  "
        f"data {record['data_wait_share']:.0%}  {progress.left()}"
    )
    advice = watch.see(record["step"], record["itm"]) if "itm" in record else None
    if advice:
        progress.say(advice)


def _restore(
    output: Path,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    accelerator: Accelerator,
) -> int:
    """The step to go on from; 0 where there is no checkpoint yet."""
    found = checkpoints(output)
    if not found:
        return 0
    standing = load_checkpoint(found[-1], task, optimizer)
    loader.load_state(standing.loader)
    if accelerator.scaler and standing.scaler:
        accelerator.scaler.load_state_dict(standing.scaler)
    return standing.step


@dataclass
class _Stop:
    is_set: bool = False


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Ctrl-C ends the step at hand and writes a checkpoint; a second one ends at once."""
    stop = _Stop()

    def ask(*_: object) -> None:
        if stop.is_set:
            raise KeyboardInterrupt
        stop.is_set = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _memory_gib() -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _card(config: RunConfig, results: dict, loader: TrainingLoader) -> str:
    """The model card: what it learned from, by which command and settings, and what it scored."""
    sources = "\n".join(f"- `{source.shards}` (weight {source.weight:g})" for source in config.data.sources)
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in results.items())
    origin = f"starting from `{config.start_from}`" if config.start_from else "from random weights"
    command = "pretrain" if config.task == "pretrain" else "finetune"
    return (
        f"# {Path(config.output).name}\n\nA BLIP-style vision-language model, trained with `vlp` ({config.task}), "
        f"{origin}, on {loader.epoch_size} samples an epoch:\n\n{sources}\n\n"
        f"| measure | at the end |\n| --- | --- |\n{numbers}\n\n"
        f"`vlp {command} config.yaml` trains it again, config.yaml being:\n\n```yaml\n{as_yaml(config)}```\n"
    )
