"""Opens a Hugging Face data set: a saved folder, local files of any format that `datasets` reads, or one of the hub."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from vlp.errors import UserError, WorkError

COPIED = ("imagefolder", "json", "csv", "text")  # formats whose Arrow copy is small: it holds paths, or has no bytes
SPLIT_COLUMN = "split"
UNNAMED = "train"  # what `datasets` calls the split of files whose names tell none
ROWS_AT_ONCE = 1000  # of the column `split`

log = logging.getLogger("vlp")


@dataclass
class OpenedDataset:
    """A split of a data set, of which nothing has been read yet.

    Attributes:
        rows: `datasets.Dataset` (random access) or `datasets.IterableDataset` (in sequence).
        folder: that images may be read from by their paths; "" for data sets of the hub.
        wanted: the values of the column `split` to take; empty: all rows.
        examples: number of rows; 0 if unknown.
        files: local parquet files that hold the rows.
        split: as it was asked for.
    """

    name: str
    rows: Any
    folder: str
    wanted: frozenset[str] = frozenset()
    examples: int = 0
    files: tuple[str, ...] = ()
    split: str = ""

    @property
    def random_access(self) -> bool:
        """Whether any row can be read at once."""
        import datasets

        return isinstance(self.rows, datasets.Dataset)

    @property
    def features(self) -> dict[str, Any]:
        """The type of each column."""
        if self.rows.features is None:  # a stream of JSON or CSV
            import datasets

            with dataset_errors(self.name):
                return dict(datasets.Dataset.from_list(list(self.rows.take(1))).features)
        return dict(self.rows.features)


def open_dataset(name: str, split: str) -> OpenedDataset:
    """Open a split of a data set.

    Parquet, Arrow and webdataset files are read in sequence where they lie. Saved data sets and image folders give
    random access. Data sets of the hub are streamed, or with `HF_HUB_OFFLINE` taken from its cache.

    Args:
        name: a folder, a parquet file, NAME of the hub, or NAME:CONFIG.
        split: a split, or several with + between them. If the data set has one split and a column `split`, it may be
            values of this column, which count more than the name of the split (Flickr30k has all rows in "test").

    Raises:
        UserError: there is no such data set or split, or `datasets` cannot read it.
        WorkError: the hub cannot be reached.
    """
    with dataset_errors(name), _quiet():
        splits, folder, counts, files = _open_splits(name)
    parts = [part.strip() for part in split.split("+")]
    (first, only), *more = splits.items()
    by_column = not more and SPLIT_COLUMN in (only.column_names or [])
    with dataset_errors(name):
        named = set(parts) <= set(splits) and not (by_column and first != UNNAMED and _column_has(only, parts))
        if named:
            known = [counts.get(part, 0) for part in parts]
            rows = _join([splits[part] for part in parts])
            paths = tuple(path for part in parts for path in files.get(part, ()))
            total = sum(known) if all(known) else 0
            return OpenedDataset(name, rows, folder, examples=total, files=paths, split=split)
    if by_column:
        log.info("%s has only the split %s; its rows with %s in the column split are taken", name, first, split)
        return OpenedDataset(name, only, folder, frozenset(parts), files=tuple(files.get(first, ())), split=split)
    raise UserError(f"{name} has no split {split!r}; set split to one of {', '.join(map(str, splits))}.")


def _column_has(rows: Any, parts: list[str]) -> bool:
    """Whether the column `split` has these values and others; a row of Flickr30k in the split test may be of train."""
    missing, others = set(parts), False
    for batch in rows.select_columns([SPLIT_COLUMN]).iter(ROWS_AT_ONCE):
        values = set(batch[SPLIT_COLUMN])
        missing, others = missing - values, others or bool(values - set(parts))
        if others and not missing:
            return True
    return False


def _open_splits(name: str) -> tuple[dict[str, Any], str, dict[str, int], dict[str, list[str]]]:
    """The splits of a data set by name, its folder, the numbers of rows that are known, and local parquet files."""
    import datasets.config

    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(name)
        splits = {"train": saved} if isinstance(saved, datasets.Dataset) else saved
        return {str(split): rows for split, rows in splits.items()}, name, {}, {}
    if folder.is_dir():
        builder, place = datasets.load_dataset_builder(name), name
        copy = builder.name in COPIED
    elif folder.is_file():
        if folder.suffix != ".parquet":
            raise UserError(f"{name} is no parquet file; name a folder that `datasets` can read, or a parquet file.")
        builder, place, copy = datasets.load_dataset_builder("parquet", data_files=name), str(folder.parent), False
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"There is no data set folder {name}.")
    else:
        repository, _, config = name.partition(":")
        builder, place = datasets.load_dataset_builder(repository, config or None), ""
        copy = datasets.config.HF_HUB_OFFLINE
    if copy:  # in the cache of `datasets`
        builder.download_and_prepare()
    opened = cast(dict, builder.as_dataset() if copy else builder.as_streaming_dataset())
    files: dict[str, list[str]] = {}
    if builder.name == "parquet" and place:
        files = {str(split): list(map(str, paths)) for split, paths in (builder.config.data_files or {}).items()}
    return {str(split): rows for split, rows in opened.items()}, place, _count_rows(builder, files), files


def _count_rows(builder: Any, files: dict[str, list[str]]) -> dict[str, int]:
    """The number of rows of each split, from what the data set records about itself, or from local parquet files."""
    if builder.info.splits:
        return {str(split): info.num_examples or 0 for split, info in builder.info.splits.items()}
    return {split: sum(pq.read_metadata(path).num_rows for path in paths) for split, paths in files.items()}


def _join(parts: list[Any]) -> Any:
    import datasets

    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from showing progress bars and from reporting downloads, in this block."""
    import datasets.config
    from huggingface_hub import constants

    shown, reports = not datasets.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = reports
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def dataset_errors(name: str) -> Iterator[None]:
    """Turn errors of `datasets` into one sentence.

    Raises:
        UserError: there is no such data set, or it is broken or of an unknown format.
        WorkError: the hub cannot be reached.
    """
    try:
        yield
    except (UserError, WorkError):
        raise
    except Exception as error:
        import datasets.config
        import datasets.exceptions

        text = " ".join(str(error).split()).rstrip(".")[:200]
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise UserError(
                f"There is no data set {name}: no such folder, and none of the hub that you can read."
            ) from None
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{name} holds no data that `datasets` can read ({text}).") from None
        if datasets.config.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
            raise UserError(
                f"There is no folder {name}, and no data set {name} in the cache of `datasets`; HF_HUB_OFFLINE forbids "
                "to download it."
            ) from None
        if (
            isinstance(error, ConnectionError)
            or "requests" in type(error).__module__
            or "httpx" in type(error).__module__
        ):
            raise WorkError(
                f"The data set {name} is no folder, and the hub cannot be reached ({text}); correct the name or retry."
            ) from None
        raise UserError(f"The data set {name} cannot be read: {text or type(error).__name__}.") from None


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is inside a folder, links resolved."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))
