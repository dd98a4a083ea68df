"""Flickr8k: a folder of images and a CSV with five captions for each."""

import csv
from collections.abc import Iterator
from pathlib import Path

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.write import ImportedSample, read_image
from vlp.errors import UserError
from vlp.files import read_text


class Flickr8k:
    """The images of a CSV `image,caption` with one row per caption; an image with all its captions is one sample."""

    def __init__(self, images: str, captions: str, names: str | None = None):
        """Read the captions.

        Args:
            images: folder of the images.
            captions: the CSV; captions may contain commas, quoted or not.
            names: a file with the names of the images to take, one per line; None takes all.

        Raises:
            UserError: a file or folder is missing or unreadable.
        """
        if not Path(images).is_dir():
            raise UserError(f"There is no image folder {images}.")
        self.images, self.path = Path(images), captions
        self.captions = _read_captions(captions)
        self.names = list(self.captions)
        if names is not None:
            lines = read_text(names, "list of images").split("\n")
            self.names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for name in self.names:
            try:
                image, extension = read_image(self.images, name)
            except BadSampleError as error:
                yield BadSample(self.path, name, error.reason)
                continue
            key = name.rpartition(".")[0].replace(".", "_")  # a key ends at the first dot of a member's name
            yield ImportedSample(key, image, extension, self.captions.get(name, []), {"uid": name})


def _read_captions(path: str) -> dict[str, list[str]]:
    """The captions of each image, in the file's order."""
    texts: dict[str, list[str]] = {}
    try:
        for row in csv.reader(read_text(path, "caption file").split("\n")):
            if len(row) < 2 or row[:2] == ["image", "caption"]:
                continue
            caption = ",".join(row[1:]).strip()
            if caption:
                texts.setdefault(row[0].strip(), []).append(caption)
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}.") from None
    if not texts:
        raise UserError(f"{path} has no captions; it must be a CSV with the columns image,caption.")
    return texts
