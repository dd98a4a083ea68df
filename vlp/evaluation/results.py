"""Results of an evaluation: CLIP_benchmark's JSON with the predictions beside it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vlp.errors import WorkError
from vlp.files import write_json, write_text

SPLITS = ("train", "val", "valid", "validation", "dev", "test", "test-dev", "test-std", "minival", "shards")


@dataclass
class Results:
    """What an evaluation returns.

    Attributes:
        task: the name of the evaluation, such as `retrieval`.
        dataset: see `dataset_name`.
        metrics: numbers by name, those that tell over how many items (`images`, `questions`, ...) and `skipped`
            (see `skipped_metrics`) included. Shares and accuracies are 0 to 1.
        predictions: JSON values, one row an item. `key` is the sample's key; `right` (bool), where an item is right or
            wrong, or `score` (float, higher is better) let the page of results choose its examples; the other fields
            are shown to people by their names.
        language: of the texts.
    """

    task: str
    dataset: str
    metrics: dict[str, Any]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    language: str = "en"


def skipped_metrics(skipped: Mapping[str, int]) -> dict[str, int]:
    """`skipped`, the number of skipped items, and `skipped: REASON` for each reason."""
    return {"skipped": sum(skipped.values())} | {f"skipped: {reason}": skipped[reason] for reason in sorted(skipped)}


def dataset_name(shards: str | list[str]) -> str:
    """The name of a data set by its path: the folder of the shards, below its parent if it is named after a split.

    `data/flickr30k/test/*.tar` is `flickr30k/test`, and `data/coco-test/{00000..00004}.tar` is `coco-test`.
    """
    names = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        path = PurePosixPath(pattern.split("://")[-1])
        folders = [part for part in path.parts if part not in ("/", ".", "..")]
        folders = folders[:-1] if path.suffix or "*" in path.name else folders
        many = 2 if folders and folders[-1] in SPLITS else 1
        names.append("/".join(folders[-many:]) or path.stem)
    return "+".join(dict.fromkeys(names))


def to_json(results: Results, model: str, pretrained: str = "") -> dict[str, Any]:
    """The results as CLIP_benchmark writes them, so that `clip_benchmark build` reads them.

    Args:
        model: the folder or the name of the model.
        pretrained: the name of its weights, where the model's does not tell.
    """
    return {
        "dataset": results.dataset,
        "model": model,
        "pretrained": pretrained,
        "task": results.task,
        "metrics": results.metrics,
        "language": results.language,
    }


def check_complete(path: str, results: Results, harmless: Collection[str] = ()) -> None:
    """Check that a submission in `path` would have all predictions; servers refuse one that lacks some.

    Args:
        harmless: reasons of skipped samples that need no prediction.

    Raises:
        WorkError: samples were skipped for other reasons.
    """
    start = "skipped: "
    reasons = {name.removeprefix(start): count for name, count in results.metrics.items() if name.startswith(start)}
    reasons = {reason: count for reason, count in reasons.items() if reason not in harmless}
    if reasons:
        named = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise WorkError(f"{path} was not written, because some samples have no prediction ({named}); repair the data.")


def save_results(results: Results, out: str, model: str, pretrained: str = "") -> None:
    """Write X.json, and the predictions, if there are any, to X.predictions.jsonl.

    Raises:
        UserError, WorkError: what `vlp.files.writing` raises.
    """
    if results.predictions:
        lines = (json.dumps(row, ensure_ascii=False) for row in results.predictions)
        write_text(predictions_path(out), "".join(f"{line}\n" for line in lines))
    write_json(out, to_json(results, model, pretrained))  # last: who finds it finds the predictions, too


def predictions_path(out: str) -> str:
    """Where the predictions of the results in `out` are: X.predictions.jsonl for X.json."""
    return f"{out.removesuffix('.json')}.predictions.jsonl"


def read_predictions(out: str) -> list[dict[str, Any]]:
    """The predictions beside the results in `out`; none where the evaluation has none."""
    path = Path(predictions_path(out))
    if not path.exists():
        return []
    # Unlike splitlines, which also splits at characters such as U+2028 that JSON strings may hold.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
