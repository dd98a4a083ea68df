"""Turns errors into one sentence on stderr and an exit code: 1 the work failed, 2 the call was wrong."""

import errno
import logging
import os
import sys
import tempfile
import traceback

from vlp.errors import UserError, WorkError

# Operating system errors that another path avoids (exit code 2); all others, such as a full disk, have exit code 1.
WRONG_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the sentence of an error that a command raised.

    The traceback of an unexpected error is written to a file that the sentence names.
    """
    if isinstance(error, (UserError, WorkError)):
        return (2 if isinstance(error, UserError) else 1), str(error)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return 1, "Memory ran out; use smaller images, a smaller batch or a smaller model."
    name = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return 1, f"Unexpected error ({name}). {_keep_traceback(error)}"


def one_line(text: str) -> str:
    """Escape line breaks and control characters, so that a message stays on one line and cannot control a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class OneLineFormatter(logging.Formatter):
    """Formats each log record as one line; tracebacks, which only `--debug` shows, keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def can_print() -> bool:
    """Whether stdout takes what has been printed so far."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def silence_stdout() -> None:
    """Discard stdout, because Python would report a closed or full one again when it exits."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    os.dup2(sys.stdout.fileno(), 1)


def _explain_os_error(error: OSError) -> tuple[int, str]:
    code = 2 if error.errno in WRONG_PATH else 1
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if error.filename is None:
        return (
            code,
            f"The output or a file cannot be read or written: {reason}.",
        )
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else error.filename
    return code, f"{name} cannot be used: {reason}."


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch, which raises RuntimeError, or another library could not allocate memory."""
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text.lower()


def _keep_traceback(error: Exception) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vlp-traceback-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "Rerun with `vlp --debug ...` to see the traceback."
    return f"The traceback is in {file.name}; please report it."
