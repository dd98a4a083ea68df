"""Tables and a page of the results of `vlp evaluate all`, made from the files in its folder."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import decode_image
from vlp.data.image_encoding import small_jpeg
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shards import Sample, ShardReader
from vlp.data.video import is_video, load_frame
from vlp.errors import UserError
from vlp.files import files_below, read_json, write_text
from vlp.report.page import data_uri, render
from vlp.report.published import SOURCE, published_figures

EXAMPLES = 6  # of each kind and task
PIXELS = 240  # longer side of a picture
MOST_LINES, LONGEST_TEXT = 4, 160  # of a field of an example
# The metrics of the table for each task: name, title, and what to multiply it with.
HEADLINES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "retrieval": (("i2t_r1", "image to text R@1", 100), ("t2i_r1", "text to image R@1", 100)),
    "captioning": (
        ("BLEU-4", "BLEU-4", 100),
        ("CIDEr", "CIDEr", 100),
        ("SPICE", "SPICE", 100),
        ("in-domain CIDEr", "CIDEr, in-domain", 100),
        ("near-domain CIDEr", "CIDEr, near-domain", 100),
        ("out-domain CIDEr", "CIDEr, out-domain", 100),
    ),
    "vqa": (("accuracy", "accuracy", 100),),
    "nlvr2": (("accuracy", "accuracy", 100), ("consistency", "consistency", 100)),
    "visdial": (
        ("mrr", "MRR", 100),
        ("r1", "R@1", 100),
        ("r5", "R@5", 100),
        ("r10", "R@10", 100),
        ("mean_rank", "mean rank", 1),
        ("ndcg", "NDCG", 100),
    ),
    "video_retrieval": (
        ("t2v_r1", "text to video R@1", 100),
        ("t2v_r5", "text to video R@5", 100),
        ("t2v_r10", "text to video R@10", 100),
        ("t2v_median_rank", "text to video median rank", 1),
    ),
    "video_qa": (("accuracy", "accuracy", 100),),
    "zeroshot_classification": (
        ("acc1", "top-1 accuracy", 100),
        ("mean_per_class_recall", "mean per class recall", 100),
    ),
    "linear_probe": (("acc1", "top-1 accuracy", 100), ("mean_per_class_recall", "mean per class recall", 100)),
}
COUNTS = ("images", "videos", "sentences", "pairs", "rounds", "questions", "skipped")


def write_evaluation_report(out: str) -> None:
    """Write OUT/results.md and OUT/report.html from OUT/results.json and the predictions.

    Raises:
        UserError, WorkError: a file cannot be read or written.
    """
    folder = Path(out)
    summary = read_json(folder / "results.json")
    rows = [row for result in summary["results"] for row in table_rows(result)]
    write_text(folder / "results.md", _markdown(summary, rows))
    parts = [
        {
            "title": f"{_title(result['task'])}: {result['dataset']}",
            "metrics": {name: _number(value) for name, value in result["metrics"].items()},
            "groups": list(_groups(folder, result)),
        }
        for result in summary["results"]
    ]
    page = render(
        "evaluation.html.j2", model=summary["model"], rows=rows, parts=parts, left=_left(summary), source=SOURCE
    )
    write_text(folder / "report.html", page)


def table_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of the table for a result: its headline metrics with BLIP's figures where the test set is the same."""
    metrics = result["metrics"]
    over = ", ".join(f"{metrics[name]:,} {name}" for name in COUNTS if metrics.get(name))
    return [
        {
            "task": _title(result["task"]),
            "dataset": result["dataset"],
            "over": over,
            "metric": title,
            "value": f"{scale * metrics[name]:.1f}",
            "published": published_figures(result, name),
        }
        for name, title, scale in HEADLINES.get(result["task"], ())
        if isinstance(metrics.get(name), (int, float))
    ]


def _markdown(summary: dict[str, Any], rows: list[dict[str, str]]) -> str:
    lines = [
        f"# {_cell(summary['model'])}",
        "",
        "| task | data set | over | metric | result | BLIP |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(_cell(row[name]) for name in row)} |" for row in rows),
        "",
        f"BLIP: the figures of {SOURCE}, where the whole of the same test set was evaluated.",
    ]
    left = [f"- {_cell(one['data'])}: {one['reason']}" for one in _left(summary)]
    return "\n".join(lines + (["", "Not evaluated:", "", *left] if left else [])) + "\n"


