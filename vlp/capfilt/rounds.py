"""Rounds of CapFilt: score, select, pretrain anew, finetune the next captioner and filter, and again with these."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlp.capfilt.run import run_capfilt
from vlp.capfilt.scorers import OPEN_CLIP, TRANSFORMERS, as_list
from vlp.config import CapFiltConfig, RoundsConfig, RunConfig, SourceConfig
from vlp.config_reader import as_yaml, load_config
from vlp.distributed import barrier, is_main, join_processes
from vlp.errors import UserError
from vlp.files import write_json, write_text
from vlp.training.loop import train

STAGES = {"pretrain": "pretrain", "captioner": "captioning", "filter": "retrieval"}  # and their tasks


def run_rounds(config: CapFiltConfig) -> list[dict[str, Any]]:
    """Run all rounds, or go on with those that were stopped: what is finished is not done again.

    Each round leaves OUTPUT/round-N with the new shards in `selected`, the runs `pretrain`, `captioner` and `filter`,
    and the resolved config of each of these four. Its score tables lie beside the first shards, named NAME-round-N.
    A round's captioner and filter take the place of the model folders that judged before; models from outside stay.

    Returns:
        What OUTPUT/rounds.json holds: of each round the models that judged, what was selected, and every run's results.

    Raises:
        UserError: a config is wrong, or a stage was begun with other settings.
        WorkError: a stage failed, or was stopped.
    """
    trainings = _read_trainings(config)
    join_processes()
    captioner, judge = as_list(config.captioner), as_list(config.filter)
    reports: list[dict[str, Any]] = []
    for number in range(1, config.rounds.count + 1):
        folder = Path(config.output) / f"round-{number}"
        selecting = replace(
            config,
            captioner=captioner,
            filter=judge,
            name=f"{config.name}-round-{number}",
            output=str(folder / "selected"),
            human="",
            rounds=RoundsConfig(),
        )
        report = {"round": number, "captioned by": captioner, "filtered by": judge}
        report["selected"] = _select(selecting, folder)
        for stage in STAGES:
            report[stage] = _train(trainings[stage], stage, config, folder)
        captioner = _next(captioner, folder / "captioner")
        judge = _next(judge, folder / "filter")
        reports.append(report)
        if is_main():
            write_json(Path(config.output) / "rounds.json", reports)
    return reports


def flat(report: dict[str, Any]) -> dict[str, Any]:
    """A round's report for people: one level of names."""
    lines: dict[str, Any] = {}
    for name, value in report.items():
        lines |= {f"{name} {part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
    return lines


def _read_trainings(config: CapFiltConfig) -> dict[str, RunConfig]:
    """The config of each training; raises UserError where something is missing or wrong."""
    if not config.output:
        raise UserError("CapFilt needs output: the folder for the rounds.")
    trainings = {}
    for stage, task in STAGES.items():
        given = getattr(config.rounds, stage)
        if not given:
            raise UserError(f"rounds.{stage} is missing: name a config file, or write its settings there.")
        training = load_config(RunConfig, given) if isinstance(given, str) else given
        if training.task != task:
            raise UserError(f"rounds.{stage} must have the task {task}, not {training.task}.")
        if not training.data.sources and not config.human:
            raise UserError(f"rounds.{stage} has no data.sources: name clean shards there, or as human.")
        trainings[stage] = training
    return trainings


def _select(config: CapFiltConfig, folder: Path) -> dict[str, Any]:
    """Score and select, unless that is done; what was selected."""
    counts, selected = folder / "selected.json", Path(config.output)
    _begin(config, folder, "selected", counts.exists())
    if not counts.exists():
        if is_main():
            shutil.rmtree(selected, ignore_errors=True)  # stopped when it was there but not counted
        barrier()
        result = run_capfilt(config)
        if is_main():
            write_json(counts, result["selected"])
        barrier()
    return json.loads(counts.read_text())


def _train(training: RunConfig, stage: str, config: CapFiltConfig, folder: Path) -> dict[str, float]:
    """One run of a round, gone on with where it was stopped; its results."""
    output = folder / stage
    sources = training.data.sources or [SourceConfig(config.human)]
    start_from = str(folder / "pretrain" / "model")
    if stage == "pretrain":
        sources, start_from = [*sources, SourceConfig(str(folder / "selected" / "*.tar"))], training.start_from
    data = replace(training.data, sources=sources)
    training = replace(training, output=str(output), start_from=start_from, data=data)
    _begin(training, folder, stage, output.exists() and any(output.iterdir()))
    return train(deepcopy(training), resume=output.exists())  # which fills gaps of its config in


def _begin(config: CapFiltConfig | RunConfig, folder: Path, stage: str, begun: bool) -> None:
    """Keep a stage's config in FOLDER/STAGE.yaml; refuse to go on with another than it was begun with."""
    path, text = folder / f"{stage}.yaml", as_yaml(config)
    if begun and path.read_text() != text:
        raise UserError(f"{folder / stage} was begun with other settings ({path}); remove it and what follows from it.")
    barrier()
    if is_main():
        print(f"{folder.name}: {stage}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _next(scorers: list[str], trained: Path) -> list[str]:
    """The scorers of the next round: a new model, and those from outside."""
    outside = [name for name in scorers if name.startswith((TRANSFORMERS, OPEN_CLIP))]
    return [str(trained / "model"), *outside]
