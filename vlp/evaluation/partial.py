"""The finished batches of an interrupted evaluation: one JSON-lines file a process, in a folder beside the results."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vlp.data.cache import file_stamp, identity
from vlp.errors import UserError
from vlp.files import read_json, write_errors, write_json


@dataclass
class FinishedBatch:
    """A batch whose predictions are made: its number, its rows, and its samples, of which some were skipped."""

    batch: int
    rows: list[dict[str, Any]]
    samples: int
    skipped: dict[str, int]


def open_partial(folder: str, stage: str, about: dict[str, Any]) -> list[FinishedBatch]:
    """The batches that earlier calls of this stage finished, in any process.

    Args:
        about: what decides the predictions; kept in the folder.

    Raises:
        UserError: the folder holds the batches of another evaluation.
        WorkError: it cannot be written.
    """
    path = _path(folder, stage, "json")
    about = json.loads(json.dumps(about))
    if not path.exists():
        write_json(path, about)
        return []
    before = read_json(path)
    if different := [name for name in {**before, **about} if before.get(name) != about.get(name)]:
        name = different[0]
        raise UserError(
            f"{folder} holds an interrupted evaluation with another {name} ({_short(before.get(name))}, now "
            f"{_short(about.get(name))}); choose another output or remove {folder}."
        )
    found: dict[int, FinishedBatch] = {}
    for one in sorted(Path(folder).glob(_path("", stage, "*.jsonl").name)):
        for line in one.read_bytes().split(b"\n")[:-1]:  # a line that was cut off has no end
            batch = FinishedBatch(**json.loads(line))
            found[batch.batch] = batch
    return [found[number] for number in sorted(found)]


@contextmanager
def appending(folder: str, stage: str, process: int) -> Iterator[IO[bytes]]:
    """Open the file of a process to append finished batches; a line that was cut off is removed."""
    path = _path(folder, stage, f"{process}.jsonl")
    with write_errors(folder), path.open("ab+") as file:
        file.seek(0)
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
        yield file


def append(file: IO[bytes], batch: FinishedBatch) -> None:
    """Add a batch to an open file; it outlives a killed process."""
    with write_errors(file.name):
        file.write(json.dumps(asdict(batch)).encode() + b"\n")
        file.flush()


def model_stamp(source: str) -> list[str]:
    """What tells a model from others: its path, with size and time of its weights, or its name on the hub."""
    folder = Path(source)
    if not folder.is_dir():
        return [source]
    files = sorted(one for one in folder.iterdir() if one.suffix in (".safetensors", ".bin"))
    return [identity(source), *(f"{one.name} {file_stamp(str(one))}" for one in files)]


def _path(folder: str, stage: str, ending: str) -> Path:
    return Path(folder) / f"{stage.replace(' ', '-')}.{ending}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
