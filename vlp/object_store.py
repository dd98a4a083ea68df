"""Write to object stores: a file whole or not at all, a folder that is complete when it holds a last object, a marker.

A store cannot rename a folder. So the first object of a folder is `_STARTED`, which records who writes, and the last
one is `_SUCCESS`, after which `_STARTED` is removed. An interrupted command leaves a folder without `_SUCCESS`, which
the next one empties. With `_SUCCESS` a folder is complete, also where a kill or an error has left `_STARTED`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from vlp.errors import UserError, WorkError
from vlp.processes import is_running, this_process
from vlp.remote import filesystem, remote_errors

STARTED, COMPLETE = "_STARTED", "_SUCCESS"
READ_ONLY = ("http://", "https://", "pipe:")

_writers: dict[str, str] = {}  # the folders that this process fills, and its token in their `_STARTED`


def upload(file: Path, url: str) -> None:
    """Copy a local file to an address. Readers see the whole file or, until the end, what was there before.

    Raises:
        UserError: there is no such bucket, or no permission.
        WorkError: the connection fails, or another run writes the folder of `url` now.
    """
    files, path = _writable(url)
    folder = url.rpartition("/")[0]
    with remote_errors(url):
        if folder in _writers:
            _check_still_ours(files, folder)
        files.put_file(str(file), path)


def check_output(url: str) -> None:
    """Make sure that nothing is overwritten at an address.

    Raises:
        UserError: there is an object, or a folder with other content than an interrupted run's.
        WorkError: another run on this machine writes it now.
    """
    files, path = _writable(url)
    with remote_errors(url):
        files.invalidate_cache()
        started = _read(files, f"{path}/{STARTED}")
        try:
            entries = files.ls(path, detail=False)
        except FileNotFoundError:
            entries = []
        complete = any(entry.endswith(f"/{COMPLETE}") for entry in entries)
    if complete or (entries and started is None):
        raise UserError(f"{url} exists already; choose another name or remove it.")
    with suppress(KeyError):
        if started and started["token"] not in _writers.values() and is_running(started):
            raise WorkError(f"Another run is writing {url}; wait for it or choose another name.")


def is_incomplete(files: Any, folder: str) -> bool:
    """Whether a folder is being written, or was left by an interrupted run; `files` is its fsspec file system."""
    return files.exists(f"{folder}/{STARTED}") and not files.exists(f"{folder}/{COMPLETE}")


@contextmanager
def filling_folder(url: str) -> Iterator[None]:
    """Mark a folder as incomplete while it is filled, and as complete at the end.

    What an interrupted run left in it is removed at the start. On an error all objects of the folder are removed.

    Raises:
        UserError, WorkError: what `check_output` and `upload` raise.
    """
    check_output(url)
    files, path = _writable(url)
    token = uuid4().hex
    with remote_errors(url):
        _remove_objects(files, path)
        files.pipe_file(f"{path}/{STARTED}", json.dumps({"token": token, **this_process()}).encode())
    _writers[url] = token
    try:
        yield
        with remote_errors(url):
            _check_still_ours(files, url)
            files.pipe_file(f"{path}/{COMPLETE}", b"")
    except BaseException:
        with suppress(Exception):  # the store may be what failed
            _check_still_ours(files, url)
            _remove_objects(files, path)
        raise
    else:
        with suppress(Exception):  # the folder is complete without it
            files.rm_file(f"{path}/{STARTED}")
    finally:
        del _writers[url]


def _check_still_ours(files: Any, url: str) -> None:
    """Raise a WorkError if another run has begun to write the folder."""
    started = _read(files, f"{filesystem(url)[1]}/{STARTED}")
    if (started or {}).get("token") != _writers[url]:
        raise WorkError(f"Another run is writing {url}; wait for it or choose another name.")


def _read(files: Any, path: str) -> dict[str, Any] | None:
    """The content of a `_STARTED`; None where there is none."""
    try:
        found = json.loads(files.cat_file(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _remove_objects(files: Any, path: str) -> None:
    """Remove the objects of a folder, the markers first and last, so that the next run continues a killed removal."""
    files.invalidate_cache()
    found = files.find(path)
    complete, started = ([one for one in found if one.endswith(f"/{name}")] for name in (COMPLETE, STARTED))
    for part in (complete, [one for one in found if one not in complete + started], started):
        if part:
            files.rm(part)


def _writable(url: str) -> tuple[Any, str]:
    if url.startswith(READ_ONLY):
        raise UserError(f"{url} is read-only; name a local path, or an address such as s3://bucket/folder.")
    return filesystem(url.rstrip("/"))
