"""The tasks of a trained model on scenes: data, finetuning from the demo's pretrained model, and evaluation."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vlp.config import RunConfig
from vlp.demo import (
    attention_scenes,
    classification_scenes,
    nlvr2_scenes,
    retrieval_scenes,
    self_critical_scenes,
    video_scenes,
    visdial_scenes,
    vqa_scenes,
)
from vlp.demo.page import finished_tasks, write_demo_page
from vlp.demo.stages import FULL, QUICK, DemoSizes, claim, finetune_config, train_once
from vlp.errors import UserError
from vlp.files import write_json
from vlp.log import format_duration
from vlp.model import Model, load_model
from vlp.models.cpu.optimise import optimise_for_cpu

QUICK_SAMPLES, QUICK_STEPS = 128, 5  # at most, of a quick demo


@dataclass(frozen=True)
class SceneTask:
    """A task on scenes.

    Attributes:
        name: of the task.
        make_data: writes scenes into a folder that does not exist: (folder, number of samples, image size, seed).
        evaluate: scores a model on the scenes of the test folder: (model, folder) -> metrics.
        metric, target: the metric that counts, and the least value that the trained model should reach.
        train, test: numbers of samples.
        config: changes the config of the finetuning; None: the pretrained model is evaluated as it is.
        start: the model to start from, relative to the demo's folder.
        compare: whether the model to start from is evaluated too. `before_NAME` is its metric NAME, and `NAME_gain` is
            what finetuning added.
        make_training_data: writes the scenes of training, if `make_data` does not.
    """

    name: str
    make_data: Callable[[Path, int, int, str], None]
    evaluate: Callable[[Model, Path], dict[str, float]]
    metric: str
    target: float
    train: int
    test: int
    config: Callable[[RunConfig], RunConfig] | None = None
    start: str = "bootstrapped/model"
    compare: bool = False
    make_training_data: Callable[[Path, int, int, str], None] | None = None


SCENE_TASKS = {
    task.name: task
    for task in (
        SceneTask(
            "classification",
            classification_scenes.make_classification_scenes,
            classification_scenes.score_classification,
            metric="acc1",
            target=0.9,
            train=0,
            test=500,
        ),
        SceneTask(
            "attention",
            attention_scenes.make_attention_scenes,
            attention_scenes.score_attention,
            metric="ratio",
            target=3.0,
            train=0,
            test=500,
        ),
        SceneTask(
            "retrieval",
            retrieval_scenes.make_retrieval_scenes,
            retrieval_scenes.score_retrieval,
            metric="rerank_gain",
            target=0.0,
            train=5000,
            test=500,
            config=lambda config: replace(config, task="retrieval"),
            compare=True,
        ),
        SceneTask(
            "self_critical",
            self_critical_scenes.make_reference_scenes,
            self_critical_scenes.score_captions_of_scenes,
            metric="CIDEr_gain",
            target=0.0,
            train=5000,
            test=500,
            config=self_critical_scenes.self_critical_config,
            start="captioner",
            compare=True,
        ),
        SceneTask(
            "nlvr2",
            nlvr2_scenes.make_nlvr2_scenes,
            nlvr2_scenes.score_nlvr2,
            metric="accuracy",
            target=0.85,
            train=100_000,
            test=1000,
            config=nlvr2_scenes.nlvr2_config,
        ),
        SceneTask(
            "visdial",
            visdial_scenes.make_visdial_scenes,
            visdial_scenes.score_visdial,
            metric="r1",
            target=0.6,
            train=5000,
            test=300,
            config=visdial_scenes.visdial_config,
            make_training_data=visdial_scenes.make_training_scenes,
        ),
        SceneTask(
            "vqa",
            vqa_scenes.make_vqa_scenes,
            vqa_scenes.score_vqa,
            metric="accuracy",
            target=0.9,
            train=5000,
            test=500,
            config=vqa_scenes.finetuning,
        ),
        SceneTask(
            "video_retrieval",
            video_scenes.make_video_scenes,
            video_scenes.score_videos,
            metric="gain_t2v_r1",
            target=0.03,
            train=0,
            test=300,
        ),
    )
}


def run_tasks(output: str, names: str, quick: bool = False, seed: int = 0) -> dict[str, dict]:
    """Finetune and evaluate a finished demo's model on tasks; write OUTPUT/tasks.json and OUTPUT/report.html.

    Rerunning continues an interrupted call; finished tasks are not run again.

    Args:
        output: the folder of the demo.
        names: of tasks, separated by commas, or "all".
        quick, seed: as in the call that ran the demo.

    Returns:
        The content of tasks.json: for each task its metrics, which metric counts, its target, and seconds.

    Raises:
        UserError: a task is unknown, or the folder holds no finished demo with these settings.
    """
    root, tasks = Path(output), _named_tasks(names)
    if not (root / "report.json").exists():
        raise UserError(
            f"{root} holds no finished demo, whose model the tasks start from; run `vlp demo {root}` first."
        )
    sizes = QUICK if quick else FULL
    claim(root, "a demo", {"sizes": asdict(sizes), "seed": seed})
    for task in tasks:
        if task.name not in finished_tasks(root):
            _run_task(root, task, sizes, quick, seed)
    write_demo_page(root)
    results = finished_tasks(root)
    _print_table(results)
    return results


def _named_tasks(names: str) -> list[SceneTask]:
    chosen = list(SCENE_TASKS) if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in SCENE_TASKS:
            raise UserError(f"There is no task {name!r} on scenes; choose from {', '.join(SCENE_TASKS)}, or all.")
    return [SCENE_TASKS[name] for name in dict.fromkeys(chosen)]


def _results(root: Path) -> dict[str, dict]:
    path = root / "tasks.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _run_task(root: Path, task: SceneTask, sizes: DemoSizes, quick: bool, seed: int) -> None:
    """Run a task; the seconds it took are kept in ROOT/tasks.json, also if it is interrupted."""
    before, started = _results(root).get(task.name, {}).get("seconds", 0.0), time.monotonic()
    found: dict = {}
    try:
        found = {"metrics": _measure(root, task, sizes, quick, seed), "metric": task.metric, "target": task.target}
    finally:
        seconds = before + time.monotonic() - started
        write_json(root / "tasks.json", {**_results(root), task.name: {**found, "seconds": seconds}})


def _measure(root: Path, task: SceneTask, sizes: DemoSizes, quick: bool, seed: int) -> dict[str, float]:
    """The metrics of a task after its data and its finetuning, which are made unless they exist."""
    for split, count in (("train", task.train), ("test", task.test)):
        folder = root / "data" / f"{task.name}-{split}"
        if count and not folder.exists():
            print(f"{task.name}: make {split} scenes", flush=True)
            count = min(count, QUICK_SAMPLES) if quick else count
            make = task.make_training_data if split == "train" and task.make_training_data else task.make_data
            make(folder, count, sizes.image_size, f"{task.name} {split} {seed}")
    if task.config is None:
        return _evaluate(root, task, root / task.start)
    config = finetuning_config(root, task, task.config, sizes, seed)
    config = replace(config, steps=QUICK_STEPS) if quick else config
    print(f"{task.name}: finetune {task.start} for {config.steps} steps", flush=True)
    train_once(config)
    metrics = _evaluate(root, task, Path(config.output) / "model")
    before = _evaluate(root, task, root / task.start) if task.compare else {}
    gains = {f"{name}_gain": metrics[name] - value for name, value in before.items() if isinstance(value, float)}
    return {**metrics, **{f"before_{name}": value for name, value in before.items()}, **gains}


def finetuning_config(
    root: Path, task: SceneTask, change: Callable[[RunConfig], RunConfig], sizes: DemoSizes, seed: int
) -> RunConfig:
    """The config of a task's finetuning in ROOT/TASK-run on the scenes of ROOT/data/TASK-train."""
    config = finetune_config(root, task.name, "captioning", sizes, seed, task.start, f"{task.name}-train")
    return change(config)


def _evaluate(root: Path, task: SceneTask, model: Path) -> dict[str, float]:
    print(f"{task.name}: evaluate {model}", flush=True)
    return task.evaluate(optimise_for_cpu(load_model(model)), root / "data" / f"{task.name}-test")


def _print_table(results: dict[str, dict]) -> None:
    rows = [("task", "metric", "target", "reached", "time")]
    for name, one in results.items():
        value = one["metrics"][one["metric"]]
        missed = "" if value >= one["target"] else " (missed)"
        rows.append(
            (name, one["metric"], f"{one['target']:.3f}", f"{value:.3f}{missed}", format_duration(one["seconds"]))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
