"""Writes the texts that satisfy selection rules as new shards, a uid list or one table."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.capfilt.query import check_values, select_rows
from vlp.capfilt.rules import SPACES, SelectionRules, parse_rules
from vlp.capfilt.uids import write_uids
from vlp.data.byte_stream import Access, open_stream
from vlp.data.find_tables import ScoreTable, added_columns, find_tables
from vlp.data.score_tables import SCHEMA, is_readable, is_same_shard, shard_exists, table_settings
from vlp.data.shard_index import IMAGE_EXTENSIONS, expand_shards, scan_shard
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import read_members
from vlp.errors import FullDiskError, UserError, WorkError
from vlp.extras import extra
from vlp.files import prepare_output, scratch_folder, writing, writing_shards
from vlp.log import Progress

with extra("capfilt"):
    import duckdb

SelectedRows = Iterator[tuple[ScoreTable, np.ndarray]]  # what `select_rows` yields


@dataclass
class SelectCounts:
    """What `select` kept and dropped."""

    images: int = 0  # with a selected text; without those of the human shards
    dropped_images: dict[str, int] = field(default_factory=dict)  # by reason
    texts: dict[str, int] = field(default_factory=dict)  # by source
    kept_texts: dict[str, int] = field(default_factory=dict)  # by source
    human_images: int = 0  # in the human shards, which are copied unchanged


def select(
    scores: str | list[str],
    rules: str = "itm >= 0.5",
    output: str = "",
    uids: str = "",
    table: str = "",
    human: str | list[str] | None = None,
    also: Mapping[str, str | list[str]] | None = None,
    quiet: bool = False,
) -> SelectCounts:
    """Write the selected texts in one of three forms, to a disk or an object store (see `writing_shards`).

    Args:
        scores: score tables, as paths, URLs, globs and folders. Remote ones are copied to the scratch folder of the
            output.
        rules: an expression, see `vlp/capfilt/rules.py`.
        output: a folder for new shards, one per table, so that keys stay unique within a shard. Samples keep all
            members and fields; their JSON gets the selected texts as `captions`, and the first becomes their text.
            Images without a selected text are left out.
        uids: a .npy file for the uids of the selected images, in the format of DataComp's resharder.
        table: a .parquet file for the selected rows, with their shard.
        human: with `output`, shards that are copied unchanged after the new ones.
        also: other tables, by the name under which the rules use their columns.

    Raises:
        UserError: the rules are invalid, or no text satisfies them and one of their columns has no value at all; a
            table is missing, a shard has changed since it was scored or (with `output`) is missing, or the output
            exists.
        WorkError: the disk is full, or the output cannot be written for another reason.
    """
    targets = [target for target in (output, uids, table) if target]
    if len(targets) != 1 or (human and not output):
        raise UserError("Give exactly one output: --out for shards (optionally with --human), --uids or --table.")
    target, counts = targets[0], SelectCounts()
    prepare_output(target, remote=True)
    clean = expand_shards(human) if human else []
    with scratch_folder(target) as scratch:
        also = also or {}
        others = {name: find_tables(given, scratch / f"also {name}", quiet) for name, given in also.items()}
        tables = find_tables(scores, scratch / "scores", quiet)
        added = {name: added_columns(given[0]) for name, given in others.items()}
        compiled = parse_rules(rules, added, added_columns(tables[0]))
        for one in tables:  # before anything is written
            _check_shard(one, needed=bool(output))
        with _read_errors(tables, target), Progress("tables", len(tables), quiet=quiet) as progress:
            selected = _some_selected(select_rows(tables, compiled, others, scratch), tables, compiled, others)
            selected = _count_tables(selected, progress)
            _write(target, selected, output, uids, clean, counts, scratch)
    return counts


def _write(
    target: str,
    selected: SelectedRows,
    output: str,
    uids: str,
    clean: list[str],
    counts: SelectCounts,
    scratch: Path,
) -> None:
    if output:
        with writing_shards(target) as folder:
            _write_shards(folder, selected, clean, counts)
    else:
        with writing(target) as file:
            if uids:
                write_uids(file, _selected_uids(selected, counts), scratch)
            else:
                _write_table(file, selected, counts)


@contextmanager
def _read_errors(tables: list[ScoreTable], target: str) -> Iterator[None]:
    """Raise a WorkError that names a damaged table, or else the target, for any error of duckdb or of writing."""
    try:
        yield
    except FullDiskError:
        raise
    except (duckdb.Error, WorkError) as error:
        damaged = next((table for table in tables if not is_readable(table.file)), None)
        if damaged:
            raise WorkError(f"{damaged.path} is damaged; score its shard again.") from None
        if isinstance(error, WorkError):
            raise
        raise WorkError(f"{target} cannot be written: {str(error).splitlines()[0].rstrip('.')}.") from None


def parse_also(given: list[str]) -> dict[str, list[str]]:
    """The globs of `--also NAME=GLOB` by name; a name may be given several times.

    Raises:
        UserError: an entry does not have this form.
    """
    also: dict[str, list[str]] = {}
    for one in given:
        name, _, pattern = one.partition("=")
        if not name.isidentifier() or iskeyword(name) or not pattern:
            raise UserError(f"--also takes NAME=GLOB, such as other='web/*.other.parquet', not {one!r}.")
        also.setdefault(name, []).append(pattern)
    return also


def _check_shard(table: ScoreTable, needed: bool) -> None:
    if shard_exists(table.shard):
        if not is_same_shard(table.shard, table_settings(table.file) or {}):
            raise UserError(f"{table.shard} was changed after it was scored; score it again.")
    elif needed:
        raise UserError(
            f"{table.path} belongs to {table.shard}, which is missing; restore the shard or leave the table out."
        )


def _some_selected(
    selected: SelectedRows, tables: list[ScoreTable], rules: SelectionRules, also: dict[str, list[ScoreTable]]
) -> SelectedRows:
    """The same; at the end raises what `check_values` does if no row was selected."""
    found = False
    for table, rows in selected:
        found = found or len(rows) > 0
        yield table, rows
    if not found:
        check_values(tables, rules, also)


def _count_tables(selected: SelectedRows, progress: Progress) -> SelectedRows:
    for one in selected:
        yield one
        progress.add("select")


def _read(table: ScoreTable, rows: np.ndarray, columns: list[str], counts: SelectCounts) -> pa.Table:
    """Columns of the selected rows of a table; adds selected and dropped texts and images to `counts`."""
    stored = pq.read_table(table.file, columns=list({"key": 0, "source": 0, "text": 0} | dict.fromkeys(columns)))
    kept = stored.take(pa.array(rows))
    _add(counts.texts, stored["source"])
    _add(counts.kept_texts, kept["source"])
    not_empty = stored.filter(pc.not_equal(pc.utf8_trim(stored["text"], SPACES), ""))
    images, with_text, selected = (pc.count_distinct(one["key"]).as_py() for one in (stored, not_empty, kept))
    counts.images += selected
    _drop(counts, "no text satisfies the rules", with_text - selected)
    _drop(counts, "all texts are empty", images - with_text)
    return kept.select(columns)


def _drop(counts: SelectCounts, reason: str, images: int) -> None:
    if images:
        counts.dropped_images[reason] = counts.dropped_images.get(reason, 0) + images


def _add(counts: dict[str, int], sources: pa.ChunkedArray) -> None:
    for one in pc.value_counts(sources).to_pylist():
        counts[one["values"]] = counts.get(one["values"], 0) + one["counts"]


def _selected_uids(selected: SelectedRows, counts: SelectCounts) -> Iterator[pa.ChunkedArray]:
    for table, rows in selected:
        yield _read(table, rows, ["uid"], counts)["uid"]


def _write_table(file: Path, selected: SelectedRows, counts: SelectCounts) -> None:
    schema = SCHEMA.append(pa.field("shard", pa.string()))
    with pq.ParquetWriter(file, schema) as writer:
        for table, rows in selected:
            kept = _read(table, rows, SCHEMA.names, counts)
            shards = pa.array([table.shard] * len(kept), pa.string())
            writer.write_table(kept.append_column("shard", shards).cast(schema))


def _write_shards(folder: str, selected: SelectedRows, clean: list[str], counts: SelectCounts) -> None:
    number = -1
    for number, (table, rows) in enumerate(selected):
        scored = set(pq.read_table(table.file, columns=["key"])["key"].to_pylist())
        texts: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in _read(table, rows, ["key", "text", "source"], counts).to_pylist():
            texts[row.pop("key")].append(row)
        with ShardWriter(folder, samples_per_shard=10**9, first=number) as writer:
            for key, members in read_members(table.shard):
                if key in texts:
                    _write_sample(writer, key, members, texts[key])
                _drop(counts, "not scored", int(key not in scored))
    for place, shard in enumerate(clean, start=number + 1):
        with writing(f"{folder}/{place:05d}.tar") as copy:
            with open_stream(shard, Access()) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target)
            counts.human_images += len(scan_shard(str(copy)).keys)


def _write_sample(writer: ShardWriter, key: str, members: dict[str, bytes], texts: list[dict[str, str]]) -> None:
    extension = next(name for name in members if name in IMAGE_EXTENSIONS)  # every scored sample has an image
    others = {name: data for name, data in members.items() if name not in (extension, "txt", "json")}
    info = {**json.loads(members.get("json") or b"{}"), "captions": texts}  # and its JSON, if any, is valid
    writer.write(key, members[extension], extension, texts[0]["text"], info, others)
