"""Score tables: one parquet file for each shard, next to it or in a folder, with every text of every image."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.byte_stream import BLOCK, Access, open_stream
from vlp.data.cache import cache_file, fresh_stamp, shard_stamp
from vlp.data.shard_index import open_shard
from vlp.errors import UserError, WorkError
from vlp.files import write_text, writing
from vlp.remote import filesystem, is_remote, remote_errors

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


def table_path(shard: str, name: str = NAME, folder: str = "") -> str:
    """The path or URL of a shard's table: `web/00012.tar` -> `web/00012.capfilt.parquet`.

    Args:
        folder: a folder or its URL, where the table is `FOLDER/00012.capfilt.parquet`; empty: next to the shard.

    Raises:
        UserError: the shard is the output of a command, which has no name.
    """
    if shard.startswith("pipe:"):
        raise UserError(f"{shard} has no name for its score table; give the address itself, such as s3://bucket/0.tar.")
    if shard.startswith(("http://", "https://")):
        shard = urlsplit(shard)._replace(query="", fragment="").geturl()
    stem = shard.removesuffix(".tar")
    if folder:
        stem = f"{folder.rstrip('/') or '/'}/{os.path.basename(stem)}"
    return f"{stem}.{name}.parquet"


def table_paths(shards: list[str], name: str = NAME, folder: str = "") -> dict[str, str]:
    """The path or URL of every shard's table, by shard.

    Raises:
        UserError: two shards would share a table.
    """
    paths = {shard: table_path(shard, name, folder) for shard in shards}
    owners: dict[str, str] = {}
    for shard, table in paths.items():
        if (other := owners.setdefault(table, shard)) != shard:
            raise UserError(
                f"{other} and {shard} would share the score table {table}; score them in two calls with other folders."
            )
    return paths


def image_uid(image: bytes, info: dict[str, Any]) -> str:
    """The uid of an encoded image: the `uid` of its sample's JSON (as in DataComp), else the file's sha256."""
    uid = info.get("uid")
    usable = isinstance(uid, str) and uid.isprintable()  # JSON can hold half of a surrogate pair, a table cannot
    return uid if usable and uid else hashlib.sha256(image).hexdigest()


def shard_state(shard: str) -> dict[str, str]:
    """What a table records about its shard: the stamp, and a hash of the content, for which the shard is read."""
    return {"shard": fresh_stamp(shard), "shard_sha256": _sha256(shard).hex()}


def shard_exists(shard: str) -> bool:
    """Whether there is a shard; raises UserError or WorkError if a remote one cannot be looked for."""
    if not is_remote(shard):
        return os.path.exists(shard)
    files, path = filesystem(shard)
    with remote_errors(shard):
        try:
            return bool(files.info(path))
        except FileNotFoundError:
            return False


def is_same_shard(shard: str, state: dict[str, Any]) -> bool:
    """Whether a shard is the file that `state` (see `shard_state`) describes.

    The content is hashed only if the size is the same and the modification time or ETag is not, as after a copy. The
    hash is cached.
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
    if is_remote(str(path)):
        with remote_errors(str(path)), open_shard(str(path)) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").digest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_table(
    shard: str,
    rows: list[Scored],
    settings: dict[str, Any],
    state: dict[str, str] | None = None,
    name: str = NAME,
    about: dict[str, Any] | None = None,
    folder: str = "",
) -> None:
    """Write a shard's table, whole or not at all.

    Args:
        settings: everything that determines the rows; a table with other settings is not finished.
        state: the shard's `shard_state` from before it was read, so that a change during scoring is noticed; None
            takes the state now.
        about: further facts for people, such as the command that made the table.
        folder: see `table_path`.

    Raises:
        UserError: the address of the table cannot be written.
        FullDiskError, WorkError: the disk is full; the table cannot be written for another reason.
    """
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in SCHEMA}
    write_beside(shard, pa.table(columns, schema=SCHEMA), settings, state, name, about, folder)


def write_beside(
    shard: str,
    table: pa.Table,
    settings: dict[str, Any],
    state: dict[str, str] | None,
    name: str,
    about: dict[str, Any] | None = None,
    folder: str = "",
) -> None:
    """Write a table with any columns next to its shard or into a folder, as `write_table` does."""
    path = shard if is_remote(shard) else os.path.abspath(shard)
    facts = {**settings, **(state or shard_state(shard)), "path": path, "version": VERSION, "about": about or {}}
    with writing(table_path(shard, name, folder)) as temporary:
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(facts)}), temporary)


