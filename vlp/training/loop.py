"""The only training loop, on accelerate: pretraining and every finetuning."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from vlp.config import RunConfig
from vlp.data.batch import DeviceBatch
from vlp.distributed import is_main, join_processes, run_on_main
from vlp.errors import WorkError
from vlp.files import write_json, write_text, writing_folder
from vlp.log import Progress, RunLog
from vlp.model_folder import card_with_decoding, save_model
from vlp.models.batch_norm import average_running_statistics
from vlp.tasks.task import LOSSES, total_loss
from vlp.training.best import BestScore
from vlp.training.checkpoint import checkpoints
from vlp.training.checks import check_config, open_run_folder
from vlp.training.health import repetition_advice
from vlp.training.model_card import model_card
from vlp.training.new_run import NewRun
from vlp.training.optim import learning_rate, set_learning_rate
from vlp.training.record_window import RecordWindow
from vlp.training.run import Outcome, Run, prepare_run
from vlp.training.stop_signals import CONTINUE, stop_on_signals, stopped
from vlp.training.trackers import open_tracker
from vlp.training.validation import ModelScorer, validate

FEW_SAMPLES = 32  # validated before the first step


def train(config: RunConfig, resume: bool = False, scorers: Sequence[ModelScorer] = ()) -> dict:
    """Train, and leave OUTPUT/model, log.jsonl, TensorBoard events, config.yaml, checkpoints and results.json.

    Args:
        resume: continue from the last complete checkpoint of OUTPUT; a finished run returns its results.
        scorers: measures that validation adds to its scores, as functions of the model.

    Returns:
        The contents of results.json: the last record of the log, and validation scores if the config asks for them.

    Raises:
        UserError: the config is wrong, OUTPUT exists and `resume` is not set, or its run has other settings.
        WorkError: too many samples were bad, a loss was not finite, a process was lost, or the run was stopped by
            SIGTERM or SIGINT. Processes other than the first raise SystemExit instead where all fail together.

    A new run that fails before its first step leaves nothing in OUTPUT.
    """
    with stop_on_signals() as stop, _lost_processes_in_one_sentence(config):
        join_processes(config.collective_timeout_minutes)
        run_on_main(lambda: check_config(config))
        new, run = NewRun(Path(config.output)), None
        try:
            if open_run_folder(config, resume):
                return json.loads((Path(config.output) / "results.json").read_text())
            run = prepare_run(config, resume, stop, scorers)
            resolved = run.config
            run_on_main(lambda: new.save_config(resolved))
            _check_best_score(run)
            stop.finish_step = True
            train_steps(run)
            return finish(run)
        except BaseException:
            if is_main() and not (run and run.step):
                new.remove()
            raise


def train_steps(run: Run) -> None:
    """Optimizer steps to the end of the schedule, with log records, checkpoints and validation."""
    config, schedule = run.config, run.schedule
    run.prepared.train()
    with (
        closing(iter(run.loader)) as batches,  # ends its workers
        closing(open_log(run)) if is_main() else nullcontext() as log,
        Progress("steps", schedule.steps, run.step, quiet=not is_main()) as progress,
    ):
        if run.agree(wait=False) == Outcome.STOP:
            raise stopped(f"Stopped at step {run.step}; {CONTINUE}.")
        if advice := repetition_advice(config, schedule.steps / schedule.steps_per_epoch):
            progress.say(advice)
        if not run.validated:  # the run ended after its checkpoint and before its scores
            _validate_between_steps(run, log, progress)
        while not run.is_over:
            # Before anything of the step: it may write a checkpoint of the last one.
            parts = _step_batches(run, batches)
            rate = _take_step(run, parts)
            progress.advance()

            logs, saves = run.is_due(config.log_every), run.is_due(config.checkpoint_every)
            outcome = run.agree(wait=logs or saves)
            if outcome == Outcome.NOT_FINITE:
                raise _not_finite(run, rate)
            if logs:
                run.record = {"step": run.step, "epoch": run.step / schedule.steps_per_epoch, "learning_rate": rate}
                run.record |= {"training_seconds": run.training_seconds, **run.window.record()}
                run.earlier_seconds, run.window = run.training_seconds, RecordWindow()
                _report(run, log, progress)
            if saves or outcome == Outcome.STOP:
                run.save_checkpoint()
            if outcome == Outcome.STOP and run.step < schedule.steps:
                raise stopped(f"Stopped at step {run.step}; {CONTINUE}.")
            if config.evaluate_every and run.is_due(config.evaluate_every) and run.step < schedule.steps:
                _validate_between_steps(run, log, progress)
                if run.ends_early:
                    progress.say(f"{config.best_by} got no better in {config.stop_after} validations; the run ends.")
                    run.save_checkpoint()


def open_log(run: Run) -> RunLog:
    """The log of the run with its tracker, from the run's position on."""
    return RunLog(run.output, run.step, open_tracker(run.config, run.output, run.step))


