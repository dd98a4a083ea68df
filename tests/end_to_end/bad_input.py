"""Run commands on bad input in this process, and check that they fail, or skip and count, as they promise."""

import contextlib
import io
import json
import logging
import re
import signal
import sys
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from vlp.cli.main import main

SECONDS = 60  # after which a command counts as hung; each takes a few at most
LOG_LINES = re.compile(
    r"skipped |indexing \d+ of \d+ shards|more samples |.* failed, attempt \d of \d"
    r"|\d+ images without a caption are left out|.* holds "
    r"|.* has no metadata\.jsonl or metadata\.csv; all of its \d+ pictures are taken"
)
QUIET_BY_DEFAULT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)

Member = tuple[str | tarfile.TarInfo, bytes]


@dataclass
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def values(self) -> dict:
        """The JSON that the command printed."""
        return json.loads(self.out)


def run(*arguments: object, seconds: int = SECONDS) -> Outcome:
    """Run `vlp ARGUMENTS` in this process, with the warnings and log lines that a process of its own would show."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    with (
        mock.patch.object(sys, "argv", ["vlp", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        time_limit(seconds),
    ):
        warnings.resetwarnings()
        warnings.showwarning = show_warning
        for category in QUIET_BY_DEFAULT:
            warnings.simplefilter("ignore", category)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            root.handlers = handlers
    return Outcome(code, out.getvalue(), err.getvalue())


def show_warning(message, category, filename, line, file=None, text=None) -> None:
    """Print a warning as Python does outside pytest, which collects them."""
    print(warnings.formatwarning(message, category, filename, line, text), file=file or sys.stderr)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """End the block with an error when it takes longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"the command still runs after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(outcome: Outcome, *says: str) -> None:
    """Check that a command failed with one sentence that holds all of `says`, and with nothing else but log lines."""
    lines = outcome.err.splitlines()
    sentences = [line for line in lines if line.startswith("vlp: ")]
    others = [line for line in lines if line not in sentences and not LOG_LINES.match(line)]
    assert outcome.code in (1, 2), outcome
    assert len(sentences) == 1 and not others, outcome.err
    assert "Unexpected error" not in sentences[0], outcome.err
    for one in says:
        assert one in sentences[0], sentences[0]


def succeeded(outcome: Outcome, *names: str) -> None:
    """Check that a command succeeded, and that the log lines name the samples that were skipped."""
    assert outcome.code == 0, outcome
    others = [line for line in outcome.err.splitlines() if not LOG_LINES.match(line)]
    assert not others, outcome.err
    for name in names:
        assert name in outcome.err, outcome.err


def tidy(folder: Path, *allowed: str) -> None:
    """Check that no temporary files are left in a folder."""
    left = [str(path) for path in folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
    assert [path for path in left if not any(one in path for one in allowed)] == []


def picture(size: tuple[int, int] = (40, 32), mode: str = "RGB", format: str = "PNG", seed: int = 0, **save) -> bytes:
    """An encoded image of random pixels."""
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "L": 1}[mode]
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return encoded(Image.fromarray(pixels, mode=None if mode not in ("CMYK", "LA") else mode), format, **save)


def encoded(image: Image.Image, format: str, **save) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **save)
    return file.getvalue()


def sample(key: str, image: bytes | None = None, text: bytes | None = b"a red circle", extension: str = "png", **more):
    """The members of a sample; `more` are further members by extension."""
    members: list[Member] = [(f"{key}.{extension}", picture() if image is None else image)]
    if text is not None:
        members.append((f"{key}.txt", text))
    return members + [(f"{key}.{name}", data) for name, data in more.items()]


def good(count: int = 6) -> list[Member]:
    """The members of good samples, named good0, good1, ..."""
    return [member for number in range(count) for member in sample(f"good{number}")]


def write_tar(path: Path, members: Iterable[Member], format: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    """A tar of members, whose names may be given as whole headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as archive:
        for name, data in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if header.isfile() and not isinstance(name, tarfile.TarInfo):
                header.size = len(data)
            archive.addfile(header, io.BytesIO(data) if data else None)
    return path
