"""The output of img2dataset: shards or folders of files, each with a parquet that records which downloads failed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.bad_samples import BadSample
from vlp.data.importers.folder import LoosePictures
from vlp.data.importers.tar_samples import read_tar
from vlp.data.importers.write import ImportedSample, NotDownloaded
from vlp.data.shard_index import index_shard
from vlp.errors import UserError

LONGEST_REASON = 80
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")  # names of hosts, which would make every reason unique


class Img2dataset:
    """An `Importer` of img2dataset's output, `webdataset` or `files`; failed downloads come as `NotDownloaded`."""

    def __init__(self, folders: list[str]):
        """List the parts.

        Args:
            folders: each with 00000.tar, 00001.tar, ... or with subfolders 00000, 00001, ..., and a parquet for each.

        Raises:
            UserError: a folder is missing or has no such parts.
        """
        self.parts = [part for folder in folders for part in _list_parts(folder)]

    def __len__(self) -> int:
        return sum(map(_count, self.parts))

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for part in self.parts:
            table = part.with_suffix(".parquet")
            expected: set[str] = set()
            if table.exists():
                try:
                    status = _read_status(table)
                except (pa.ArrowException, OSError, KeyError):
                    yield BadSample(str(table), "", "unreadable table")
                    status = {}
                expected = {key for key, problem in status.items() if problem is None}
                for key, problem in status.items():
                    if problem is not None:
                        yield NotDownloaded(str(part), key, problem)
            samples = read_tar(str(part)) if part.suffix == ".tar" else LoosePictures(str(part), keep_folders=False)
            for sample in samples:
                expected.discard(Path(sample.key).stem)
                yield sample
            for key in sorted(expected):
                yield BadSample(str(part), key, "no image")


def _list_parts(folder: str) -> list[Path]:
    """The tars of a folder, or its subfolders of files."""
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}.")
    tars = sorted(Path(folder).glob("*.tar"))
    parts = tars or sorted(one for one in Path(folder).iterdir() if one.is_dir() and one.name.isdigit())
    if not parts:
        beside = next(Path(folder).glob("*.parquet"), None)
        advice = f"import its parquet files with `vlp data import hf {folder}`" if beside else "check the path"
        raise UserError(
            f"{folder} has neither shards (00000.tar) nor folders of files (00000) of img2dataset; {advice}."
        )
    return parts


def _count(part: Path) -> int:
    """How many samples a part has, those that were not downloaded included."""
    try:
        return pq.read_metadata(part.with_suffix(".parquet")).num_rows
    except (pa.ArrowException, OSError):
        return len(index_shard(str(part)).keys) if part.suffix == ".tar" else sum(1 for _ in part.glob("*.jpg"))


def _read_status(path: Path) -> dict[str, str | None]:
    """Why the download of each key failed; None where it did not."""
    table = pq.read_table(path)
    keys, states = table["key"].to_pylist(), table["status"].to_pylist()
    errors = table["error_message"].to_pylist() if "error_message" in table.column_names else [None] * len(keys)
    return {
        str(key): None if state == "success" else failure_reason(error or state)
        for key, state, error in zip(keys, states, errors, strict=True)
    }


def failure_reason(error: object) -> str:
    """An error message short enough to count by, without what is particular to one URL."""
    return QUOTED.sub("...", " ".join(str(error or "unknown error").split()))[:LONGEST_REASON]