def _take_step(run: Run, parts: list[DeviceBatch]) -> float:
    """One optimizer step on the batches of its parts; returns its learning rate."""
    schedule = run.schedule
    rate = learning_rate(run.config.optim, run.step, schedule.steps, schedule.steps_per_epoch)
    set_learning_rate(run.optimizer, rate)
    run.task.start_step(run.step, run.step / schedule.steps_per_epoch, run.step / schedule.steps)
    for number, batch in enumerate(parts, 1):
        _forward_and_backward(run, batch.to(run.accelerator.device), is_last_part=number == len(parts))
    _clip_gradients(run)
    run.optimizer.step()
    run.optimizer.zero_grad()
    average_running_statistics(run.task.model)
    run.step += 1
    if run.average:
        run.average.update(run.step)
    return rate


def _step_batches(run: Run, batches: Iterator[DeviceBatch]) -> list[DeviceBatch]:
    """The batches of the next step. If a process gets none, all write a checkpoint of the last step, then stop.

    Raises:
        WorkError: the samples cannot be read, or too many are bad.
    """
    before, waited = run.loader.state(), time.monotonic()
    read: list[DeviceBatch] = []
    failure: WorkError | None = None
    try:
        read = [next(batches) for _ in range(run.config.accumulation)]
    except WorkError as error:
        failure = error
    run.window.waited += time.monotonic() - waited
    if run.any_process(failure is not None):
        if run.step:
            run.save_checkpoint(before)
        raise failure or SystemExit(1)
    return read


def finish(run: Run) -> dict:
    """Write the model, then validate, then write the scores into results.json and the model card."""
    folder = run.output / "model"

    def write_model() -> None:
        # A resumed run replaces the model: it may be that of a shorter run, before `steps` was raised.
        shutil.rmtree(folder, ignore_errors=True)
        card = model_card(run.config, run.record, run.loader.epoch_size)
        save_model(run.task.model, run.tokenizer, folder, card, run.decoding)

    with run.evaluated_weights():
        run_on_main(write_model)
        scores = run.best.scores[run.step] if run.best and run.ends_early else _validate(run)
    if scores is None:
        raise stopped(f"Stopped during the last validation; the model is complete; {CONTINUE}.")
    if run.best:
        scores = _take_best(run, run.best, scores, folder)
    results = {**run.record, **scores}

    def write_results() -> None:
        card = model_card(run.config, results, run.loader.epoch_size)
        write_text(folder / "README.md", card_with_decoding(card, run.config.model, run.decoding))
        write_json(run.output / "results.json", results)

    run_on_main(write_results)
    return results


def _validate(run: Run, limit: int | None = None) -> dict[str, float] | None:
    """The scores of the model as it is; None if a signal arrived meanwhile. All processes call it."""
    scorers = run.scorers if limit is None else ()
    return validate(run.config, run.task.model, run.tokenizer, run.decoding, run.stop, scorers, limit)


def _check_best_score(run: Run) -> None:
    """Validate on a few samples before the first step, so that a wrong `best_by` is found at once.

    Raises:
        UserError: validation does not measure it.
    """
    if run.best and not run.step and not run.scorers:
        scores, best = _validate(run, limit=FEW_SAMPLES) or {}, run.best
        run_on_main(lambda: best.check(scores))


def _take_best(run: Run, best: BestScore, scores: dict[str, float], folder: Path) -> dict[str, float]:
    """Replace the model in `folder` by the best one; returns its scores, and its step as `best_step`."""
    best.observe(run.step, scores)
    step = best.best_at(run.step)
    if step is not None and step != run.step:

        def replace_model() -> None:
            shutil.rmtree(folder)
            with writing_folder(folder) as temporary:
                shutil.copytree(best.folder(step), temporary, dirs_exist_ok=True)

        run_on_main(replace_model)
    return {**best.scores[step or run.step], "best_step": step or run.step}


