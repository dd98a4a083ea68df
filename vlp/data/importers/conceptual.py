"""SBU, Conceptual 3M and 12M, and the like: tables beside downloaded images, or img2dataset's output."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlp.data.bad_samples import BadSampleError
from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import AnnotatedImages, likely_places
from vlp.data.importers.annotation_rows import listed
from vlp.data.importers.img2dataset import Img2dataset, failure_reason
from vlp.data.importers.write import Importer, NotDownloaded, clean_captions
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.errors import UserError

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "file", "path")
TEXT_COLUMNS = ("caption", "captions", "text", "title")
URL_COLUMNS = ("url", "image_url")
DOWNLOADED = ("", "success", "200", "ok", "none")  # values of the column `status`
AMBIGUOUS = ""  # in place of a URL
KINDS = (recognise.WEB_ROWS, recognise.BLIP_CAPTIONS, recognise.SBU)


def conceptual(
    files: list[str], images: str | None = None, image: str | None = None, text: str | None = None
) -> Importer:
    """The images of a web collection.

    Args:
        files: folders that img2dataset wrote; or tables (TSV, CSV, or JSON rows) with a column that names the image
            files, or a column of URLs that end in the names of the image files.
        images: the folder of the images of tables; None means the folder of the first table.
        image: the column of image names; None guesses it.
        text: the column of captions; None guesses it.

    Raises:
        UserError: a file or folder is missing, unreadable or of another kind, or a column cannot be guessed.
    """
    folders = [path for path in files if Path(path).is_dir()]
    if folders and len(folders) < len(files):
        raise UserError("Give either folders of img2dataset or tables, not both.")
    if folders:
        if images or image or text:
            raise UserError("--images, --image and --text are for tables; img2dataset's output needs none of them.")
        return Img2dataset(folders)
    found = AnnotatedImages(images or str(Path(files[0]).parent))
    urls: dict[str, str] = {}  # of the images whose names come from URLs
    for path in files:
        reader, number = _RowReader(found, path, image, text, urls), 0
        for number, row in enumerate(_read_rows(path, (image, text)), start=1):
            try:
                reader.add(f"row {number}", row)
            except BadSampleError as error:
                found.skip(path, f"row {number}", error.reason)
        if not number:
            raise UserError(f"{path} has no row with an image and a caption.")
    return found


@dataclass
class _Columns:
    """The names of a table's columns; the image is named by one of the first two."""

    image: str | None
    url: str | None
    text: str


class _RowReader:
    """Adds the rows of one table to the images."""

    def __init__(
        self, images: AnnotatedImages, path: str, image: str | None, text: str | None, urls: dict[str, str]
    ) -> None:
        self.images, self.path, self.image, self.text, self.urls = images, path, image, text, urls
        self.columns: _Columns | None = None

    def add(self, name: str, row: Any) -> None:
        """Add a row; raises BadSampleError where it names no image."""
        if not isinstance(row, dict) or None in row:
            raise BadSampleError("bad row")
        columns = self.columns = self.columns or _find_columns(self.path, list(row), self.image, self.text)
        status = row.get("status")
        if str(status or "").lower() not in DOWNLOADED:
            reason = failure_reason(row.get("error_message") or f"status {status}")
            self.images.bad.append(NotDownloaded(self.path, name, reason))
            return
        captions = [(text, None) for text in clean_captions(row.get(columns.text))]
        used = (columns.image, columns.text, "status", "error_message")
        info = {key: value for key, value in row.items() if key not in used}
        self.images.add(self.path, likely_places(self._place(row, columns)), captions, info)

    def _place(self, row: dict, columns: _Columns) -> str:
        value = row.get(columns.image or columns.url or "")
        if not isinstance(value, str) or not value:
            raise BadSampleError("bad row")
        if columns.image:
            return value
        try:
            place = urlsplit(value).path.rpartition("/")[2]
        except ValueError:  # an address that is none
            raise BadSampleError("no image") from None
        if self.urls.setdefault(place, value) != value:  # whose image the file is cannot be told
            self.urls[place] = AMBIGUOUS
            if self.images.images.pop(place, None):
                self.images.skip(self.path, place, "URLs with the same file name")
            raise BadSampleError("URLs with the same file name")
        return place


def _find_columns(path: str, names: Sequence[str], image: str | None, text: str | None) -> _Columns:
    """The columns of a table from their names; raises UserError where they cannot be guessed."""
    for name in (image, text):
        if name is not None and name not in names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(names)}.")
    image = image or _first_of(IMAGE_COLUMNS, names)
    text, url = text or _first_of(TEXT_COLUMNS, names), _first_of(URL_COLUMNS, names)
    if text is None or (image is None and url is None):
        raise UserError(
            f"{path} has the columns {', '.join(names)}; name those of the image files and the captions with --image "
            "and --text."
        )
    return _Columns(image, url, text)


def _first_of(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the wanted names that a table has, in its own letter case."""
    lower = {name.lower().strip(): name for name in reversed(names)}
    return next((lower[name] for name in wanted if name in lower), None)


def _read_rows(path: str, named: Sequence[str | None]) -> Iterator[Any]:
    """The rows of a table as dicts; `named` are column names that the caller expects."""
    if path.lower().endswith((".json", ".jsonl")):
        kind, values = recognise.read_annotations(path, KINDS, "conceptual")
        if kind is recognise.SBU:
            urls, captions = (listed(path, values[name], name) for name in ("image_urls", "captions"))
            return ({"url": url, "caption": caption} for url, caption in zip(urls, captions, strict=False))
        return iter(values)
    return _read_table(path, named)


def _read_table(path: str, named: Sequence[str | None]) -> Iterator[dict]:
    """The rows of a TSV or CSV. Without a heading, the values of the first row tell what the columns are."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            tabs = "\t" in file.readline()
            file.seek(0)
            # Captions of Conceptual 3M and 12M hold single quotation marks, which must not join lines.
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
            first = next(rows, None)
            if first is None:
                raise UserError(f"{path} is empty; it must have a row with an image and a caption for each pair.")
            known = {*IMAGE_COLUMNS, *TEXT_COLUMNS, *URL_COLUMNS}
            guessed = [_guess_column(one) for one in first]
            headed = any(one.lower().strip() in known or one in named for one in first) or set(guessed) == {"caption"}
            names = first if headed else guessed
            if not headed:
                yield _make_row(names, first)
            yield from (_make_row(names, row) for row in rows if row)
    except FileNotFoundError:
        raise UserError(f"There is no table {path}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file.") from None
    except csv.Error as error:
        raise UserError(f"{path} is not readable as a table: {error}.") from None


def _guess_column(value: str) -> str:
    """What a column without a name holds, from one value."""
    if "://" in value:
        return "url"
    extension = value.rpartition(".")[2].lower()
    return "image" if extension in IMAGE_EXTENSIONS else "caption"


def _make_row(names: list[str], values: list[str]) -> Any:
    """A row as a dict; one with another number of values is no row."""
    return dict(zip(names, map(_unquote, values), strict=True)) if len(values) == len(names) else None


def _unquote(value: str) -> str:
    """A value without the quotation marks that a writer of tables put around it."""
    inner = value[1:-1]
    quoted = len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else value