def is_finished(shard: str, settings: dict[str, Any], name: str = NAME, folder: str = "") -> bool:
    """Whether the shard's table exists and was made with these settings from the shard's present content."""
    return is_current(shard, settings, read_settings(shard, name, folder))


def is_current(shard: str, settings: dict[str, Any], stored: dict[str, Any] | None) -> bool:
    """Whether a table whose `table_settings` are `stored` is finished, as in `is_finished`."""
    if stored is None:
        return False
    made_with = {key: stored[key] for key in stored if key not in ("about", "path", "shard", "shard_sha256")}
    return made_with == {**settings, "version": VERSION} and is_same_shard(shard, stored)


def read_settings(shard: str, name: str = NAME, folder: str = "") -> dict[str, Any] | None:
    """How a shard's table was made, as in `table_settings`."""
    return table_settings(table_path(shard, name, folder))


def table_settings(table: str) -> dict[str, Any] | None:
    """How a table, local or remote, was made; None if there is no readable table.

    The dict has the settings, the shard's `shard_state`, its "path", the "version" of the format, and "about". Tables
    of earlier versions have no "path".

    Raises:
        UserError, WorkError: the access to a remote table is denied, or fails.
    """
    return schema_settings(table_schema(table))


def schema_settings(schema: pa.Schema | None) -> dict[str, Any] | None:
    """`table_settings` of a schema that was read."""
    try:
        settings = json.loads(((schema and schema.metadata) or {})[METADATA.encode()])
    except (KeyError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def table_schema(table: str) -> pa.Schema | None:
    """The schema of a table, local or remote, with its metadata; None if there is no readable table.

    Raises:
        UserError, WorkError: the access to a remote table is denied, or fails.
    """
    if not is_remote(table):
        try:
            return pq.read_schema(table)
        except (OSError, pa.ArrowException):
            return None
    files, path = filesystem(table)
    with remote_errors(table):
        try:
            with files.open(path, "rb", cache_type="none") as file:  # the footer takes one request
                return pq.read_schema(file)
        except FileNotFoundError:
            return None
        except pa.ArrowException:
            pass  # damaged, or an answer was cut off
    try:
        with open_table(table) as whole:
            return whole.schema_arrow
    except pa.ArrowException:
        return None


def has_columns(schema: pa.Schema) -> bool:
    """Whether a table has all columns of a score table: texts, numbers, or nothing but nulls."""
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
    """Whether all rows of a local table can be read."""
    try:
        pq.ParquetFile(table).read()
    except (OSError, pa.ArrowException):
        return False
    return True


def check_table(shard: str, name: str = NAME, folder: str = "") -> None:
    """Make sure that a shard's table can be used, without reading its rows.

    Raises:
        UserError: the shard has no table, the table has another version, or the shard was changed after it was scored.
        WorkError: the access to a remote table fails.
    """
    table = table_path(shard, name, folder)
    schema = table_schema(table)
    settings = schema_settings(schema)
    if schema is None or settings is None:
        where = f" {table}" if folder else ""
        raise UserError(f"{shard} has no score table{where}; run `vlp capfilt score` on it first.")
    if settings.get("version") != VERSION:
        raise UserError(f"The table of {shard} has version {settings.get('version')}, not {VERSION}; score it again.")
    if not has_columns(schema):
        raise UserError(f"The table of {shard} lacks columns, or has them of other types; score the shard again.")
    if not is_same_shard(shard, settings):
        raise UserError(f"{shard} was changed after it was scored; score it again.")


def open_table(table: str) -> pq.ParquetFile:
    """A table, local or remote, for reading; a remote one is fetched whole by one request.

    Raises:
        OSError, pa.ArrowException: a local table cannot be read, or a table is damaged.
        UserError, WorkError: a remote table is missing, or cannot be fetched.
    """
    if not is_remote(table):
        return pq.ParquetFile(table)
    with open_stream(table, Access()) as stream:
        parts = list(iter(lambda: stream.read(BLOCK), b""))
    return pq.ParquetFile(pa.BufferReader(b"".join(parts)))


def read_table(shard: str, name: str = NAME, folder: str = "") -> pa.Table:
    """A shard's table; raises what `check_table` does."""
    check_table(shard, name, folder)
    with open_table(table_path(shard, name, folder)) as file:
        return file.read()
