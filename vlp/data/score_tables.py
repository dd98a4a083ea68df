"""Score tables: one parquet file beside each shard, with every text of every image and what the filter says of it."""

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

NAME = "capfilt"  # of the tables that `vlp capfilt score` writes unless it is told another
VERSION = "2"
METADATA = "vlp.capfilt"  # the key in the file's metadata under which it is said, as JSON, how the table was made
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),  # of the image, see `image_uid`
        ("source", pa.string()),  # "web", "human" or "synthetic"
        ("caption_id", pa.int32()),  # number of the text among those of its image and source
        ("text", pa.string()),
        ("itm", pa.float32()),  # probability of a match, mean of the BLIP filters; null without one
        ("itc", pa.float32()),  # cosine of the embeddings, mean of the BLIP filters; null without one
        ("clip", pa.float32()),  # cosine by an external open_clip model; null where none was asked
        ("nll", pa.float32()),  # mean negative log-likelihood a token under the captioner, in nats; null without one
        ("tokens", pa.int32()),  # of the text in the filter's tokenizer, specials not counted; null without BLIP models
        ("width", pa.int32()),  # of the upright image, in pixels
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


def image_uid(image: bytes, info: dict[str, Any]) -> str:
    """The uid of an encoded image: `uid` of its sample's JSON (DataComp's), else the sha256 of the file."""
    uid = info.get("uid")
    return uid if isinstance(uid, str) and uid else hashlib.sha256(image).hexdigest()


def shard_stamp(shard: str) -> str:
    """Size and time of change of a shard, which tell quickly that it is the same file as before."""
    status = os.stat(shard)
    return f"{status.st_size}-{status.st_mtime_ns}"


def shard_state(shard: str) -> dict[str, str]:
    """What a table remembers of the file it was made from: its stamp, and a hash of its content."""
    return {"shard": shard_stamp(shard), "shard_sha256": _sha256(shard).hex()}


def is_same_shard(shard: str, state: dict[str, Any]) -> bool:
    """Whether a shard is the file that `state` (see `shard_state`) describes.

    The content is hashed only where the size is the same and the time of change is not, as after a copy. The hash is
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
    """A hash of what one of our model folders computes with: weights, config and tokenizer."""
    return files_hash([Path(folder) / name for name in ("config.json", "model.safetensors", "tokenizer.json")])


def files_hash(paths: list[Path]) -> str:
    """A hash of files' contents, in the order given."""
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
    """Write a shard's table whole: under another name, then renamed.

    Args:
        settings: what the rows follow from; a table with others is not finished.
        state: the shard's `shard_state` from before it was read, so that a change while it was scored is noticed;
            None is now.
        about: what is said of the table beside that, such as the command that made it.

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
    """Write a table of any columns beside its shard, as `write_table` does."""
    said = {**settings, **(state or shard_state(shard)), "version": VERSION, "about": about or {}}
    with writing(table_path(shard, name)) as temporary:
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(said)}), temporary)


def is_finished(shard: str, settings: dict[str, Any], name: str = NAME) -> bool:
    """Whether the shard's table exists and was made with these settings from this very content."""
    stored = read_settings(shard, name)
    if stored is None:
        return False
    made_with = {key: stored[key] for key in stored if key not in ("about", "shard", "shard_sha256")}
    return made_with == {**settings, "version": VERSION} and is_same_shard(shard, stored)


def read_settings(shard: str, name: str = NAME) -> dict[str, Any] | None:
    """What a shard's table was made with: the settings that its rows follow from, the shard's `shard_state`, the
    format's "version", and under "about" what only describes it. None where there is no readable table."""
    try:
        metadata = pq.read_schema(table_path(shard, name)).metadata or {}
        return json.loads(metadata[METADATA.encode()])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def check_table(shard: str, name: str = NAME) -> None:
    """Make sure, without reading its rows, that a shard's table can be used.

    Raises:
        UserError: there is none, it is of another version, or the shard was changed after it was scored.
    """
    settings = read_settings(shard, name)
    if settings is None:
        raise UserError(f"{shard} has no score table; run `vlp capfilt score` on it first.")
    if settings.get("version") != VERSION:
        raise UserError(f"The table of {shard} has version {settings.get('version')}, not {VERSION}; score it again.")
    if not is_same_shard(shard, settings):
        raise UserError(f"{shard} was changed after it was scored; score it again.")


def read_table(shard: str, name: str = NAME) -> pa.Table:
    """A shard's table; raises what `check_table` does."""
    check_table(shard, name)
    return pq.read_table(table_path(shard, name))
