"""Score tables: one parquet file beside each shard, with every text of every image and what the filter says of it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.errors import UserError

NAME = "capfilt"  # of the tables that `vlp capfilt score` writes unless it is told another
VERSION = "2"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),  # of the image: `uid` of the sample's JSON (DataComp's), else sha256 of the encoded file
        ("source", pa.string()),  # "web", "human" or "synthetic"
        ("caption_id", pa.int32()),  # number of the text among those of its image and source
        ("text", pa.string()),
        ("itm", pa.float32()),  # probability of a match, mean of the BLIP filters; null without one
        ("itc", pa.float32()),  # cosine of the embeddings, mean of the BLIP filters; null without one
        ("clip", pa.float32()),  # cosine by an external open_clip model; null where none was asked
        ("nll", pa.float32()),  # mean negative log-likelihood a token under the captioner, in nats; null without one
        ("tokens", pa.int32()),  # of the text in the filter's tokenizer, specials not counted; null without BLIP models
        ("width", pa.int32()),  # of the stored image, in pixels
        ("height", pa.int32()),
        ("decoding", pa.string()),  # how a synthetic text was made, JSON; null for others
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
    """Where the table of a shard lies: `00012.tar` -> `00012.capfilt.parquet`.

    Raises:
        UserError: the shard is not on a local or mounted file system, where a finished table can appear by rename.
    """
    if "://" in shard:
        raise UserError(f"Score tables lie beside their shards, and {shard} is remote: copy or mount it first.")
    return Path(f"{shard.removesuffix('.tar')}.{name}.parquet")


def shard_stamp(shard: str) -> str:
    """Size and time of change of a shard: what a table remembers of the file it was made from."""
    status = os.stat(shard)
    return f"{status.st_size}-{status.st_mtime_ns}"


def folder_hash(folder: str | Path) -> str:
    """A hash of what one of our model folders computes with: weights, config and tokenizer."""
    return files_hash([Path(folder) / name for name in ("config.json", "model.safetensors", "tokenizer.json")])


def files_hash(paths: list[Path]) -> str:
    """A hash of files' contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write_table(
    shard: str,
    rows: list[Scored],
    settings: dict[str, str],
    stamp: str = "",
    name: str = NAME,
    about: dict[str, Any] | None = None,
) -> None:
    """Write a shard's table whole: under another name, then renamed.

    Args:
        settings: what the rows follow from; a table with others is not finished.
        stamp: the shard's stamp from before it was read, so that a change while it was scored is noticed; "" is now.
        about: what is said of the table beside that, such as the command that made it.
    """
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in SCHEMA}
    said = {**_identity(settings, stamp or shard_stamp(shard)), "about": about or {}}
    table = pa.table(columns, schema=SCHEMA.with_metadata({"vlp.capfilt": json.dumps(said)}))
    path = table_path(shard, name)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_finished(shard: str, settings: dict[str, str], name: str = NAME) -> bool:
    """Whether the shard's table exists and was made with these settings from this very file."""
    stored = read_settings(shard, name) or {}
    return {key: stored[key] for key in stored if key != "about"} == _identity(settings, shard_stamp(shard))


def read_settings(shard: str, name: str = NAME) -> dict[str, Any] | None:
    """What a shard's table was made with: the settings that its rows follow from, the shard's stamp under "shard",
    the format's "version", and under "about" what only describes it. None where there is no readable table."""
    try:
        metadata = pq.read_schema(table_path(shard, name)).metadata or {}
        return json.loads(metadata[b"vlp.capfilt"])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def check_table(shard: str, name: str = NAME) -> None:
    """Make sure, from its metadata alone, that a shard's table can be used.

    Raises:
        UserError: there is none, it is of another version, or the shard was changed after it was scored.
    """
    settings = read_settings(shard, name)
    if settings is None:
        raise UserError(f"{shard} has no score table; run `vlp capfilt score` on it first.")
    if settings.get("version") != VERSION:
        raise UserError(f"The table of {shard} has version {settings.get('version')}, not {VERSION}; score it again.")
    if settings["shard"] != shard_stamp(shard):
        raise UserError(f"{shard} was changed after it was scored; score it again.")


def read_table(shard: str, name: str = NAME) -> pa.Table:
    """A shard's table; raises what `check_table` does."""
    check_table(shard, name)
    return pq.read_table(table_path(shard, name))


def _identity(settings: dict[str, str], stamp: str) -> dict[str, str]:
    """What decides whether a table is the one that is wanted."""
    return {**settings, "shard": stamp, "version": VERSION}
