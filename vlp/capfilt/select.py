"""Select: score tables to new shards that keep the texts the filter believes."""

import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import fsspec

from vlp.data.score_tables import check_table, read_table
from vlp.data.shards import IMAGE_EXTENSIONS, ShardWriter, expand_shards, index_shard, prepare_output, read_members


@dataclass
class SelectCounts:
    """What `select` kept."""

    images: int = 0  # written, human ones not counted
    dropped_images: int = 0  # no text was believed
    web_texts: int = 0
    kept_web_texts: int = 0
    synthetic_texts: int = 0
    kept_synthetic_texts: int = 0
    human_images: int = 0


def select(
    shards: str | list[str],
    output: str,
    human: str | list[str] | None = None,
    threshold: float = 0.5,
) -> SelectCounts:
    """Write new shards with the texts whose ITM probability is at least `threshold`.

    Each scored shard becomes one new shard (so keys stay unique in it); its samples keep all members and fields, get
    the chosen texts as `captions` in their JSON, and the first of them as their text. An image without a chosen text
    is left out. Human shards follow byte for byte. The output folder appears when it is complete.

    Raises:
        UserError: a shard has no table or was changed since, or the output exists.
    """
    paths = expand_shards(shards)
    clean = expand_shards(human) if human else []
    for shard in paths:  # all tables are there before anything is written
        check_table(shard)
    prepare_output(output)
    temporary = Path(output).parent / f".{Path(output).name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    counts = SelectCounts()
    try:
        for number, shard in enumerate(paths):
            believed = _believed(read_table(shard).to_pylist(), threshold, counts)
            with ShardWriter(str(temporary), samples_per_shard=10**9, first=number) as writer:
                for key, members in read_members(shard):
                    _write_chosen(writer, key, members, believed, counts)
        for number, shard in enumerate(clean, start=len(paths)):
            with fsspec.open(shard, "rb") as source, open(temporary / f"{number:05d}.tar", "wb") as target:
                shutil.copyfileobj(source, target)
            counts.human_images += len(index_shard(shard).keys)
        if Path(output).exists():
            Path(output).rmdir()
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return counts


def _believed(rows: list[dict], threshold: float, counts: SelectCounts) -> dict[str, list[dict[str, str]]]:
    """The chosen texts of each key."""
    chosen: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        kept = row["itm"] >= threshold and bool(row["text"].strip())  # a captioner may have said nothing
        if row["source"] == "web":
            counts.web_texts += 1
            counts.kept_web_texts += kept
        else:
            counts.synthetic_texts += 1
            counts.kept_synthetic_texts += kept
        if kept:
            chosen[row["key"]].append({"text": row["text"], "source": row["source"]})
    return chosen


def _write_chosen(
    writer: ShardWriter, key: str, members: dict[str, bytes], believed: dict[str, list[dict]], counts: SelectCounts
) -> None:
    texts, extension = believed.get(key), _image_extension(members)
    if not texts or not extension:
        counts.dropped_images += 1
        return
    others = {name: data for name, data in members.items() if name not in (extension, "txt", "json")}
    info = {**_json(members), "captions": texts}
    writer.write(key, members[extension], extension, texts[0]["text"], info, others)
    counts.images += 1


def _image_extension(members: dict[str, bytes]) -> str | None:
    return next((name for name in members if name in IMAGE_EXTENSIONS), None)


def _json(members: dict[str, bytes]) -> dict:
    try:
        info = json.loads(members.get("json", b"{}"))
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}
