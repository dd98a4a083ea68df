"""Images with a class: folders with a subfolder per class, and shards with classes in their JSON or .cls members."""

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlp.config import SourceConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.class_names import (
    CLASS_KEY,
    COUNT_FILE,
    NAMES_FILE,
    NO_CLASS,
    SEVERAL_CLASSES,
    TEMPLATES_FILE,
    TYPE_FILE,
    read_class,
    read_names,
    read_templates,
)
from vlp.data.dataset_columns import class_names_of
from vlp.data.dataset_source import DatasetSource, open_dataset_source
from vlp.data.importers.clip_benchmark import split_shards
from vlp.data.importers.folder import LoosePictures
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples, read_members
from vlp.errors import UserError
from vlp.files import read_text
from vlp.remote import is_remote

UNKNOWN_CLASS = "unknown class"  # the reason of an image in a folder that is not among the classes

log = logging.getLogger("vlp")


@dataclass
class LabelledImages:
    """Where the images of a data set are, and their classes.

    Attributes:
        source: shards, or one image folder, for `evaluation_batches`.
        names: of the classes, by number; empty where shards do not tell them.
        templates: the prompts that come with the data set, with {c} or {} for the name; empty where it has none.
        folders: of an image folder: the class of each subfolder.
        rows: of a data set of `datasets`, whose name is `source`; it is read in sequence.
        label: the key of the class in the JSON of samples.
        numbers: the class of each number that the data have, None for one that is not among `names`; None: the same.
    """

    source: list[str]
    names: list[str]
    templates: list[str] = field(default_factory=list)
    folders: dict[str, int] | None = None
    rows: DatasetSource | None = None
    label: str = CLASS_KEY
    numbers: list[int | None] | None = None

    def class_of(self, key: str, info: dict) -> int:
        """The class of an image.

        Args:
            key: of its sample; of an image in a folder, its path within the folder.
            info: the JSON of its sample, see `Sample`.

        Raises:
            BadSampleError: it has none, or one that does not exist.
            UserError: it has several classes: the data set is multi-label.
        """
        if self.folders is not None:
            folder, slash, _ = key.partition("/")
            if not slash:
                raise BadSampleError(NO_CLASS)
            if folder not in self.folders:
                raise BadSampleError(UNKNOWN_CLASS)
            return self.folders[folder]
        try:
            number = read_class(info.get(self.label), len(self.numbers or self.names) or None)
            known = number if self.numbers is None else self.numbers[number]
            if known is None:
                raise BadSampleError(UNKNOWN_CLASS)
            return known
        except BadSampleError as error:
            if error.reason == SEVERAL_CLASSES:
                raise _multi_label(self.source[0]) from None
            raise


def open_labelled(
    data: str, names: str | None = None, split: str = "test", folders: dict[str, int] | None = None, label: str = ""
) -> LabelledImages:
    """The images of a data set and their classes. Nothing but names and classes is read.

    Args:
        data: an image folder with a subfolder per class; a folder of shards, as `vlp data import clip-benchmark`
            writes them or as CLIP_benchmark's webdatasets are downloaded; shards as paths, patterns or addresses; or a
            folder or file of parquet, or one that `datasets` saved.
        names: a file of class names: one a line in the order of the classes, or for an image folder also
            FOLDER<tab>NAME. None means the names beside the shards or in the image folder, or those of the
            subfolders.
        split: of a downloaded data set, or of one that `datasets` reads.
        folders: the class of each subfolder of an image folder, for a second folder with the classes of a first.
        label: the key of the class in the JSON of samples, or the column of a data set; empty: `cls`, or guessed.

    Raises:
        UserError: there are no images or classes, the names do not fit, or the data set is for another task.
    """
    if _is_dataset(data):
        return _open_dataset(data, names, split, label)
    shards = _find_shards(data, split)
    if shards is None:
        return _open_folder(data, names, folders)
    beside = files_beside(shards[0])
    if TYPE_FILE in beside and "retrieval" in read_text(beside[TYPE_FILE]):
        raise UserError(f"{data} is a data set for retrieval, without classes; use `vlp evaluate retrieval`.")
    found = names or beside.get(NAMES_FILE)
    templates = read_templates(beside[TEMPLATES_FILE]) if TEMPLATES_FILE in beside else []
    _check_first_sample(shards[0], label or CLASS_KEY)
    return LabelledImages(shards, read_names(found) if found else [], templates, label=label or CLASS_KEY)


def use_classes(data: LabelledImages, classes: list[str]) -> LabelledImages:
    """The same images with the numbers that a model gives to the classes of these names; others are skipped.

    Names are compared without regard to case, and underscores are spaces. Where the data name no classes, their numbers
    are those of the model.

    Raises:
        UserError: none of the names is a class of the model.
    """
    if not data.names:
        return replace(data, names=classes)
    known = {_plain(name): number for number, name in enumerate(classes)}
    numbers = [known.get(_plain(name)) for name in data.names]
    if all(number is None for number in numbers):
        raise UserError(
            f"None of the classes of {data.source[0]} ({', '.join(data.names[:3])}, ...) is one of the model's "
            f"({', '.join(classes[:3])}, ...)."
        )
    if data.folders is None:
        return replace(data, names=classes, numbers=numbers)
    folders = {folder: numbers[number] for folder, number in data.folders.items()}
    return replace(data, names=classes, folders={one: number for one, number in folders.items() if number is not None})


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()


