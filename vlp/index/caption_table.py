"""`vlp caption --out`: captions of folders and shards in one table, made in parts so that a killed run continues."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSamples
from vlp.distributed import failing_together, gather_objects, is_main, run_on_main
from vlp.errors import UserError, WorkError
from vlp.files import locked, prepare_output, read_json, remove, write_errors, write_json, writing
from vlp.index.fingerprint import fingerprint
from vlp.index.pixels import read_batches
from vlp.index.places import PASSING, KeptBad, Place, Unit, list_images, no_images, read_unit, stored_stamp
from vlp.index.units import Report, all_rows, share_units, split_units
from vlp.model import Model
from vlp.model.video import FRAMES, encode_videos
from vlp.models.constant_weights import constant_weights

LARGEST, SMALLEST = 256, 16  # images of a unit; an interrupted run loses the units in progress
FORMAT = 1  # of the partial folder
ABOUT = "about.json"  # in the partial folder: how its captions are made
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the sample, or the path of the file in its folder
        ("path", pa.string()),  # of the file or the shard
        ("number", pa.int32()),  # counts the captions of an image from 0
        ("caption", pa.string()),
        ("log_probability", pa.float64()),  # of the caption's tokens, their sum, in nats
        ("stamp", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),  # why the image has no caption; else null
    ]
)


@dataclass
class CaptionCounts:
    """What a table holds; `bad` are the images without a caption, by reason."""

    images: int = 0
    captions: int = 0
    bad: dict[str, int] = field(default_factory=dict)


def caption_to_table(
    model: Model,
    images: list[str],
    out: str,
    decoding: DecodingConfig,
    seed: int = 0,
    num_captions: int = 1,
    batch_size: int = 32,
    frames: int = FRAMES,
    quiet: bool = False,
) -> CaptionCounts:
    """Caption all images of folders and shards; all processes of a launcher share the work.

    The captions so far are in the folder OUT.partial; the table appears when it is complete, sorted by path. A sampled
    caption depends on the seed and the image: the path of a file, or the shard's file name and the sample's key.

    Args:
        images: folders with their subfolders, image and video files, or shards.
        out: a file that ends in .csv, .jsonl or .parquet.
        frames: of each video.

    Raises:
        UserError: there are no images, `out` exists or has another ending, or OUT.partial was made in another way.
        WorkError: another run writes the table, or it cannot be written.
    """
    write = WRITERS.get(Path(out).suffix)
    if write is None:
        raise UserError(f"{out} must end in .csv, .jsonl or .parquet.")
    folder = Path(f"{out}.partial")
    settings = {"decoding": asdict(decoding), "seed": seed, "num_captions": num_captions, "frames": frames}
    about = {"format": FORMAT, "model": fingerprint(model), **settings}
    bad = BadSamples(max_share=1.0)
    caption = partial(model.caption_tokens, decoding=decoding, seed=seed, num_captions=num_captions)
    passing = Counter[str]()
    with ExitStack() as stack:
        run_on_main(lambda: stack.enter_context(_only_writer(out, folder)))
        with failing_together():
            files, shards = list_images(images, bad if is_main() else BadSamples(max_share=1.0))
            run_on_main(lambda: _open_partial(folder, about))
            done, attempt = _read_done(folder)
            units = _missing_units(list(files.values()), shards, done)

        def work(number: int, unit: Unit, report: Report) -> None:
            rows, more = _caption_unit(model, caption, unit, batch_size, frames, report)
            passing.update(more)
            with writing(folder / f"{attempt:06d}-{number:08d}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)

        share_units(units, work, "caption", quiet)
        passed = sum(gather_objects(passing), Counter[str]()) + bad.counts
        stamps = {path: place.stamp for path, place in files.items()} | shards
        counts = run_on_main(lambda: asdict(_finish(out, folder, stamps, num_captions, passed, write)))
    if not counts["images"]:
        raise no_images(images, "caption", counts["bad"])
    return CaptionCounts(**counts)


@contextmanager
def _only_writer(out: str, folder: Path) -> Iterator[None]:
    """In the first process: keep other runs from writing the table; a killed run does not block it.

    Raises:
        UserError: `out` exists.
        WorkError: another run writes it now, or it cannot be written.
    """
    prepare_output(out)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=False) as alone:
        if not alone:
            raise WorkError(f"Another run writes {out} now; wait for it or choose another name.")
        try:
            prepare_output(out)  # another run may have finished since the first look
            yield
        finally:
            if not (folder / ABOUT).exists():
                remove(folder)  # nothing was begun


def _open_partial(folder: Path, about: dict[str, Any]) -> None:
    """In the first process: make sure that captions of two kinds are not mixed."""
    path, about = folder / ABOUT, json.loads(json.dumps(about))
    if not path.exists():
        write_json(path, about)
        return
    before = read_json(path)
    for name in (name for name in {**before, **about} if before.get(name) != about.get(name)):
        raise UserError(
            f"{folder} holds the captions of an interrupted run with another {name}; "
            "run the same command again, or remove the folder."
        )


def _read_done(folder: Path) -> tuple[set[tuple[str, str, str]], int]:
    """Path, key and stamp of the images that earlier runs have captioned, and the number of this run."""
    done: set[tuple[str, str, str]] = set()
    parts = sorted(folder.glob("[!.]*.parquet"))
    for part in parts:
        table = pq.read_table(part, columns=["path", "key", "stamp"])
        done.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return done, 1 + max((int(part.stem.split("-")[0]) for part in parts), default=0)


def _missing_units(files: list[Place], shards: dict[str, str], done: set[tuple[str, str, str]]) -> list[Unit]:
    new = [place for place in files if (place.path, place.key, place.stamp) not in done]
    rows = []
    for path, stamp in shards.items():
        keys, missing = all_rows(path)
        if done:
            missing = missing[[(path, key, stamp) not in done for key in keys]]
        rows.append((path, stamp, missing))
    return split_units(new, rows, LARGEST, SMALLEST)


@constant_weights()
def _caption_unit(
    model: Model, caption: Callable[..., Any], unit: Unit, batch_size: int, frames: int, report: Report
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a unit, and by reason the images that a later run tries again."""
    bad, rows = KeptBad(), []
    for batch in read_batches(read_unit(unit, bad), model.image_size, frames, batch_size, bad):
        places = [one.item.place for one in batch.decoded]
        keys = [f"{os.path.basename(one.path)}/{one.key}" if one.in_shard else one.path for one in places]
        for place, made in zip(places, caption(encode_videos(model, batch.pixels), keys=keys), strict=True):
            where = {"key": place.key, "path": place.path, "stamp": place.stamp, "offset": place.offset}
            rows += [
                {**where, "number": number, "caption": one.text, "log_probability": round(one.log_probability, 4)}
                for number, one in enumerate(made)
            ]
        report(len(batch.decoded))
    for one in bad.lasting():
        path, key, stamp = stored_stamp(unit, one)
        rows.append({"key": key, "path": path, "stamp": stamp, "offset": 0, "reason": one.reason})
    return rows, Counter(one.reason for one in bad.samples if one.reason in PASSING)