def _forward_and_backward(run: Run, batch: DeviceBatch, is_last_part: bool) -> None:
    """Add the gradients of one batch; those of several processes are averaged in the last part of a step."""
    with nullcontext() if is_last_part else run.accelerator.no_sync(run.prepared):
        losses, metrics = run.prepared(batch)
        loss = total_loss(losses, run.config.objective)
        run.accelerator.backward(loss / run.config.accumulation)
    run.window.add_forward({**losses, **metrics, "loss": loss}, len(batch.keys))
    run.finite.add(loss)


def _clip_gradients(run: Run) -> None:
    """Measure the norm of all gradients, and clip it where the config asks for that."""
    run.accelerator.unscale_gradients()
    norm = nn.utils.get_total_norm([one.grad for one in run.parameters if one.grad is not None])
    if run.config.optim.clip_norm > 0:
        nn.utils.clip_grads_with_norm_(run.parameters, run.config.optim.clip_norm, norm)
    if run.accelerator.scaler:  # skips steps whose gradients overflow in fp16
        norm = norm.nan_to_num(0.0, posinf=0.0)
    run.window.add_step({"gradient_norm": norm})
    run.finite.add(norm)


def _report(run: Run, log: RunLog | None, progress: Progress) -> None:
    """Write and print the last record."""
    if log is None:
        return
    record = run.record
    record["bad_samples"] = sum(run.loader.bad_counts.values())
    record["filtered_samples"] = sum(run.loader.filtered_counts.values())
    log.write(record)
    losses = "  ".join(f"{name} {record[name]:.3f}" for name in LOSSES if name in record)
    progress.say(
        f"step {run.step}/{progress.total}  {losses}  {record['pairs_per_second']:.0f} pairs/s  "
        f"data {record['data_wait_share']:.0%}  {progress.left()}"
    )
    advice = run.plateau.observe(run.step, record["itm"]) if "itm" in record else None
    if advice:
        progress.say(advice)


def _validate_between_steps(run: Run, log: RunLog | None, progress: Progress) -> None:
    """Log the scores of this step; rates are those of training, so the window does not count the time."""
    paused, seconds = time.monotonic(), run.training_seconds
    with run.evaluated_weights():
        scores = _validate(run)
        if scores is not None and run.best:
            _keep_if_best(run, run.best, scores)
    run.window.started += time.monotonic() - paused
    if scores is None:
        run.save_checkpoint()
        raise stopped(f"Stopped at step {run.step}, during validation; {CONTINUE}.")
    if log:
        log.write({"step": run.step, "training_seconds": seconds, **scores})
        progress.say("  ".join([f"step {run.step}", *(f"{name} {value:.3f}" for name, value in scores.items())]))


def _keep_if_best(run: Run, best: BestScore, scores: dict[str, float]) -> None:
    """Write the model into OUTPUT/best if no earlier validation was as good. All processes call it."""
    run_on_main(lambda: best.check(scores))
    folder = best.folder(run.step)

    def write_model() -> None:
        if not folder.exists():  # a resumed run comes here again
            card = model_card(run.config, {**run.record, **scores}, run.loader.epoch_size)
            save_model(run.task.model, run.tokenizer, folder, card, run.decoding)

    if best.observe(run.step, scores):
        run_on_main(write_model)


def _not_finite(run: Run, rate: float) -> BaseException:
    """The error for losses or gradients that are infinite or NaN; no checkpoint is written after them."""
    losses = run.window.not_finite([name for name in LOSSES if name in run.window.forward_sums])
    what = f"The loss ({', '.join(losses)})" if losses else "The gradient"
    kept = checkpoints(run.output)
    where = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint before it"
    return stopped(
        f"{what} is not finite at step {run.step}, at a learning rate of {rate:.3g}; {where}. Start a new run with a "
        "lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1."
    )


@contextmanager
def _lost_processes_in_one_sentence(config: RunConfig) -> Iterator[None]:
    """Turn errors of collective operations, which name sockets and ranks, and of data workers into a WorkError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text:
            reason = text.split("by signal: ")[-1].split(".")[0] if "by signal: " in text else "unknown"
            raise WorkError(
                f"A data worker ended unexpectedly (signal: {reason}), often for lack of memory; lower data.workers, "
                f"and {CONTINUE}."
            ) from error
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in text and "NCCL" not in text:
            raise
        if "timed out" in text.lower() or "timeout" in text.lower():
            raise WorkError(
                f"Another process did not answer for {config.collective_timeout_minutes:g} minutes "
                f"(collective_timeout_minutes); see its output, and {CONTINUE}."
            ) from error
        raise WorkError(f"Another process of the run ended; see its error message, and {CONTINUE}.") from error