def _is_dataset(data: str) -> bool:
    """Whether a path is that of a data set that `datasets` reads, other than a folder of images or shards."""
    path = Path(data)
    if is_remote(data) or not path.is_dir():
        return path.suffix == ".parquet" and path.is_file()
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))


def _open_dataset(data: str, names: str | None, split: str, label: str) -> LabelledImages:
    split = "train" if Path(data).is_file() else split  # `datasets` names the only split of a file so
    rows = open_dataset_source(SourceConfig(dataset=data, split=split), 1, label)
    found = read_names(names) if names else class_names_of(rows.opened.features[rows.columns.label])
    return LabelledImages([data], found, rows=rows)


def is_labelled(data: str) -> bool:
    """Whether `open_labelled` would find classes with names, rather than `evaluate_retrieval` images with captions.

    Args:
        data: a folder, or shards.

    Raises:
        UserError: there are no such shards.
    """
    if _is_dataset(data):
        return True
    shards = _find_shards(data, "test")
    return shards is None or NAMES_FILE in files_beside(shards[0])


def _find_shards(data: str, split: str) -> list[str] | None:
    """The shards that `data` means; None if it is an image folder."""
    if is_remote(data) or not Path(data).is_dir():
        return expand_shards(data)
    if any(Path(data).glob(f"*/{COUNT_FILE}")):
        return [str(shard) for shard in split_shards(data, split)]
    return sorted(map(str, Path(data).glob("*.tar"))) or None


def files_beside(shard: str) -> dict[str, Path]:
    """The files with class names, templates and the kind of data set: beside a shard, or beside its split's folder."""
    if is_remote(shard):
        return {}
    folder = Path(shard).absolute().parent
    places = (folder.parent, folder) if (folder / COUNT_FILE).is_file() else (folder,)
    names = (NAMES_FILE, TEMPLATES_FILE, TYPE_FILE)
    return {name: place / name for place in places for name in names if (place / name).is_file()}


def _check_first_sample(shard: str, key: str) -> None:
    """Make sure that the first sample of a shard has a class, in its JSON under `key`.

    Raises:
        UserError: it has none, or the data set is multi-label.
    """
    first = next(iterate_samples(shard), None)
    if first is None:
        raise UserError(f"{shard} has no readable image.")
    if key in first.info:
        return
    if key != CLASS_KEY:
        raise UserError(f"{shard} has no {key!r} in the JSON of its samples; name another label.")
    _, members = next(read_members(shard), ("", {}))
    if "npy" in members:
        raise _multi_label(shard)
    if "cls" not in members:  # one without content is a bad sample
        raise UserError(f"{shard} has no classes: neither `cls` in the JSON of its samples nor .cls members.")


def _multi_label(shard: str) -> UserError:
    return UserError(
        f"{shard} is of a multi-label data set, whose images have several classes; accuracy needs one class per image."
    )


def _open_folder(data: str, names: str | None, folders: dict[str, int] | None) -> LabelledImages:
    """An image folder; its classes are its subfolders in alphabetical order; names and templates may lie in it."""
    pictures = LoosePictures(data).names
    counts = Counter(name.partition("/")[0] for name in pictures if "/" in name)
    if not counts:
        raise UserError(f"{data} has neither shards nor subfolders with images, one for each class.")
    if folders is None:
        every = sorted(one.name for one in Path(data).iterdir() if one.is_dir() and not one.name.startswith("."))
        folders = {name: number for number, name in enumerate(every)}
    named, templates = Path(data, NAMES_FILE), Path(data, TEMPLATES_FILE)
    found = _folder_names(names or (str(named) if named.is_file() else None), list(folders))
    return LabelledImages([data], found, read_templates(templates) if templates.is_file() else [], folders=folders)


def _folder_names(path: str | None, folders: list[str]) -> list[str]:
    """The names of the classes of subfolders: their own with spaces for underscores, or those of a file."""
    if path is None:
        return [folder.replace("_", " ") for folder in folders]
    lines = read_names(path)
    if all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        absent = [folder for folder in folders if folder not in named]
        if absent:
            raise UserError(f"{path} has no name for the subfolder {absent[0]} ({len(absent)} such subfolders).")
        return [named[folder].strip() for folder in folders]
    if len(lines) != len(folders):
        raise UserError(
            f"{path} has {len(lines)} names for {len(folders)} subfolders; write one a line in their alphabetical "
            "order, or FOLDER<tab>NAME."
        )
    return lines