def _finish(
    out: str,
    folder: Path,
    stamps: dict[str, str],
    num_captions: int,
    passing: Counter[str],
    write: Callable[[pa.Table, Path], None],
) -> CaptionCounts:
    """In the first process: put the parts together, without images that have changed or disappeared meanwhile."""
    parts = [pq.read_table(part, schema=SCHEMA) for part in sorted(folder.glob("[!.]*.parquet"))]
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    pairs = zip(table["path"].to_pylist(), table["stamp"].to_pylist(), strict=True)
    table = table.filter(pa.array([stamps.get(path) == stamp for path, stamp in pairs], pa.bool_()))
    failed = table.filter(table["reason"].is_valid())["reason"].to_pylist()
    order = [("path", "ascending"), ("offset", "ascending"), ("number", "ascending")]
    table = table.filter(table["reason"].is_null()).sort_by(order)
    bad = dict(Counter(failed) + passing)
    if not len(table):
        remove(folder)
        return CaptionCounts(bad=bad)
    columns = ["key", "path", *(["number"] if num_captions > 1 else []), "caption", "log_probability"]
    if os.path.isfile(out):  # the lock does not reach another machine on every file system
        raise WorkError(f"Another run wrote {out} meanwhile; keep it and remove {folder}, or remove it and rerun.")
    with writing(out) as temporary:
        write(table.select(columns), temporary)
    remove(folder)
    return CaptionCounts(len(table) // num_captions, len(table), bad)


def _write_csv(table: pa.Table, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for batch in table.to_batches():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
