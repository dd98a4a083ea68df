"""The three forms of caption files, COCO's own, Karpathy's and BLIP's, as annotated images."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from vlp.data.bad_samples import BadSampleError
from vlp.data.importers.annotated_images import AnnotatedImages, likely_places
from vlp.data.importers.write import clean_captions
from vlp.errors import UserError

COCO_NUMBER = re.compile(r"(?:^|_)(\d{12})\.\w+$")  # the image's id in the name of its file


def add_official(images: AnnotatedImages, path: str, values: dict) -> None:
    """Add COCO's form: {images: [{id, file_name, ...}], annotations: [{image_id, id, caption}]}.

    The id becomes `image_id`, the ids of the annotations `sentids`; other fields of an image are kept.
    """
    captions: dict[Any, list[tuple[str, Any]]] = {}
    known: set[Any] = set()

    def add_image(row: Any) -> None:
        number, name = field(row, "id", (int, str)), field(row, "file_name", str)
        if number in known:
            raise BadSampleError("duplicate key")
        known.add(number)
        info = {key: value for key, value in row.items() if key not in ("id", "file_name")}
        texts = captions.setdefault(number, [])
        images.add(path, likely_places(name), texts, {"image_id": number, **info})

    def add_caption(row: Any) -> None:
        caption = (field(row, "caption", str), row.get("id"))
        captions.setdefault(field(row, "image_id", (int, str)), []).append(caption)

    each_row(images, path, listed(path, values.get("annotations", []), "annotations"), "annotation", add_caption)
    each_row(images, path, listed(path, values["images"], "images"), "image", add_image)
    for number in (one for one in captions if one not in known):
        images.skip(path, f"image_id {number}", "no image")


def add_karpathy(images: AnnotatedImages, path: str, values: dict, splits: list[str] | None) -> None:
    """Add Karpathy's form: {images: [{filename, filepath, split, sentences: [{raw, sentid}], ...}]}.

    Args:
        splits: the splits to take; None takes all.

    Raises:
        UserError: a split is not in the file.
    """
    rows = listed(path, values["images"], "images")
    counts = Counter(str(row.get("split")) for row in rows if isinstance(row, dict))
    for split in splits or ():
        if split not in counts:
            known = ", ".join(f"{name} ({count} images)" for name, count in counts.items())
            raise UserError(f"{path} has no split {split!r}; it has {known}.")

    def add(row: Any) -> None:
        if splits is not None and isinstance(row, dict) and str(row.get("split")) not in splits:
            return
        name, folder = field(row, "filename", str), row.get("filepath")
        place = f"{folder}/{name}" if isinstance(folder, str) and folder else name
        sentences = field(row, "sentences", list)
        texts = [(field(one, "raw", str), one.get("sentid")) for one in sentences]
        kept = ("split", "imgid", "cocoid")
        info = {key: row[key] for key in kept if row.get(key) is not None}
        official = {"image_id": row["cocoid"]} if row.get("cocoid") is not None else {}
        images.add(path, likely_places(place), texts, {**official, **info})

    each_row(images, path, rows, "image", add)


def add_blip(images: AnnotatedImages, path: str, rows: list, image_id: Callable[[dict], Any] | None = None) -> None:
    """Add BLIP's form: [{image, caption, ...}], a row for each caption or a list of captions in a row.

    Args:
        image_id: gives the image's id in the official files from a row, or None where it is unknown.
    """

    def add(row: Any) -> None:
        place = field(row, "image", str)
        texts = [(text, None) for text in clean_captions(row.get("caption"))]
        info = {key: value for key, value in row.items() if key not in ("image", "caption")}
        number = image_id(row) if image_id else None
        if number is not None:
            if info.get("image_id") not in (None, number):
                info["blip_image_id"] = info["image_id"]
            info["image_id"] = number
        images.add(path, likely_places(place), texts, info)

    each_row(images, path, rows, "row", add)


def coco_image_id(row: dict) -> int | None:
    """COCO's id of an image from a row of BLIP's files, whose file names end in it."""
    found = COCO_NUMBER.search(row["image"])
    return int(found[1]) if found else None


def each_row(images: AnnotatedImages, path: str, rows: Iterable[Any], what: str, add: Callable[[Any], None]) -> None:
    """Call `add` with each row; bad ones are skipped, named by their numbers from 1."""
    for number, row in enumerate(rows, start=1):
        try:
            add(row)
        except BadSampleError as error:
            images.skip(path, f"{what} {number}", error.reason)


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a row that must be there; raises BadSampleError if it is missing or of another type."""
    if not isinstance(row, dict) or not isinstance(row.get(name), kind):
        raise BadSampleError("bad row")
    return row[name]


def listed(path: str, rows: Any, name: str) -> list:
    """A list in an annotation file; raises UserError if it is none."""
    if not isinstance(rows, list):
        raise UserError(f"{path} is damaged: its {name!r} is not a list.")
    return rows


def refuse_splits(path: str, splits: list[str] | None) -> None:
    """Raise a UserError where splits are asked of a file that records none."""
    if splits is not None:
        raise UserError(f"{path} does not record splits; leave --split out.")