def _left(summary: dict[str, Any]) -> list[dict[str, str]]:
    """What was not evaluated: the task, where it is known, with the data set as `data`, and the reason."""
    return [{"data": f"{_title(one['task'])} {one['dataset']}".strip(), **one} for one in summary["not_run"]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _title(task: str) -> str:
    names = {
        "vqa": "VQA",
        "nlvr2": "NLVR2",
        "visdial": "VisDial",
        "video_qa": "Video QA",
        "zeroshot_classification": "Classification",
    }
    return names.get(task, task.replace("_", " ").capitalize())


def _groups(folder: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Examples of a result by kind: right and wrong ones, or those with the best and the worst score."""
    path = folder / result["predictions"]
    if not result["predictions"] or not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    scored = sorted((row for row in rows if isinstance(row.get("score"), (int, float))), key=lambda row: -row["score"])
    if any("right" in row for row in rows):
        groups = [(kind, [row for row in rows if row.get("right") is (kind == "right")]) for kind in ("right", "wrong")]
    elif len(scored) > 1:
        half = len(scored) // 2
        groups = [("best", scored[:half][:EXAMPLES]), ("worst", scored[half:][::-1][:EXAMPLES])]
    else:
        groups = [("examples", rows)]
    for kind, members in groups:
        chosen = members[:: max(1, len(members) // EXAMPLES)][:EXAMPLES]  # spread over the data
        pictures = _pictures(result["data"], {str(row.get("key")) for row in chosen})
        examples = [{"pictures": pictures.get(str(row.get("key")), []), "facts": _facts(row)} for row in chosen]
        if examples:
            yield {"kind": kind, "examples": examples, "count": len(members)}


def _facts(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The fields of a prediction that people read: their names and lines. Empty ones are left out."""
    hidden = ("right", "image_id", "scores", "ranks", "relevance", "info")
    shown = [(name, value) for name, value in row.items() if name not in hidden and value not in ("", None, [])]
    return [(name.replace("_", " "), _lines(value)) for name, value in shown]


def _lines(value: Any) -> list[str]:
    """A value of a prediction in a few lines."""
    if isinstance(value, list):
        return [_line(one) for one in value[:MOST_LINES]] + (["…"] if len(value) > MOST_LINES else [])
    return [_line(value)]


def _line(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(_number(one) for name, one in value.items() if name != "right")
        text = f"✓ {text}" if value.get("right") else text
    else:
        text = _number(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _pictures(data: dict[str, Any], keys: set[str]) -> dict[str, list[str]]:
    """The pictures of samples, or the middle frames of videos, as data URIs by key; those that fail are left out."""
    if data["videos"]:
        return _middle_frames(data["videos"], keys)
    folder = Path(data["shards"][0])
    return _loose_pictures(folder, keys) if folder.is_dir() else _images(data["shards"], keys)


def _loose_pictures(folder: Path, keys: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        try:
            found[key] = [_address(decode_image((folder / key).read_bytes()))]
        except (OSError, BadSampleError):
            continue
    return found


def _middle_frames(folder: str, keys: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    videos = (place / name for place, names in files_below(folder).items() for name in names if is_video(name))
    for path in sorted(videos):
        for key in {path.name, path.stem} & keys:
            try:
                frame = load_frame(path, 1, 1)
            except (BadSampleError, UserError):  # UserError: the extra `video` is not installed
                continue
            found[key] = [_address(frame)]
    return found


def _images(shards: list[str], keys: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        paths = expand_shards(shards)
    except UserError:  # the shards were moved
        return {}
    reader = ShardReader(most_open=1)
    for path in paths:
        index = index_shard(path)
        for row in islice((row for row, key in enumerate(index.keys) if key in keys and key not in found), len(keys)):
            try:
                sample = reader.read(index, row)
                found[sample.key] = _sample_pictures(sample)
            except BadSampleError:
                continue
        if len(found) == len(keys):
            break
    reader.close()
    return found


def _sample_pictures(sample: Sample) -> list[str]:
    return [_address(decode_image(data)) for data in (sample.image, sample.right) if data]


def _address(picture: Image.Image | np.ndarray) -> str:
    return data_uri(small_jpeg(picture, PIXELS), "jpeg")
