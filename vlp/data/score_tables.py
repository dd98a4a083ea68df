"""Score tables: one parquet file next to each shard, with every text of every image and its scores."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.cache import cache_file
from vlp.errors import UserError, WorkError
from vlp.files import write_text, writing

NAME = "capfilt"  # the default NAME in SHARD.NAME.parquet
VERSION = "2"
METADATA = "vlp.capfilt"  # the key of the file's metadata whose JSON tells how the table was made
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),  # of the image, see `image_uid`
        ("source", pa.string()),  # "web", "human" or "synthetic"
        ("caption_id", pa.int32()),  # counts the texts of one image and source from 0
        ("text", pa.string()),
        ("itm", pa.float32()),  # probability of a match, mean of the BLIP filters; null without one
        ("itc", pa.float32()),  # cosine of the embeddings, mean of the BLIP filters; null without one
        ("clip", pa.float32()),  # cosine by an external open_clip model; null without one
        ("nll", pa.float32()),  # mean negative log-likelihood per token under the captioner, in nats; null without one
        ("tokens", pa.int32()),  # length in the filter's tokenizer, without special tokens; null without BLIP models
        ("width", pa.int32()),  # of the upright image, in pixels
        ("height", pa.int32()),
        ("decoding", pa.string()),  # the decoding settings of a synthetic text, JSON; null for other texts
    ]
)


@dataclass
class Scored:
    """One text of one image: a row of a table; the fields are those of `SCHEMA`."""

    key: str
    source: str
    text: str
    itm: float | None
    itc: float | None
    uid: str = ""
    caption_id: int = 0
    clip: float | None = None
    nll: float | None = None
    tokens: int | None = None
    width: int = 0
    height: int = 0
    decoding: str | None = None


def table_path(shard: str, name: str = NAME) -> Path:
    """The path of a shard's table: `00012.tar` -> `00012.capfilt.parquet`.

    Raises:
        UserError: the shard is a URL. A table is renamed when it is complete, which needs a file system.
    """
    if "://" in shard:
        raise UserError(
            f"Score tables are written next to their shards, and {shard} is remote; copy or mount it first."
        )
    return Path(f"{shard.removesuffix('.tar')}.{name}.parquet")


def image_uid(image: bytes, info: dict[str, Any]) -> str:
    """The uid of an encoded image: the `uid` of its sample's JSON (as in DataComp), else the file's sha256."""
    uid = info.get("uid")
    usable = isinstance(uid, str) and uid.isprintable()  # JSON can hold half of a surrogate pair, a table cannot
    return uid if usable and uid else hashlib.sha256(image).hexdigest()


def shard_stamp(shard: str) -> str:
    """The size and modification time of a shard: a quick test of whether it changed."""
    status = os.stat(shard)
    return f"{status.st_size}-{status.st_mtime_ns}"


def shard_state(shard: str) -> dict[str, str]:
    """What a table records about its shard: the stamp, and a hash of the content."""
    return {"shard": shard_stamp(shard), "shard_sha256": _sha256(shard).hex()}


def is_same_shard(shard: str, state: dict[str, Any]) -> bool:
    """Whether a shard is the file that `state` (see `shard_state`) describes.

    The content is hashed only if the size is the same and the modification time is not, as after a copy. The hash is
    cached.
    """
    stamp = shard_stamp(shard)
    if state.get("shard") == stamp:
        return True
    same_size = str(state.get("shard")).split("-")[0] == stamp.split("-")[0]
    return same_size and state.get("shard_sha256") == _cached_sha256(shard)


def _cached_sha256(shard: str) -> str:
    """The hash of a shard's content, computed once until the shard changes."""
    cached = cache_file("sha256", shard)
    try:
        known = cached.read_text() if cached else ""
    except (OSError, UnicodeDecodeError):
        known = ""
    if len(known) == 64:
        return known
    digest = _sha256(shard).hex()
    if cached:
        with suppress(WorkError):  # the cache only saves time
            write_text(cached, digest)
    return digest


def folder_hash(folder: str | Path) -> str:
    """A hash of a model folder's weights, config and tokenizer."""
    return files_hash([Path(folder) / name for name in ("config.json", "model.safetensors", "tokenizer.json")])


