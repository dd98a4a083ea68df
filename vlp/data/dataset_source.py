"""A Hugging Face data set as a source of streamed reading: ranges of rows, or the shards of a stream, as units."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from vlp.config import SourceConfig
from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.dataset_columns import DatasetColumns, guess_columns, guess_label, texts_of
from vlp.data.open_dataset import SPLIT_COLUMN, OpenedDataset, is_inside, open_dataset
from vlp.data.shards import Sample
from vlp.errors import UserError

ROWS_PER_UNIT = 256  # of a data set with random access
ROWS_AT_ONCE = 32
MOST_PARTS = 4  # of a shard of a stream, each of which reads the whole of it
COUNTED = 1000  # rows of a stream of unknown length from which the share of wanted rows is estimated

log = logging.getLogger("vlp")


class DatasetSource:
    """A data set: a unit is a range of rows, or a shard of a stream (a parquet row group, a tar) or a part of it."""

    def __init__(self, opened: OpenedDataset, columns: DatasetColumns, streams: int):
        """Nothing is read yet; `streams` is the number of streams that share the units."""
        self.opened, self.columns = opened, columns
        wanted = [SPLIT_COLUMN] if opened.wanted else []
        self.rows = select_columns(opened, list(dict.fromkeys([*columns.read, *wanted])), columns.image)
        if opened.random_access:
            if opened.wanted:
                splits = opened.rows[SPLIT_COLUMN]
                self.rows = self.rows.select([row for row, split in enumerate(splits) if split in opened.wanted])
            self.parts = 1
            self.rows_per_unit = max(1, min(ROWS_PER_UNIT, len(self.rows) // streams))
            self.shards = -(-len(self.rows) // self.rows_per_unit)
        else:
            if self.rows.num_shards < streams:
                self.rows = self.rows.reshard()  # of parquet: a shard for each row group
            self.shards = self.rows.num_shards
            self.parts = min(MOST_PARTS, -(-streams // self.shards))

    def units(self) -> int:
        """The number of ranges of rows, or of parts of shards."""
        return self.shards * self.parts

    def read(self, unit: int) -> Iterator[Sample | BadSample]:
        """The samples of a unit; one that cannot be read to its end gives an "unreadable shard"."""
        shard, part = divmod(unit, self.parts)
        where = f"{self.opened.name} {self.opened.rows.split or ''} {shard}".replace("  ", " ")
        try:
            for number, row in enumerate(self._rows(shard)):
                if number % self.parts == part and (not self.opened.wanted or row[SPLIT_COLUMN] in self.opened.wanted):
                    yield read_row(row, f"{shard:06d}-{number:06d}", self.opened, self.columns)
        except Exception as error:  # of a dozen libraries that read files and the network
            log.warning("gave up a part of a data set: %s: %s: %s", where, type(error).__name__, error)
            yield BadSample(where, "", "unreadable shard")

    def count(self) -> int:
        """The number of rows: known, or estimated from the first shard."""
        if self.opened.random_access:
            return len(self.rows)
        if self.opened.examples:
            return self.opened.examples
        first = sum(1 for _ in self._rows(0))
        total = first * self.shards
        if not self.opened.wanted:
            return total
        sample = list(islice(self.read(0), COUNTED))
        return round(total * len(sample) * self.parts / max(first, 1)) if len(sample) < COUNTED else total

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        if self.opened.random_access:
            start = shard * self.rows_per_unit
            part = self.rows.select(range(start, min(start + self.rows_per_unit, len(self.rows))))
        else:
            part = self.rows.shard(self.shards, shard)
        # Unlike the iterator over rows, `iter` does not share the rows out to the loader's workers.
        for batch in part.iter(ROWS_AT_ONCE):
            yield from unbatched(batch)


def open_dataset_source(source: SourceConfig, streams: int, label: str | None = None) -> DatasetSource:
    """The data set of a source, with its columns guessed where they are not given; the log says which.

    Args:
        label: None for samples with texts; else samples have a class from the column of this name, or if it is empty
            from one that is guessed. Their `info` has it under the name of the column, and as `cls`.

    Raises:
        UserError: there is no such data set or split, or a column cannot be guessed.
        WorkError: the hub cannot be reached.
    """
    opened = open_dataset(source.dataset, source.split)
    columns = guess_columns(opened.features, source.dataset, source.image, source.text, need_text=label is None)
    if label is None:
        log.info("%s: image: %s, text: %s", source.dataset, columns.image, columns.text)
    else:
        columns = replace(columns, text="", label=guess_label(opened.features, source.dataset, label))
        log.info("%s: image: %s, label: %s", source.dataset, columns.image, columns.label)
    result = DatasetSource(opened, columns, streams)
    if not result.units():
        raise UserError(f"{source.dataset} has no rows in the split {source.split!r}; set split to another.")
    return result


def select_columns(opened: OpenedDataset, names: list[str], image: str) -> Any:
    """The rows with some columns, and with encoded images instead of decoded ones."""
    import datasets

    rows = opened.rows.select_columns(names)
    if image in names and isinstance(opened.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def unbatched(batch: dict[str, list]) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns."""
    names = list(batch)
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def read_row(row: dict[str, Any], number: str, opened: OpenedDataset, columns: DatasetColumns) -> Sample | BadSample:
    """The sample of a row. Its key is that of the key column, else `number`, which is unique in the split."""
    key = row.get(columns.key) if columns.key else None
    has_key = key not in (None, "")
    name = str(key) if has_key else number
    # Keys that name no image may repeat, such as file names in tars and ids of joined splits.
    image_id = name if has_key and columns.group else f"{opened.split} {number}"
    try:
        image = image_bytes(row.get(columns.image), opened)
    except BadSampleError as error:
        return BadSample(opened.name, name, error.reason)
    texts = texts_of(row, columns.text)
    info = dict.fromkeys((columns.label, "cls"), row.get(columns.label)) if columns.label else {}
    return Sample(name, opened.name, image, None, texts, info, ["web"] * len(texts), image_id=image_id)


def image_bytes(value: Any, opened: OpenedDataset) -> bytes:
    """The encoded image of a row: bytes, or a path inside the data set.

    Raises:
        BadSampleError: there is none, or the path leads elsewhere.
    """
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(content, bytes):
        if not content:
            raise BadSampleError("zero bytes")
        return content
    if isinstance(path, str) and path:
        try:
            return _read_path(path, opened)
        except (OSError, ValueError):
            pass
    raise BadSampleError("no image")


def _read_path(path: str, opened: OpenedDataset) -> bytes:
    """A file of the data set; raises OSError or ValueError for one elsewhere."""
    import datasets.config

    own = f"hf://datasets/{opened.name.partition(':')[0]}@"
    if not opened.folder and (path.startswith(own) or f"::{own}" in path):
        with fsspec.open(path, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    for folder in (opened.folder, str(datasets.config.HF_DATASETS_CACHE)):
        inside = str(Path(folder) / path)
        if folder and is_inside(inside, folder):
            return Path(inside).read_bytes()
    raise ValueError(path)
