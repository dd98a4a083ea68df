"""The demo: the whole CapFilt loop on synthetic scenes, and a report of what it gained."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vlp.demo.estimate import Clock, Speeds, measure_speeds, stage_seconds
from vlp.demo.matching_scores import flipped_relation_auc
from vlp.demo.page import write_demo_page
from vlp.demo.stages import (
    FULL,
    QUICK,
    QUICK_RULES,
    RULES,
    WRONG,
    DemoSizes,
    capfilt_config,
    claim,
    clean,
    finetune,
    finetune_config,
    make_data,
    pretrain_config,
    score_model,
    shards_of,
    train_once,
)
from vlp.demo.truth import filter_quality
from vlp.files import scratch_folder, write_json
from vlp.log import format_duration
from vlp.model import load_model
from vlp.models.cpu.optimise import optimise_for_cpu


@dataclass(frozen=True)
class Stage:
    """One stage of the demo.

    Attributes:
        name: a word for files.
        title: what it does, for people.
        result: the file or folder, relative to the demo's, that exists once the stage is done.
    """

    name: str
    title: str
    result: str
    run: Callable[[], object]


def run_demo(output: str, quick: bool = False, seed: int = 0) -> dict:
    """Run the demo and write OUTPUT/report.html and OUTPUT/report.json; an interrupted demo is resumed.

    Args:
        output: folder for everything. Finished stages in it are kept.
        quick: much smaller data and trainings, to check that everything runs.
        seed: for the scenes, the initial weights and all sampling.

    Returns:
        The content of report.json.

    Raises:
        UserError: the folder holds something else, such as a demo with other settings.
    """
    root, sizes, rules = Path(output), QUICK if quick else FULL, QUICK_RULES if quick else RULES
    claim(root, "a demo", {"sizes": asdict(sizes), "seed": seed})
    stages = _stages(root, sizes, rules, seed)
    clock = Clock(
        {}, _read_json(root / "seconds.json"), [stage.name for stage in stages if (root / stage.result).exists()]
    )
    if len(clock.finished) < len(stages):
        speeds = _introduce(root, sizes, seed)
        clock.estimates = stage_seconds(speeds, sizes)
        _print_estimates(stages, clock, speeds, quick)
    for stage in stages:
        if stage.name not in clock.finished:
            _run_stage(root, stage, clock)
    results = json.loads((root / "scores.json").read_text())
    results |= {"seed": seed, "quick": quick, "seconds": sum(clock.spent.values())}
    write_json(root / "report.json", results)
    write_demo_page(root)
    print(f"Done after {format_duration(results['seconds'])}: {root / 'report.html'}")
    return results


def _stages(root: Path, sizes: DemoSizes, rules: str, seed: int) -> list[Stage]:
    """The stages in order."""
    pretraining = pretrain_config(root, "noisy", ["human", "web"], sizes, seed)
    captioning = finetune_config(root, "captioner", "captioning", sizes, seed)
    filtering = finetune_config(root, "filter", "retrieval", sizes, seed)
    cleaning = capfilt_config(root, rules, seed)
    again = pretrain_config(root, "bootstrapped", ["cleaned"], sizes, seed)

    def score() -> None:
        scores = {name: score_model(root, name) for name in ("noisy", "bootstrapped")}
        relations = flipped_relation_auc(optimise_for_cpu(load_model(root / "filter")), shards_of(root, "held-out"))
        relations = {f"filter_{name}": value for name, value in relations.items()}
        write_json(root / "scores.json", {**scores, **filter_quality(shards_of(root, "web"), rules), **relations})

    return [
        Stage("data", "generate scenes, train a tokenizer", "tokenizer", lambda: make_data(root, sizes, seed)),
        Stage("noisy", "pretrain on the noisy data", "noisy/model", lambda: train_once(pretraining)),
        Stage("captioner", "finetune the captioner", "captioner", lambda: finetune(root, "captioner", captioning)),
        Stage("filter", "finetune the filter", "filter", lambda: finetune(root, "filter", filtering)),
        Stage("capfilt", "caption and filter the web scenes", "capfilt.json", lambda: clean(root, cleaning)),
        Stage("bootstrapped", "pretrain again on the cleaned data", "bootstrapped/model", lambda: train_once(again)),
        Stage("scores", "evaluate both pretrained models", "scores.json", score),
    ]


def _introduce(root: Path, sizes: DemoSizes, seed: int) -> Speeds:
    """Say what the demo does, and measure this machine unless an earlier call has."""
    print(
        f"The demo runs CapFilt on synthetic scenes: {sizes.human:,} with correct captions and {sizes.web:,} from a "
        f'"web" where {WRONG:.0%} of the texts are wrong.'
    )
    path = root / "speeds.json"
    if not path.exists():
        print("Measuring how long it takes on this machine ...", flush=True)
        with scratch_folder(path) as scratch:
            write_json(path, asdict(measure_speeds(scratch, sizes, seed)))
    return Speeds(**_read_json(path))


def _print_estimates(stages: list[Stage], clock: Clock, speeds: Speeds, quick: bool) -> None:
    """Print the stages and how long each takes."""
    width = max(len(stage.title) for stage in stages)
    for stage in stages:
        time_left = "done" if stage.name in clock.finished else format_duration(clock.left(stage.name))
        print(f"  {stage.title:<{width}}  {time_left:>7}")
    print(f"  {'in all, about':<{width}}  {format_duration(clock.left_in_all()):>7}")
    if not quick:
        seconds = sum(stage_seconds(speeds, QUICK).values())
        print(f"`vlp demo OUT --quick` takes about {format_duration(seconds)}, but its scores mean nothing.")
    print("If you interrupt the demo, rerun the same command to resume it.", flush=True)


def _run_stage(root: Path, stage: Stage, clock: Clock) -> None:
    """Run a stage; the seconds it took are kept in ROOT/seconds.json, also if it is interrupted."""
    minutes, seconds = divmod(int(sum(clock.spent.values())), 60)
    left, in_all = clock.left(stage.name), clock.left_in_all()
    estimate = f"about {format_duration(left)} of {format_duration(in_all)} left"
    print(f"[{minutes:02d}:{seconds:02d}] {stage.title}: {estimate}", flush=True)
    started, finished = time.monotonic(), False
    try:
        stage.run()
        finished = True
    finally:
        clock.add(stage.name, time.monotonic() - started, finished)
        write_json(root / "seconds.json", clock.spent)


def _read_json(path: Path) -> dict[str, float]:
    return json.loads(path.read_text()) if path.exists() else {}
