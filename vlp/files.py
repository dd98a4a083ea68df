"""Write a file or a folder whole or not at all: under a temporary name next to it, which is renamed at the end.

At an address with a scheme (s3://...) a file is written in the folder for temporary files and uploaded at the end.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlp.errors import FullDiskError, UserError, WorkError
from vlp.object_store import check_output, filling_folder, upload
from vlp.remote import is_remote

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What libraries that raise no OSError say of a full disk: safetensors, tokenizers, DuckDB, torch.
FULL_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
RUST_ERROR = " (os error "
ABANDONED_SECONDS = 3600  # another machine's temporary file that has not changed for so long has lost its writer
MOST_TEXT = 2**30  # bytes of a text file that is read at once


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; at the end it is renamed to `path`, on an error it is removed.

    The folder of `path` is created where it is missing. An existing file is replaced; a device or a pipe is written to
    directly. For an address the temporary file is in the folder for temporary files, and is uploaded at the end.

    Raises:
        UserError: `path` is a folder, or an address that cannot be written.
        FullDiskError, WorkError: the disk is full; the file cannot be written for another reason.
    """
    if isinstance(path, str) and is_remote(path):
        with _local_stand_in(path) as temporary:
            yield temporary
            upload(temporary, path)
    elif os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a file.")
    elif os.path.exists(path) and not os.path.isfile(path):
        with write_errors(path):
            yield Path(path)
    else:
        with _temporary(path) as temporary:
            yield temporary
            os.replace(temporary, path)


@contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary empty folder to fill; at the end it is renamed to `path`, on an error it is removed.

    Raises:
        UserError: `path` is a file, a folder that is not empty, a mount point, the current folder or an address.
        FullDiskError, WorkError: the disk is full; the folder cannot be written for another reason.
    """
    prepare_output(path)
    if os.path.ismount(path) or (os.path.exists(path) and os.path.samefile(path, os.curdir)):
        raise UserError(f"{path} is a mount point or the current folder; name a folder inside it.")
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise WorkError(f"Another run wrote {path} meanwhile; choose another name or remove it.") from None


@contextmanager
def writing_shards(path: str) -> Iterator[str]:
    """Yield the name of a folder whose files are written by `writing`, each as `FOLDER/NAME`.

    A local folder appears at the end, as with `writing_folder`. At an address every file is uploaded when it is
    finished, so that the local disk holds only those in progress. The folder is complete when the marker `_SUCCESS` is
    in it (see `vlp/object_store.py`), and on an error it is removed.

    Raises:
        UserError: what `prepare_output` raises, or the address cannot be written.
        FullDiskError, WorkError: the disk is full; the folder cannot be written for another reason.
    """
    if is_remote(path):
        folder = path.rstrip("/")
        with filling_folder(folder):
            yield folder
    else:
        with writing_folder(path) as temporary:
            yield str(temporary)


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder next to `path` for temporary files; it is removed at the end.

    For an address it is in the folder for temporary files.

    Raises:
        FullDiskError, WorkError: the disk is full; the folder cannot be written for another reason.
    """
    if isinstance(path, str) and is_remote(path):
        with _local_stand_in(f"{path}.scratch") as temporary:
            temporary.mkdir()
            yield temporary
    else:
        scratch = absolute(path).with_name(f"{absolute(path).name}.scratch")
        with write_errors(path, scratch), _temporary(scratch) as temporary:
            temporary.mkdir()
            yield temporary