def files_hash(paths: list[Path]) -> str:
    """A hash of the contents of files; their order matters."""
    return hashlib.sha256(b"".join(map(_sha256, paths))).hexdigest()


def _sha256(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_table(
    shard: str,
    rows: list[Scored],
    settings: dict[str, Any],
    state: dict[str, str] | None = None,
    name: str = NAME,
    about: dict[str, Any] | None = None,
) -> None:
    """Write a shard's table, whole or not at all.

    Args:
        settings: everything that determines the rows; a table with other settings is not finished.
        state: the shard's `shard_state` from before it was read, so that a change during scoring is noticed; None
            takes the state now.
        about: further facts for people, such as the command that made the table.

    Raises:
        FullDiskError, WorkError: the disk is full; the table cannot be written for another reason.
    """
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in SCHEMA}
    write_beside(shard, pa.table(columns, schema=SCHEMA), settings, state, name, about)


def write_beside(
    shard: str,
    table: pa.Table,
    settings: dict[str, Any],
    state: dict[str, str] | None,
    name: str,
    about: dict[str, Any] | None = None,
) -> None:
    """Write a table with any columns next to its shard, as `write_table` does."""
    facts = {**settings, **(state or shard_state(shard)), "version": VERSION, "about": about or {}}
    with writing(table_path(shard, name)) as temporary:
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(facts)}), temporary)


def is_finished(shard: str, settings: dict[str, Any], name: str = NAME) -> bool:
    """Whether the shard's table exists and was made with these settings from the shard's present content."""
    stored = read_settings(shard, name)
    if stored is None:
        return False
    made_with = {key: stored[key] for key in stored if key not in ("about", "shard", "shard_sha256")}
    return made_with == {**settings, "version": VERSION} and is_same_shard(shard, stored)


def read_settings(shard: str, name: str = NAME) -> dict[str, Any] | None:
    """How a shard's table was made; None if there is no readable table.

    The dict has the settings, the shard's `shard_state`, the "version" of the format, and "about".
    """
    try:
        metadata = pq.read_schema(table_path(shard, name)).metadata or {}
        settings = json.loads(metadata[METADATA.encode()])
    except (OSError, KeyError, ValueError, RecursionError, pa.ArrowException):
        return None
    return settings if isinstance(settings, dict) else None


def has_columns(table: str | Path) -> bool:
    """Whether a readable parquet file has all columns of a score table: texts, numbers, or nothing but nulls."""
    schema = pq.read_schema(table)
    kinds = {name: column_kind(schema.field(name).type) for name in SCHEMA.names if name in schema.names}
    return all(kinds.get(field.name) in (column_kind(field.type), "null") for field in SCHEMA)


def column_kind(type: pa.DataType) -> str:
    """The kind of a column: "text", "number", or else the name of its type."""
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        return "text"
    if pa.types.is_integer(type) or pa.types.is_floating(type):
        return "number"
    return str(type)


def is_readable(table: str | Path) -> bool:
    """Whether all rows of a table can be read."""
    try:
        pq.ParquetFile(table).read()
    except (OSError, pa.ArrowException):
        return False
    return True


def check_table(shard: str, name: str = NAME) -> None:
    """Make sure that a shard's table can be used, without reading its rows.

    Raises:
        UserError: the shard has no table, the table has another version, or the shard was changed after it was scored.
    """
    settings = read_settings(shard, name)
    if settings is None:
        raise UserError(f"{shard} has no score table; run `vlp capfilt score` on it first.")
    if settings.get("version") != VERSION:
        raise UserError(f"The table of {shard} has version {settings.get('version')}, not {VERSION}; score it again.")
    if not has_columns(table_path(shard, name)):
        raise UserError(f"The table of {shard} lacks columns, or has them of other types; score the shard again.")
    if not is_same_shard(shard, settings):
        raise UserError(f"{shard} was changed after it was scored; score it again.")


def read_table(shard: str, name: str = NAME) -> pa.Table:
    """A shard's table; raises what `check_table` does."""
    check_table(shard, name)
    return pq.read_table(table_path(shard, name))
