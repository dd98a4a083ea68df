"""All evaluations that a model can do on the data in a folder, with a table and a page of the results."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlp.data.labelled_images import open_labelled
from vlp.distributed import is_main, meet, run_on_main
from vlp.errors import UserError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.classification import evaluate_classification
from vlp.evaluation.data_stamps import data_stamp, has_results, keep_stamp
from vlp.evaluation.find_data import FoundData, find_data
from vlp.evaluation.linear_probe import evaluate_linear_probe, features_folder
from vlp.evaluation.nlvr2 import evaluate_nlvr2
from vlp.evaluation.results import Results, predictions_path, save_results
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.settings import EvaluationSettings
from vlp.evaluation.video_qa import evaluate_video_qa
from vlp.evaluation.video_retrieval import evaluate_video_retrieval
from vlp.evaluation.visdial import evaluate_visdial
from vlp.evaluation.vqa import evaluate_vqa
from vlp.files import read_json, remove, write_json
from vlp.model import Model
from vlp.models.network import KINDS
from vlp.models.untrained import CAPTIONING, EMBEDDING, MATCHING
from vlp.report.evaluation_page import write_evaluation_report

Evaluate = Callable[[Model, FoundData, EvaluationSettings], Results]

EVALUATIONS: dict[str, Evaluate] = {
    "retrieval": lambda model, data, settings: evaluate_retrieval(
        model, data.shards, _rerank(model, data.dataset), settings=settings
    ),
    "captioning": lambda model, data, settings: evaluate_captioning(model, data.shards, settings=settings),
    "nlvr2": lambda model, data, settings: evaluate_nlvr2(model, data.shards, settings),
    "vqa": lambda model, data, settings: evaluate_vqa(model, data.shards, settings=settings),
    "visdial": lambda model, data, settings: evaluate_visdial(model, data.shards, settings),
    "video_retrieval": lambda model, data, settings: evaluate_video_retrieval(
        model, data.annotations, data.videos, settings=settings
    ),
    "video_qa": lambda model, data, settings: evaluate_video_qa(
        model, data.annotations, data.videos, settings=settings
    ),
    "classification": lambda model, data, settings: evaluate_classification(
        model, open_labelled(data.shards[0]), settings=settings
    ),
    "linear_probe": lambda model, data, settings: _probe(model, data, settings),
}
# What a model has to be finetuned for, as in its config; a model that is finetuned for one of these does nothing else.
NEEDS = {"vqa": "vqa", "video_qa": "vqa", "nlvr2": "nlvr2", "visdial": "visdial"}
# What a model without matching and captions can do, and one without texts.
DOES = {
    "clip": ("retrieval", "video_retrieval", "classification", "linear_probe"),
    "classifier": ("classification", "linear_probe"),
}
NOT_ASKED = "not among --tasks"  # the reason
# How many candidates the paper re-ranks on a data set whose name has this word; the default is that of COCO.
RERANKED = {"flickr30k": 128}
# What a converted model may lack.
PARTS = {
    "retrieval": (*EMBEDDING, *MATCHING),
    "captioning": CAPTIONING,
    "video_retrieval": (*EMBEDDING, *MATCHING),
    "classification": EMBEDDING,
}


def evaluate_all(
    model: Model, name: str, data: str, out: str, settings: EvaluationSettings, tasks: list[str] | None = None
) -> dict[str, Any]:
    """Evaluate everything in a folder that the model can do, and write OUT/results.json, results.md and report.html.

    Each evaluation writes OUT/TASK-DATASET.json and its predictions beside it. A rerun continues: finished evaluations
    are repeated only if a file of their data has changed, and an interrupted one goes on with its next batch.

    Args:
        name: of the model in the results.
        data: the folder; see `find_data`.
        tasks: only these, and those that earlier calls finished; None: all.

    Returns:
        The content of OUT/results.json: `model`, `results` (as CLIP_benchmark writes them) and `not_run`, what was left
        out and why.

    Raises:
        UserError: a task is unknown, the folder holds no data, or OUT holds results of other settings.
    """
    if unknown := set(tasks or ()) - set(EVALUATIONS):
        raise UserError(f"There is no evaluation {min(unknown)!r}; choose from {', '.join(sorted(EVALUATIONS))}.")
    found = find_data(data)  # before OUT is made: a wrong folder must not stand in the way of the right one
    run_on_main(lambda: _check_output(Path(out), {**settings.about, "data": str(Path(data).resolve())}))
    reasons = [_reason(model, one, tasks) for one in found]
    finished: list[dict[str, Any]] = []
    for number, one in enumerate(found):
        if reasons[number] not in ("", NOT_ASKED):
            continue
        path = results_path(Path(out), one)
        stamp = run_on_main(lambda one=one: data_stamp(one))
        there = run_on_main(lambda path=path, stamp=stamp: has_results(path, stamp))
        if there and reasons[number] == NOT_ASKED:  # an earlier call was asked
            reasons[number] = ""
        if not reasons[number] and not there:
            reasons[number] = _evaluate(model, name, one, path, stamp, settings)
        if not reasons[number]:
            predictions = Path(predictions_path(str(path)))
            kept = {"predictions": predictions.name if predictions.exists() else "", "data": asdict(one)}
            finished.append({**read_json(path), **kept})
    left = [
        {"task": one.task, "dataset": one.dataset, "reason": reason}
        for one, reason in zip(found, reasons, strict=True)
        if reason
    ]
    summary = {"model": name, "results": finished, "not_run": left}
    if is_main():
        write_json(Path(out) / "results.json", summary)
        write_evaluation_report(out)
    meet()
    return summary


def _evaluate(model: Model, name: str, data: FoundData, path: Path, stamp: str, settings: EvaluationSettings) -> str:
    """Write the results of an evaluation; returns why its data cannot be evaluated, or ""."""
    partial = f"{path}.partial" if settings.partial else ""
    here = replace(settings, partial=partial, about={**settings.about, "task": data.task})
    try:
        results = replace(EVALUATIONS[data.task](model, data, here), dataset=data.dataset)
    except UserError as error:  # of these data, such as images with several classes; the others go on
        return str(error)
    if is_main():
        save_results(results, str(path), name)
        keep_stamp(path, stamp)
        remove(Path(f"{path}.partial"))
    meet()
    return ""


def results_path(out: Path, data: FoundData) -> Path:
    """The file of the results of an evaluation; `coco/test` and `coco-test` have files of their own."""
    return out / f"{data.task}-{data.dataset.replace('/', '--')}.json"


def _probe(model: Model, data: FoundData, settings: EvaluationSettings) -> Results:
    """A linear probe, whose features are kept in the cache."""
    train = open_labelled(data.train[0])
    test = open_labelled(data.shards[0], folders=train.folders)
    folder = features_folder(train, test, "class_token", settings)
    return evaluate_linear_probe(model, train, test, folder, settings=settings)


def _rerank(model: Model, dataset: str) -> int | None:
    """How many candidates retrieval re-ranks; None for the default."""
    counts = [count for word, count in RERANKED.items() if word in dataset.lower()]
    return counts[0] if counts and model.config.network == "blip" else None


def _reason(model: Model, data: FoundData, tasks: list[str] | None) -> str:
    """Why data is not evaluated; "" where it is."""
    has, needs = model.config.finetuned_for, NEEDS.get(data.task, "")
    if data.reason:
        return data.reason
    if tasks and data.task not in tasks:
        return NOT_ASKED
    if data.task not in EVALUATIONS:
        return "there is no evaluation for it"
    if untrained := [part for part in PARTS.get(data.task, ()) if part in model.config.untrained]:
        return f"the model was converted without {' and '.join(untrained)}"
    if model.config.network != "blip" and data.task not in DOES[model.config.network]:
        return f"{KINDS[model.config.network]} cannot do it"
    if has == needs:
        return ""
    return f"the model is finetuned for {has}" if has else f"needs a model that is finetuned for {needs}"


def _check_output(out: Path, about: dict[str, Any]) -> None:
    """Make sure that OUT holds nothing, or results of the same settings."""
    path, about = out / "settings.json", json.loads(json.dumps(about))
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and holds no results of `vlp evaluate all`; choose another folder.")
        write_json(path, about)
        return
    before = read_json(path)
    if different := [key for key in {**before, **about} if before.get(key) != about.get(key)]:
        of = "of other data" if different[0] == "data" else f"with another {different[0].replace('_', ' ')}"
        raise UserError(f"{out} holds results {of}; choose another folder or remove it.")
