"""The classes that training data have: their names, and whether each of them has an image."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlp.config import ClassificationConfig, DataConfig, SourceConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.class_names import CLASS_KEY, NAMES_FILE, read_class, read_names
from vlp.data.dataset_columns import class_names_of, guess_label
from vlp.data.dataset_source import unbatched
from vlp.data.labelled_images import files_beside
from vlp.data.open_dataset import SPLIT_COLUMN, OpenedDataset, open_dataset
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shards import ShardReader
from vlp.errors import UserError
from vlp.log import Progress
from vlp.remote import is_remote

ROWS_AT_ONCE = 1000
NAMED = 5  # classes that an error lists

log = logging.getLogger("vlp")


def find_classes(data: DataConfig, config: ClassificationConfig, quiet: bool = False) -> list[str]:
    """The names of the classes to train, by number; where nothing names them, their numbers.

    The labels of local data are read first, without the images. Those of remote data are not.

    Raises:
        UserError: the number of classes is unknown or below two, sources name different classes, a class has no image,
            or too many labels are no class.
    """
    opened = [open_dataset(source.dataset, source.split) if source.dataset else None for source in data.sources]
    names = read_names(config.names) if config.names else _names_of(data, opened)
    if config.classes and names and len(names) != config.classes:
        where = config.names or "the data"
        raise UserError(
            f"classification.classes is {config.classes}, but {where} names {len(names)} classes; leave it out."
        )
    labels, bad, whole = _count_labels(data, opened, config.classes or len(names) or None, quiet)
    classes = config.classes or len(names) or (1 + max(labels) if whole and labels else 0)
    total = labels.total() + len(bad)
    if len(bad) > data.max_bad_share * total:
        numbers = f"a whole number from 0 to {classes - 1}" if classes else "a whole number"
        raise UserError(
            f"The class of {len(bad)} of {total} images is not {numbers}, such as that of {bad[0]}; "
            "correct the labels, or name others with data.label."
        )
    if not classes:
        raise UserError(
            "The number of classes is unknown, because the data neither name them nor can be read beforehand; "
            "set classification.classes or classification.names."
        )
    if classes < 2 or (whole and len(labels) < 2):
        raise UserError("Classification needs images of at least two classes; the data have one.")
    names = names or [str(number) for number in range(classes)]
    empty = [names[number] for number in range(classes) if number not in labels]
    folders = [name for source, dataset in zip(data.sources, opened, strict=True) for name in _bare(source, dataset)]
    if whole and (empty or folders):
        missing = empty + folders
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"The data have no image of {len(missing)} of {classes + len(folders)} classes "
            f"({', '.join(missing[:NAMED])}{more}); "
            "add some, or remove these classes from the names and the numbers."
        )
    return names


def _names_of(data: DataConfig, opened: list[OpenedDataset | None]) -> list[str]:
    """The names that come with the data, [] where they have none.

    Raises:
        UserError: two sources have different names.
    """
    found: list[str] = []
    for number, (source, dataset) in enumerate(zip(data.sources, opened, strict=True)):
        if dataset:
            names = class_names_of(dataset.features[guess_label(dataset.features, source.dataset, data.label)])
        else:
            beside = files_beside(expand_shards(source.shards)[0])
            names = read_names(beside[NAMES_FILE]) if NAMES_FILE in beside else []
        if found and names and names != found:
            raise UserError(
                f"data.sources[{number}] names other classes than the sources before it; give all sources the same "
                "classes in the same order."
            )
        found = found or names
    return found


def _bare(source: SourceConfig, dataset: OpenedDataset | None) -> list[str]:
    """The subfolders of an image folder that have no image, of which `datasets` makes no class."""
    if dataset is None or dataset.files or not dataset.random_access or not Path(source.dataset).is_dir():
        return []
    named = {name for feature in dataset.features.values() for name in class_names_of(feature)}
    for folder in (Path(source.dataset), Path(source.dataset, source.split)):
        found = {} if not folder.is_dir() else {one.name.replace("_", " "): one for one in folder.iterdir()}
        if named and named <= found.keys():
            return [name for name, one in found.items() if name not in named and one.is_dir() and name[0] != "."]
    return []


def _count_labels(
    data: DataConfig, opened: list[OpenedDataset | None], classes: int | None, quiet: bool
) -> tuple[Counter[int], list[str], bool]:
    """How many images each class has, the images without a usable label, and whether all sources were read."""
    counts: Counter[int] = Counter()
    bad: list[str] = []
    whole = True
    with Progress("labels", quiet=quiet) as bar:
        for source, dataset in zip(data.sources, opened, strict=True):
            if dataset and not (dataset.random_access or dataset.files):
                whole = False
                continue
            if not dataset and any(map(is_remote, expand_shards(source.shards))):
                whole = False
                continue
            for number, (where, label) in enumerate(_read_labels(source, dataset, data.label), start=1):
                try:
                    counts[read_class(label, classes)] += 1
                except BadSampleError:
                    bad.append(f"{where}, {str(label)[:40]!r}")
                if number % ROWS_AT_ONCE == 0:
                    bar.add("read labels", ROWS_AT_ONCE)
    return counts, bad, whole


def _read_labels(source: SourceConfig, dataset: OpenedDataset | None, label: str) -> Iterator[tuple[str, Any]]:
    """A name for each image of a local source, and its label as it stands there."""
    if dataset is None:
        yield from _labels_of_shards(source, label or CLASS_KEY)
        return
    column = guess_label(dataset.features, source.dataset, label)
    columns = [column, *([SPLIT_COLUMN] if dataset.wanted else [])]
    for number, row in enumerate(_rows(dataset, columns)):
        if not dataset.wanted or row[SPLIT_COLUMN] in dataset.wanted:
            yield f"row {number} of {source.dataset}", row[column]


def _rows(dataset: OpenedDataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Some columns of the rows of a local data set, without the others, which hold the images."""
    if dataset.random_access:
        for batch in dataset.rows.select_columns(columns).iter(ROWS_AT_ONCE):
            yield from unbatched(batch)
    for path in dataset.files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                yield from batch.to_pylist()


def _labels_of_shards(source: SourceConfig, key: str) -> Iterator[tuple[str, Any]]:
    with closing(ShardReader(most_open=1)) as reader:
        for path in expand_shards(source.shards):
            index = index_shard(path)
            for row, name in enumerate(index.keys):
                try:
                    yield f"{name} of {path}", reader.read_info(index, row).get(key)
                except BadSampleError:
                    continue  # the loader names it
