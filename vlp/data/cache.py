"""Where results about a file are cached: in a folder of the user, under a name that changes when the file does."""

import hashlib
import json
import os
from pathlib import Path

from vlp.remote import filesystem, is_remote, remote_errors

# What tells of a remote file whether it changed, in fsspec's `info`.
REMOTE_MARKS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "created", "Last-Modified")
QUOTES = '"'  # around an ETag


def cache_file(kind: str, path: str) -> Path | None:
    """The place for a result about a file or URL, in `$VLP_CACHE` or `~/.cache/vlp`.

    Args:
        kind: the kind and format of the result, such as "index-2".

    Returns:
        A path named after the file's path, size and time of change; None where these are unknown.
    """
    stamp = file_stamp(path)
    return None if stamp is None else cache_path(kind, [identity(path), stamp])


def cache_path(kind: str, facts: list[str]) -> Path:
    """The place for a result that depends on facts, in `$VLP_CACHE` or `~/.cache/vlp`."""
    folder = Path(os.environ.get("VLP_CACHE") or Path.home() / ".cache" / "vlp")
    digest = hashlib.sha256(json.dumps([kind, *facts]).encode()).hexdigest()[:32]
    return folder / (kind.rpartition("-")[0] or kind) / digest[:2] / digest  # many small folders are quick to list


def identity(path: str) -> str:
    """A path that does not depend on the current folder; URLs as they are."""
    return path if is_remote(path) else os.path.abspath(path)


def file_stamp(path: str) -> str | None:
    """Size and time of change of a file or URL, which begin with the size in bytes; None where they are unknown.

    URLs need a request.

    Raises:
        UserError: the credentials for a URL are missing.
    """
    if path.startswith("pipe:"):
        return None
    try:
        if not is_remote(path):
            return status_stamp(os.stat(path))
    except OSError:
        return None
    files, inner = filesystem(path)
    with remote_errors(path):
        try:
            facts = files.info(inner)
        except OSError:
            return None
    return " ".join(str(facts.get(name)) for name in ("size", "mtime", "LastModified", "ETag", "etag", "created"))


def status_stamp(status: os.stat_result) -> str:
    """The stamp of a local file (see `file_stamp`) from its status."""
    return f"{status.st_size} {status.st_mtime_ns}"


def shard_stamp(shard: str) -> str:
    """The size and the modification time or, of a remote shard, the ETag: a quick test of whether it changed.

    Raises:
        OSError: a local shard cannot be read.
        UserError, WorkError: a remote shard is missing, or cannot be reached.
    """
    if not is_remote(shard):
        status = os.stat(shard)
        return f"{status.st_size}-{status.st_mtime_ns}"
    files, path = filesystem(shard)
    with remote_errors(shard):
        info = files.info(path)
    mark = next((str(info[name]) for name in REMOTE_MARKS if info.get(name)), "")
    return f"{info.get('size')}-{mark.strip(QUOTES)}"


def fresh_stamp(shard: str) -> str:
    """The `shard_stamp` of the shard as it is now, not when its folder was listed."""
    if is_remote(shard):
        files, path = filesystem(shard)
        files.invalidate_cache(path)
    return shard_stamp(shard)
