"""Flickr30k and Flickr8k: Karpathy's JSON, BLIP's JSON, and the tables in which they are distributed."""

import csv
from collections.abc import Iterator
from typing import Literal

from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import AnnotatedImages, likely_places
from vlp.data.importers.annotation_rows import add_blip, add_karpathy, refuse_splits
from vlp.errors import UserError
from vlp.files import read_text

HEADINGS = ("image", "image_name")  # the first field of a table's first row, where it names the columns


def flickr(
    name: Literal["flickr8k", "flickr30k"],
    files: list[str],
    images: str,
    splits: list[str] | None = None,
    names: str | None = None,
) -> AnnotatedImages:
    """The images of Flickr30k or Flickr8k.

    Args:
        files: dataset_NAME.json, NAME_val.json, or a table: CSV `image,caption`, `image| comment_number| comment`,
            or `image#0<tab>caption`. Captions in a CSV may contain commas, quoted or not.
        images: the folder of the images.
        splits: the splits of Karpathy's file to take; None takes all.
        names: a file with the names of the images to take, one per line; None takes all.

    Raises:
        UserError: a file or folder is missing, unreadable or of another kind, or has no such split.
    """
    found = AnnotatedImages(images)
    karpathy = recognise.KARPATHY_FLICKR8K if name == "flickr8k" else recognise.KARPATHY_FLICKR30K
    for path in files:
        if not path.lower().endswith((".json", ".jsonl")):
            refuse_splits(path, splits)
            _add_table(found, path)
            continue
        kind, values = recognise.read_annotations(path, (karpathy, recognise.BLIP_CAPTIONS), name)
        if kind is karpathy:
            add_karpathy(found, path, values, splits)
        else:
            refuse_splits(path, splits)
            add_blip(found, path, values)
    return found if names is None else _only(found, names)


def _only(images: AnnotatedImages, path: str) -> AnnotatedImages:
    """The images that a file lists, in its order; those without annotations have no captions."""
    listed = AnnotatedImages(str(images.folder))
    by_name = {one.info["uid"]: one for one in images.images.values()}
    for name in dict.fromkeys(line.strip() for line in read_text(path, "list of images").split("\n")):
        if name in by_name:
            listed.images[name] = by_name[name]
        elif name:
            listed.add(path, (name,), [], {})
    listed.bad = images.bad
    return listed


def _add_table(images: AnnotatedImages, path: str) -> None:
    """Add the rows of a table, each an image and a caption."""
    lines = read_text(path, "caption file").split("\n")
    first = next((line for line in lines if line.strip()), "")
    read = _read_tokens if "\t" in first and "#" in first else _read_comments if "|" in first else _read_csv
    rows = 0
    for number, (name, caption) in enumerate(read(path, lines), start=1):
        if number == 1 and name in HEADINGS:
            continue
        rows += 1
        if caption is None:
            images.skip(path, f"row {number}", "bad row")
        elif caption:
            images.add(path, likely_places(name), [(caption, None)], {})
    if not rows:
        raise UserError(f"{path} has no captions; it must be a CSV with the columns image,caption.")


def _read_tokens(_: str, lines: list[str]) -> Iterator[tuple[str, str | None]]:
    """Rows `1000092795.jpg#0<tab>caption`."""
    for line in filter(str.strip, lines):
        name, tab, caption = line.partition("\t")
        yield name.rpartition("#")[0].strip(), caption.strip() if tab else None


def _read_comments(_: str, lines: list[str]) -> Iterator[tuple[str, str | None]]:
    """Rows `1000092795.jpg| 0| caption`."""
    for line in filter(str.strip, lines):
        name, *rest = line.split("|", 2)
        yield name.strip(), rest[1].strip() if len(rest) == 2 else None


def _read_csv(path: str, lines: list[str]) -> Iterator[tuple[str, str | None]]:
    """Rows `image,caption`; those with one column are left out."""
    try:
        for row in csv.reader(lines):
            if len(row) >= 2:
                yield row[0].strip(), ",".join(row[1:]).strip()
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}.") from None
