"""Folders of pictures: with a metadata.jsonl or metadata.csv as `datasets` reads them, or without any."""

import csv
import json
import logging
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.annotated_images import AnnotatedImages
from vlp.data.importers.write import OTHER_FORMATS, ImportedSample, Importer, make_key, read_image, told_sources
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shards import make_sample
from vlp.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
TEXTS = ("text", "texts", "caption", "captions")  # the fields with captions, unless others are named

log = logging.getLogger("vlp")


def image_folder(folder: str, texts: list[str] | None = None) -> Importer:
    """The pictures of a folder.

    Args:
        folder: with a metadata.jsonl or metadata.csv that has a `file_name` in each row, or without; then every picture
            in it and below is taken, with the KEY.txt and KEY.json beside it where there are any.
        texts: the fields with captions; None takes those of `TEXTS`. Other fields are kept in the sample's JSON.

    Raises:
        UserError: there is no such folder, its metadata is unreadable, or it has no pictures.
    """
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}.")
    found = [name for name in METADATA if Path(folder, name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} has a metadata.jsonl and a metadata.csv; remove one of them.")
    if not found:
        pictures = LoosePictures(folder)
        if not len(pictures):
            raise UserError(f"{folder} has no pictures; they must be jpg, jpeg, png or webp files.")
        log.info("%s has no metadata.jsonl or metadata.csv; all of its %d pictures are taken", folder, len(pictures))
        return pictures
    images, path = AnnotatedImages(folder), str(Path(folder, found[0]))
    for row, fields in _read_jsonl(path) if path.endswith("l") else _read_csv(path):
        try:
            _add_row(images, path, fields, TEXTS if texts is None else texts)
        except BadSampleError as error:
            images.skip(path, row, error.reason)
    return images


class LoosePictures:
    """An `Importer` of every picture below a folder, sorted by name; hidden files are left out."""

    def __init__(self, folder: str, keep_folders: bool = True):
        """List the pictures.

        Args:
            keep_folders: whether the names of subfolders become part of the keys.

        Raises:
            UserError: a subfolder has metadata of its own.
        """
        self.folder, self.keep_folders = Path(folder), keep_folders
        self.names: list[str] = []  # relative to the folder
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if set(files) & set(METADATA) and place != folder:
                raise UserError(f"{place} has metadata of its own; import that folder by itself.")
            within = os.path.relpath(place, folder)
            self.names += sorted(
                posixpath.normpath(f"{within}/{name}")
                for name in files
                if not name.startswith(".") and _extension(name) in (*IMAGE_EXTENSIONS, *OTHER_FORMATS)
            )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for name in self.names:
            try:
                if _extension(name) in OTHER_FORMATS:
                    raise BadSampleError("neither jpg, png nor webp")
                yield self._read(name)
            except BadSampleError as error:
                yield BadSample(str(self.folder), name, error.reason)

    def _read(self, name: str) -> ImportedSample:
        """One picture with the text and the JSON beside it; raises BadSampleError."""
        image, extension = read_image(self.folder, name)
        stem = self.folder / name.rpartition(".")[0]
        text, facts = (_read_beside(Path(f"{stem}.{one}")) for one in ("txt", "json"))
        sample = make_sample(name, str(self.folder), image, text, facts)
        key = make_key(name if self.keep_folders else name.rpartition("/")[2])
        info = {"uid": name, **sample.info}
        return ImportedSample(key, image, extension, sample.captions, info, sources=told_sources(sample))


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _read_beside(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _add_row(images: AnnotatedImages, path: str, fields: Any, texts: tuple[str, ...] | list[str]) -> None:
    """Add the image of a row of metadata; raises BadSampleError where the row names none."""
    if isinstance(fields, BadSampleError):
        raise fields
    if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str) or None in fields:
        raise BadSampleError("bad row")
    name = posixpath.normpath(fields["file_name"])
    values = [fields[column] for column in texts if column in fields]
    captions = [text for value in values for text in (value if isinstance(value, list) else [value])]
    info = {key: value for key, value in fields.items() if key != "file_name" and key not in texts}
    kept = [(text, None) for text in captions if isinstance(text, str)]
    images.add(path, (name,), kept, {"uid": name, **info}, make_key(name))


def _read_jsonl(path: str) -> Iterator[tuple[str, Any]]:
    """The values of a file with one JSON value per line, each with a name; an error in place of a bad line."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                value = BadSampleError("text not UTF-8")
            except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
                value = BadSampleError("bad json")
            yield f"line {number}", value


def _read_csv(path: str) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV with a heading, each with a name."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "file_name" not in (reader.fieldnames or ()):
                raise UserError(f"{path} must have a column file_name; it has {', '.join(reader.fieldnames or ())}.")
            yield from ((f"row {number}", row) for number, row in enumerate(reader, start=1))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file.") from None
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}.") from None
