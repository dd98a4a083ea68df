"""Rounds of CapFilt: score, select, pretrain a new model, finetune the next captioner and filter, and repeat."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlp.capfilt.run import run_capfilt
from vlp.capfilt.scorers import OPEN_CLIP, TRANSFORMERS, as_list
from vlp.config import CapFiltConfig, RoundsConfig, RunConfig, SourceConfig
from vlp.config_reader import as_yaml, load_config
from vlp.distributed import is_main, join_processes, run_on_main
from vlp.errors import UserError
from vlp.files import read_json, write_json, write_text
from vlp.model_folder import is_model_folder
from vlp.remote import is_remote
from vlp.training.loop import train

STAGES = {"pretrain": "pretrain", "captioner": "captioning", "filter": "retrieval"}  # and their tasks


def run_rounds(config: CapFiltConfig) -> list[dict[str, Any]]:
    """Run all rounds, or continue an interrupted call: finished stages are skipped, trainings resume.

    Each round writes OUTPUT/round-N, with the new shards in `selected`, the run folders `pretrain`, `captioner` and
    `filter`, and the resolved config of each of these four stages. Its score tables, NAME-round-N, are next to the
    original shards. The captioner and filter of a round replace the model folders of the round before; captioners of
    `transformers` and CLIP filters stay.

    Returns:
        The content of OUTPUT/rounds.json: each round's models, counts of what was selected, and results of every run.

    Raises:
        UserError: a config is wrong, or a stage was started with other settings.
        WorkError: a stage failed or was interrupted.
    """
    join_processes()
    run_on_main(lambda: _read_trainings(config) and None)  # one process reports what is wrong
    trainings = _read_trainings(config)
    captioner, filters = as_list(config.captioner), as_list(config.filter)
    reports: list[dict[str, Any]] = []
    for number in range(1, config.rounds.count + 1):
        folder = Path(config.output) / f"round-{number}"
        selecting = replace(
            config,
            captioner=captioner,
            filter=filters,
            name=f"{config.name}-round-{number}",
            output=str(folder / "selected"),
            human="",
            rounds=RoundsConfig(),
        )
        report = {"round": number, "captioned by": captioner, "filtered by": filters}
        report["selected"] = _select(selecting, folder)
        for stage in STAGES:
            report[stage] = _train(trainings[stage], stage, config, folder)
        captioner = _next(captioner, folder / "captioner")
        filters = _next(filters, folder / "filter")
        reports.append(report)
        if is_main():
            write_json(Path(config.output) / "rounds.json", reports)
    return reports


def flat(report: dict[str, Any]) -> dict[str, Any]:
    """A round's report with one level of keys, for printing."""
    lines: dict[str, Any] = {}
    for name, value in report.items():
        lines |= {f"{name} {part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
    return lines


def _read_trainings(config: CapFiltConfig) -> dict[str, RunConfig]:
    """The config of each training; raises UserError if one is missing or wrong."""
    if not config.output:
        raise UserError("CapFilt needs output; set it to a folder for the rounds.")
    if is_remote(config.output):
        raise UserError(f"{config.output} is an address, but rounds train in their output; set it to a local folder.")
    trainings = {}
    for stage, task in STAGES.items():
        given = getattr(config.rounds, stage)
        if not given:
            raise UserError(f"rounds.{stage} is missing; set it to a config file or to the settings themselves.")
        training = load_config(RunConfig, given) if isinstance(given, str) else given
        if training.task != task:
            raise UserError(f"rounds.{stage} has the task {training.task}; it must be {task}.")
        if not training.data.sources and not config.human:
            raise UserError(f"rounds.{stage} has no data.sources; list clean shards there or in human.")
        trainings[stage] = training
    return trainings


def _select(config: CapFiltConfig, folder: Path) -> dict[str, Any]:
    """Score and select, unless that is done; returns the counts of what was selected."""
    counts = folder / "selected.json"
    finished = run_on_main(lambda: _start_stage(config, folder, "selected", counts.exists()))
    if not finished:
        # A run that was interrupted before it wrote the counts may have left a selection.
        run_on_main(lambda: shutil.rmtree(config.output, ignore_errors=True))
        result = run_capfilt(config)
        run_on_main(lambda: write_json(counts, result["selected"]))
    return json.loads(counts.read_text())


def _train(training: RunConfig, stage: str, config: CapFiltConfig, folder: Path) -> dict[str, float]:
    """Run or resume one training of a round; returns its results."""
    output = folder / stage
    sources = training.data.sources or [SourceConfig(config.human)]
    start_from = str(folder / "pretrain" / "model")
    if stage == "pretrain":
        sources, start_from = [*sources, SourceConfig(str(folder / "selected" / "*.tar"))], training.start_from
    data = replace(training.data, sources=sources)
    training = replace(training, output=str(output), start_from=start_from, data=data)
    resume = run_on_main(lambda: _start_stage(training, folder, stage, output.exists() and any(output.iterdir())))
    return train(training, resume)


def _start_stage(config: CapFiltConfig | RunConfig, folder: Path, stage: str, started: bool) -> bool:
    """In the first process: save a stage's config as FOLDER/STAGE.yaml; returns whether the stage was started before.

    Raises:
        UserError: it was started with another config.
    """
    path, text = folder / f"{stage}.yaml", as_yaml(config)
    if started and path.read_text() != text:
        raise UserError(f"{folder / stage} was started with other settings ({path}); remove it and the later stages.")
    print(f"{folder.name}: {stage}", flush=True)
    write_text(path, text)
    return started


def _next(scorers: list[str], trained: Path) -> list[str]:
    """The captioners or filters of the next round: the newly trained model, and those of other kinds than BLIP."""
    others = [name for name in scorers if name.startswith((TRANSFORMERS, OPEN_CLIP)) or _is_clip(name)]
    return [str(trained / "model"), *others]


def _is_clip(name: str) -> bool:
    """Whether a name is the folder of a CLIP model."""
    return is_model_folder(name) and read_json(Path(name) / "config.json")["model"].get("network") == "clip"
