"""Estimates how long each stage of the demo takes on this machine, by timing a miniature of it."""

import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from vlp.capfilt.run import run_capfilt, score_shards
from vlp.config import RunConfig, TaskName
from vlp.demo.stages import (
    QUICK_RULES,
    DemoSizes,
    capfilt_config,
    finetune,
    finetune_config,
    make_data,
    pretrain_config,
    score_model,
    train_once,
)
from vlp.log import read_log

STEPS = 6  # of each miniature training
TIMED_STEPS = 3  # the last ones; the first are slower
CAPTION_LENGTH = 16  # tokens of the longest caption in a batch of a trained captioner; an untrained one does not stop


@dataclass(frozen=True)
class Speeds:
    """What the parts of the demo cost on this machine, in seconds.

    Attributes:
        scene: generating a scene.
        training: starting a training and saving its model.
        pretrain_step, captioner_step, filter_step: an optimizer step.
        scored_image: captioning an image and scoring its two texts.
        selection: selecting texts and writing CapFilt's report.
        evaluated_image: retrieval and captioning of a held-out image.
    """

    scene: float
    training: float
    pretrain_step: float
    captioner_step: float
    filter_step: float
    scored_image: float
    selection: float
    evaluated_image: float


def stage_seconds(speeds: Speeds, sizes: DemoSizes) -> dict[str, float]:
    """Estimated seconds of each stage of a demo, by the stage's name."""
    pretraining = speeds.training + sizes.pretrain_steps * speeds.pretrain_step
    return {
        "data": (sizes.human + sizes.web + sizes.held_out) * speeds.scene,
        "noisy": pretraining,
        "captioner": speeds.training + sizes.captioner_steps * speeds.captioner_step,
        "filter": speeds.training + sizes.filter_steps * speeds.filter_step,
        "capfilt": sizes.web * speeds.scored_image + speeds.selection,
        "bootstrapped": pretraining,
        "scores": 2 * sizes.held_out * speeds.evaluated_image,
    }


def measure_speeds(root: Path, sizes: DemoSizes, seed: int) -> Speeds:
    """Run a miniature of the demo in the empty folder `root` and time its parts.

    Model, batch size and all settings are those of the demo; only the numbers of samples and steps are smaller.
    """
    mini = replace(
        sizes,
        human=2 * sizes.batch_size,
        web=4 * sizes.batch_size,  # at least two batches of CapFilt
        held_out=min(32, sizes.held_out),
        pretrain_steps=STEPS,
        captioner_steps=STEPS,
        filter_steps=STEPS,
        warmup_steps=1,
    )
    with redirect_stdout(io.StringIO()):
        scenes = _timed(lambda: make_data(root, mini, seed)) / (mini.human + mini.web + mini.held_out)
        pretraining = replace(pretrain_config(root, "noisy", ["human", "web"], mini, seed), log_every=1)
        seconds = _timed(lambda: train_once(pretraining))
        steps = {"noisy": _step_seconds(pretraining)}
        tasks: dict[str, TaskName] = {"captioner": "captioning", "filter": "retrieval"}
        for name, task in tasks.items():
            config = replace(finetune_config(root, name, task, mini, seed), log_every=1)
            finetune(root, name, config)
            steps[name] = _step_seconds(config)
        cleaning = capfilt_config(root, QUICK_RULES, seed)
        cleaning = replace(cleaning, decoding=replace(cleaning.decoding, max_length=CAPTION_LENGTH))
        scoring = _timed(lambda: score_shards(cleaning)) / mini.web
        selection = _timed(lambda: run_capfilt(cleaning))  # the tables exist
        evaluation = _timed(lambda: score_model(root, "noisy")) / mini.held_out
    return Speeds(
        scene=scenes,
        training=max(0.0, seconds - STEPS * steps["noisy"]),
        pretrain_step=steps["noisy"],
        captioner_step=steps["captioner"],
        filter_step=steps["filter"],
        scored_image=scoring,
        selection=selection,
        evaluated_image=evaluation,
    )


class Clock:
    """Time spent and estimated time left, by stage.

    The estimates of stages to come are corrected by how long the finished stages took.
    """

    def __init__(self, estimates: dict[str, float], spent: dict[str, float], finished: list[str]):
        """`spent` has the seconds of earlier calls; stages in `finished` need no more time."""
        self.estimates, self.spent, self.finished = estimates, dict(spent), list(finished)

    def left(self, stage: str) -> float:
        """Estimated seconds until a stage that is not finished ends."""
        if stage in self.finished:
            return 0.0
        twin = {"bootstrapped": "noisy"}.get(stage)  # the same work again
        whole = self.spent[twin] if twin in self.finished and twin in self.spent else self._corrected(stage)
        return max(0.0, whole - self.spent.get(stage, 0.0))

    def left_in_all(self) -> float:
        """Estimated seconds until the demo ends."""
        return sum(map(self.left, self.estimates))

    def add(self, stage: str, seconds: float, finished: bool) -> None:
        """Count time spent on a stage."""
        self.spent[stage] = self.spent.get(stage, 0.0) + seconds
        if finished:
            self.finished.append(stage)

    def _corrected(self, stage: str) -> float:
        known = [one for one in self.finished if self.spent.get(one) and self.estimates[one]]
        estimated = sum(self.estimates[one] for one in known)
        if estimated < 0.05 * sum(self.estimates.values()):  # too little to learn from
            return self.estimates[stage]
        return self.estimates[stage] * sum(self.spent[one] for one in known) / estimated


def _timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _step_seconds(config: RunConfig) -> float:
    """Median seconds of the last optimizer steps of a run that logged every step."""
    records = read_log(Path(config.output) / "log.jsonl")[-TIMED_STEPS:]
    return statistics.median(config.batch_size / record["pairs_per_second"] for record in records)
