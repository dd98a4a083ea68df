"""Where results about a file are cached: in a folder of the user, under a name that changes when the file does."""

import hashlib
import json
import os
from pathlib import Path

import fsspec


def cache_file(kind: str, path: str) -> Path | None:
    """The place for a result about a file or URL, in `$VLP_CACHE` or `~/.cache/vlp`.

    Args:
        kind: the kind and format of the result, such as "index-2".

    Returns:
        A path named after the file's path, size and time of change; None where these are unknown.
    """
    try:
        if "://" in path:
            filesystem, inner = fsspec.url_to_fs(path)
            facts = filesystem.info(inner)
            stamp = [str(facts.get(name)) for name in ("size", "mtime", "LastModified", "ETag", "etag", "created")]
        else:
            status = os.stat(path)
            stamp, path = [str(status.st_size), str(status.st_mtime_ns)], os.path.abspath(path)
    except OSError:
        return None
    folder = Path(os.environ.get("VLP_CACHE") or Path.home() / ".cache" / "vlp")
    digest = hashlib.sha256(json.dumps([kind, path, *stamp]).encode()).hexdigest()[:32]
    return folder / kind.partition("-")[0] / digest[:2] / digest  # many small folders are quick to list