@contextmanager
def write_errors(path: str | Path, temporary: str | Path = "") -> Iterator[None]:
    """Turn errors while writing `path` into one sentence.

    Args:
        temporary: the name under which `path` is written; messages give `path` instead.

    Raises:
        FullDiskError, WorkError: the disk is full; `path` cannot be written for another reason.
    """
    try:
        yield
    except WorkError as error:
        if temporary and str(temporary) in str(error):
            raise type(error)(str(error).replace(str(temporary), str(path))) from error
        raise
    except Exception as error:
        if getattr(error, "errno", None) in FULL_DISK or any(text in str(error) for text in FULL_DISK_TEXTS):
            raise FullDiskError(
                f"{path} cannot be written: no space left on device ({_free_bytes(path):,} bytes free); "
                "free some space and rerun the command."
            ) from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            elsewhere = error.filename and not str(error.filename).startswith((str(path), str(temporary or path)))
            raise WorkError(
                f"{path} cannot be written: {reason}{f' ({error.filename})' if elsewhere else ''}."
            ) from error
        if RUST_ERROR in str(error):  # of safetensors and tokenizers
            raise WorkError(f"{path} cannot be written: {str(error).split(RUST_ERROR)[0]}.") from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole; raises what `writing` does."""
    with writing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: str | Path, values: Any) -> None:
    """Write a JSON file whole; raises what `writing` does."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_text(path: str | Path, what: str = "file", most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file that a user names.

    Args:
        what: what the file should be, for the error.
        most: the largest size in bytes; a device such as /dev/zero has no end.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"There is no {what} {path}.") from None
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read: {error.strerror or error}.") from None
    if len(data) > most:
        raise UserError(f"The {what} {path} is larger than {most >> 20} MiB, which is too large.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UserError(f"The {what} {path} is not a UTF-8 text file.") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds; raises UserError if it cannot be read or is no object."""
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a readable JSON object.")
    return values


def prepare_output(path: str | Path, remote: bool = False) -> None:
    """Make sure that nothing is overwritten.

    Args:
        remote: whether `path` may be an address with a scheme.

    Raises:
        UserError: the name is empty, there is a file of this name, or a folder that is not empty; or it is an address.
        WorkError: another run writes the folder now, or an address cannot be reached.
    """
    _check_name(path)
    if isinstance(path, str) and is_remote(path):
        if not remote:
            raise UserError(f"{path} is an address, but this output is written to a local disk; name a local path.")
        check_output(path)
        return
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; choose another name or remove it.")


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files and folders of `path` whose writers were killed."""
    path = absolute(_stand_in(path) if isinstance(path, str) and is_remote(path) else path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        if not _is_being_written(left):
            remove(left)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, where it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def files_below(folder: str | Path) -> dict[Path, list[str]]:
    """A folder and all folders below it, with the names of their files; hidden ones are left out.

    Links are followed, because data sets are often linked into a folder; each folder is listed once.
    """
    found: dict[Path, list[str]] = {}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # such as a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found[Path(place)] = sorted(name for name in files if not name.startswith("."))
    return found


def absolute(path: str | Path) -> Path:
    """An absolute path without `..`, links kept; so that every path has a name and a parent."""
    return Path(os.path.abspath(path))


@contextmanager
def locked(path: str | Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file in the block; the operating system releases it when the process ends.

    Args:
        wait: until another process releases it. Otherwise the block gets False where another process holds it.
    """
    path = absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def temporary_path(path: str | Path) -> Path:
    """The name under which this process writes `path`."""
    path = absolute(path)
    return path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


@contextmanager
def _temporary(path: str | Path) -> Iterator[Path]:
    """The temporary path of `path`; whatever is there at the end is removed. Raises what `write_errors` does."""
    _check_name(path)
    temporary = temporary_path(path)
    with write_errors(path, temporary):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        try:
            yield temporary
        finally:
            remove(temporary)


@contextmanager
def _local_stand_in(url: str) -> Iterator[Path]:
    """The temporary path for the content of an address; whatever is there at the end is removed.

    Raises:
        FullDiskError, WorkError: the disk is full; the file cannot be written for another reason.
    """
    local = _stand_in(url)
    try:
        with write_errors(url, local), _temporary(local) as temporary:
            yield temporary
    except FullDiskError:
        raise FullDiskError(
            f"{url} cannot be written: no space left on device in {local.parent} ({_free_bytes(local):,} bytes free), "
            "where it is made before it is uploaded; free some space or set TMPDIR, and rerun the command."
        ) from None


def _stand_in(url: str) -> Path:
    """The local path that stands for an address in the names of temporary files."""
    return Path(tempfile.gettempdir()) / f"vlp-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _check_name(path: str | Path) -> None:
    """Raise a UserError for the empty name, which stands for the current folder elsewhere."""
    if not os.fspath(path):
        raise UserError("The name of the output is empty; give a path.")


def _is_being_written(temporary: Path) -> bool:
    """Whether the process that a temporary name belongs to may still be writing."""
    host, _, process = temporary.name.rpartition(".tmp-")[2].rpartition("-")
    if not host or not process.isdigit():
        return False
    if host != socket.gethostname():
        try:
            return time.time() - temporary.stat().st_mtime < ABANDONED_SECONDS
        except OSError:
            return True
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _free_bytes(path: str | Path) -> int:
    """The free space of the disk that holds `path`, which may not exist yet."""
    existing = next(one for one in absolute(path).parents if one.exists())
    return shutil.disk_usage(existing).free
