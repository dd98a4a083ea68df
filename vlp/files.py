"""Files that appear whole or not at all, and what killed processes leave of them."""

import glob
import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlp.errors import UserError

MOST_TEXT = 2**30  # bytes of a text file that is read at once


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: str | Path, values: Any) -> None:
    """Write a JSON file, whole."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


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


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of a file or a folder under its temporary names."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def prepare_output(folder: str) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        UserError: the folder exists and is not empty.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{folder} exists already; choose another name or remove it.")
