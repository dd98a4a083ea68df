"""NLVR2: sentences about pairs of images; the official JSON lines, and BLIP's files."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import NO_SECOND_IMAGE, BadSample, BadSampleError
from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import likely_places
from vlp.data.importers.annotation_rows import field
from vlp.data.importers.write import ImportedSample, make_key, read_image
from vlp.errors import UserError

KINDS = (recognise.NLVR2,)
LABELS = {"true": True, "false": False}


class Nlvr2:
    """An `Importer` of sentences, each a sample with its two images.

    The JSON of a sample has `images` (2), `sentence`, and where the file has them `identifier` and `label` (bool). A
    sentence may be false, so it is no caption.
    """

    def __init__(self, files: list[str], images: str):
        """Read the annotation files.

        Args:
            files: nlvr_train.json and the like of BLIP, which name the images, or the official train.json, dev.json,
                test1.json, whose identifiers do.
            images: the folder of the images, or one above them as they are distributed.

        Raises:
            UserError: a file or folder is missing, unreadable or of another kind.
        """
        if not Path(images).is_dir():
            raise UserError(f"There is no image folder {images}; name it with --images.")
        self.folder = Path(images)
        self.rows: list[tuple[str, int, Any]] = []  # file, number from 1, row
        for path in files:
            _, rows = recognise.read_annotations(path, KINDS, "nlvr2")
            self.rows += [(path, number, row) for number, row in enumerate(rows, start=1)]
        self.sentences: Counter[str] = Counter()  # of a pair of images without identifiers

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for path, number, row in self.rows:
            name = f"row {number}"
            try:
                facts = _facts(row)
                names = _image_names(row)
                name = str(facts.get("identifier") or names[0])
                yield self._sample(facts, names, row.get("directory"))
            except BadSampleError as error:
                yield BadSample(path, name, error.reason)

    def _sample(self, facts: dict, names: list[str], directory: Any) -> ImportedSample:
        key = facts.get("identifier")
        if key is None:
            pair = make_key(names[0]).removesuffix("-img0")
            key = f"{pair.rpartition('_')[2]}-{self.sentences[pair]}"
            self.sentences[pair] += 1
        image, extension = self._read(names[0], directory)
        try:
            right, right_extension = self._read(names[1], directory)
        except BadSampleError:
            raise BadSampleError(NO_SECOND_IMAGE) from None
        info = {"uid": key, "images": 2, **facts}
        name = key.replace("/", "_").replace(".", "_")  # a key ends at the first dot of a member's name
        return ImportedSample(name, image, extension, [], info, {f"right.{right_extension}": right})

    def _read(self, name: str, directory: Any) -> tuple[bytes, str]:
        """An image; in the official folders it is in `dev`, `test1`, or `train/DIRECTORY`, perhaps under `images`."""
        split = name.rpartition("/")[2].partition("-")[0]
        folders = [f"{split}/{directory}", split] if directory is not None else [split]
        base = name.rpartition("/")[2]
        further = [f"{top}{folder}/{base}" for folder in folders for top in ("", "images/")] if split else []
        return read_image(self.folder, *likely_places(name), *further)


def _facts(row: Any) -> dict:
    """What a sample's JSON keeps of a row; raises BadSampleError if a field is missing or unusable."""
    facts: dict[str, Any] = {"sentence": field(row, "sentence", str).strip()}
    if not facts["sentence"]:
        raise BadSampleError("no sentence")
    identifier = row.get("identifier")
    if identifier is not None:
        if not isinstance(identifier, str) or not identifier.strip():
            raise BadSampleError("bad row")
        facts["identifier"] = identifier
    label = row.get("label")
    if label is not None:
        facts["label"] = label if isinstance(label, bool) else LABELS.get(str(label).strip().lower())
        if facts["label"] is None:
            raise BadSampleError("bad label")
    return facts


def _image_names(row: dict) -> list[str]:
    """The files of the two images: those that BLIP's row lists, or those of the pair in an official identifier."""
    if "images" not in row:
        pair, dash, _ = field(row, "identifier", str).rpartition("-")  # SPLIT-SET-PAIR-SENTENCE
        if not dash:
            raise BadSampleError("bad row")
        return [f"{pair}-img{number}.png" for number in (0, 1)]
    names = field(row, "images", list)
    if len(names) != 2 or not all(isinstance(name, str) and name for name in names):
        raise BadSampleError("bad row")
    return names
