"""The demo's report: gains of the loop, loss curves and examples of filtered texts, in one HTML file."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from markupsafe import Markup

from vlp.data.image_decoding import decode_image
from vlp.data.shards import iterate_samples
from vlp.demo.stages import PRETRAIN_ALTERED
from vlp.files import write_text
from vlp.report.curves import loss_curves
from vlp.report.page import data_uri, render
from vlp.training.health import plateau_level

EXAMPLES = 12
ROWS = (  # (name on the page, key in report.json)
    ("image → text R@1 by ITC", "itc_i2t_r1"),
    ("text → image R@1 by ITC", "itc_t2i_r1"),
    ("image → text R@1, re-ranked", "i2t_r1"),
    ("text → image R@1, re-ranked", "t2i_r1"),
    ("exact captions", "caption_exact"),
    ("CIDEr", "CIDEr"),
)


def write_demo_page(root: Path) -> None:
    """Write ROOT/report.html from the demo's files in ROOT. The page opens from disk and loads nothing else."""
    results = json.loads((root / "report.json").read_text())
    logs = {name: root / name / "log.jsonl" for name in ("noisy", "bootstrapped")}
    plateau = plateau_level(PRETRAIN_ALTERED)
    page = render(
        "page.html.j2",
        package="vlp.demo",
        results=results,
        rows=[
            (title, results["noisy"][key], results["bootstrapped"][key], key != "CIDEr")
            for title, key in ROWS
            if key in results["noisy"]
        ],
        tasks=finished_tasks(root),
        curves=Markup(loss_curves(logs, plateau=plateau)),
        plateau=plateau,
        examples=_examples(root / "data"),
    )
    write_text(root / "report.html", page)


def finished_tasks(root: Path) -> dict[str, dict]:
    """The finished tasks of ROOT/tasks.json by name; none before `vlp demo ROOT --tasks`."""
    path = root / "tasks.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: one for name, one in found.items() if "metrics" in one}


def _examples(data: Path) -> list[dict]:
    """Scenes of the first web shard with their texts, alternating between correct and wrong web texts.

    A text counts as kept if it is in the first cleaned shard, which was made from this web shard.
    """
    shard, cleaned = min((data / "web").glob("*.tar")), data / "cleaned" / "00000.tar"
    samples = iterate_samples([str(cleaned)]) if cleaned.exists() else ()  # missing if no text was kept
    kept = {(one.key, text["source"], text["text"]) for one in samples for text in one.info["captions"]}
    texts: dict[str, list[dict]] = {}
    for row in pq.read_table(shard.with_suffix(".capfilt.parquet")).to_pylist():
        stays = (row["key"], row["source"], row["text"]) in kept
        texts.setdefault(row["key"], []).append({**row, "kept": stays})
    by_truth: dict[bool, list[dict]] = {True: [], False: []}
    for sample in iterate_samples([str(shard)]):
        truth = sample.info["truth"]
        picture = io.BytesIO()
        decode_image(sample.image).save(picture, "PNG")
        example = {
            "image": data_uri(picture.getvalue(), "png"),
            "texts": texts.get(sample.key, []),
            "wrong_kind": truth["wrong_kind"],
        }
        by_truth[truth["text_right"]].append(example)
        if min(map(len, by_truth.values())) >= EXAMPLES // 2:
            break
    pairs = zip(by_truth[False], by_truth[True], strict=False)
    return [example for pair in pairs for example in pair][:EXAMPLES]
