"""The images that annotation files list: each once, with all its captions, read from an image folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.write import ImportedSample, make_key, read_image
from vlp.errors import UserError


@dataclass(slots=True)
class AnnotatedImage:
    """An image that annotation files list.

    Attributes:
        places: where its file may be in the image folder, the likeliest first.
        captions: in order, each once, with its id in the annotation file or None.
        info: other fields to keep.
        source: the file that lists it.
    """

    key: str
    places: tuple[str, ...]
    captions: dict[str, Any]
    info: dict[str, Any]
    source: str


class AnnotatedImages:
    """An `Importer` of the images that annotation files list. Bad rows come after the images."""

    def __init__(self, images: str, subfolders: tuple[str, ...] = ()):
        """Start empty.

        Args:
            images: the folder of the images.
            subfolders: where the images may be too, as the data set is distributed.

        Raises:
            UserError: there is no such folder.
        """
        if not Path(images).is_dir():
            raise UserError(f"There is no image folder {images}; name it with --images.")
        self.folder, self.subfolders = Path(images), subfolders
        self.images: dict[str, AnnotatedImage] = {}  # by the first place
        self.bad: list[BadSample] = []

    def add(
        self,
        source: str,
        places: tuple[str, ...],
        captions: Iterable[tuple[str, Any]],
        info: dict[str, Any],
        key: str | None = None,
    ) -> None:
        """Add an image, or further captions of one.

        Args:
            source: the file that lists it.
            places: where its file may be in the image folder; equal first places mean the same image.
            captions: each with its id in the annotation file or None.
            info: fields to keep; those of the first call are kept.
            key: of the sample; the name of the file gives it otherwise.
        """
        image = self.images.get(places[0])
        if image is None:
            name = places[0].rpartition("/")[2]
            key = make_key(name) if key is None else key
            image = AnnotatedImage(key, places, {}, {"uid": name, **info}, source)
            self.images[places[0]] = image
        for text, number in captions:
            if text.strip():
                image.captions.setdefault(text.strip(), number)

    def skip(self, source: str, row: str, reason: str) -> None:
        """Record a bad row."""
        self.bad.append(BadSample(source, row, reason))

    def __len__(self) -> int:
        return len(self.images) + len(self.bad)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for image in self.images.values():
            try:
                data, extension = read_image(self.folder, *image.places, *self._further_places(image))
            except BadSampleError as error:
                yield BadSample(image.source, image.places[0], error.reason)
                continue
            ids = list(image.captions.values())
            numbered = {"sentids": ids} if any(number is not None for number in ids) else {}
            yield ImportedSample(image.key, data, extension, list(image.captions), {**image.info, **numbered})
        yield from self.bad

    def _further_places(self, image: AnnotatedImage) -> Iterator[str]:
        """Where the file of an image may be in the subfolders."""
        return (f"{folder}/{place}" for place in image.places if _is_inside(place) for folder in self.subfolders)


def likely_places(path: str) -> tuple[str, ...]:
    """Where an image may be whose path an annotation file gives: there, or directly in the image folder."""
    name = path.rpartition("/")[2]
    return (path, name) if _is_inside(path) and name != path else (path,)


def _is_inside(path: str) -> bool:
    """Whether a path is relative and does not lead upwards."""
    return not path.startswith("/") and ".." not in path.split("/")
