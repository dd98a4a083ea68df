"""VisDial: dialogs about images, with the pooled questions and answers in place of their numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers import recognise
from vlp.data.importers.annotation_rows import field, listed
from vlp.data.importers.write import ImportedSample, read_image
from vlp.errors import UserError

KINDS = (recognise.VISDIAL, recognise.VISDIAL_DENSE)
# The names of an image by its number: COCO's in the train split, VisDial's own in the others.
NAMES = (
    "VisualDialog_val2018_{:012d}.jpg",
    "VisualDialog_test2018_{:012d}.jpg",
    "COCO_train2014_{:012d}.jpg",
    "COCO_val2014_{:012d}.jpg",
    "{:012d}.jpg",
)
FOLDERS = ("", "VisualDialog_val2018/", "VisualDialog_test2018/", "train2014/", "val2014/")


@dataclass
class DialogFile:
    """The content of a file of dialogs.

    Attributes:
        questions, answers: the pools that the dialogs number.
    """

    path: str
    split: str
    questions: list[str]
    answers: list[str]
    dialogs: list[Any]


@dataclass
class DenseRow:
    """A dense annotation: the relevance of each option, from 0 to 1, and where it comes from."""

    path: str
    row: int
    relevance: list[float]


class VisDial:
    """An `Importer` of dialogs. Dense annotations that belong to no dialog come after the images."""

    def __init__(self, files: list[str], images: str, options: int | None = None):
        """Read the annotation files; the dialogs keep the numbers of their texts until they are imported.

        Args:
            files: visdial_1.0_train.json, _val.json or _test.json, and dense annotations of the same split.
            images: the folder of the images, or the one above VisualDialog_val2018, train2014 and val2014.
            options: the number of answer options to keep in each round, the true answer among them; None keeps all.

        Raises:
            UserError: a file or folder is missing, unreadable or of another kind; no dense annotation belongs to a
                dialog; `options` is below 2, or given together with dense annotations.
        """
        if not Path(images).is_dir():
            raise UserError(f"There is no image folder {images}; name it with --images.")
        if options is not None and options < 2:
            raise UserError(f"A round needs at least 2 options, not {options}.")
        self.folder, self.options = Path(images), options
        self.files: list[DialogFile] = []
        self.dense: dict[tuple[Any, Any], DenseRow] = {}  # by image_id and round_id
        self.bad: list[BadSample] = []
        for path in files:
            kind, values = recognise.read_annotations(path, KINDS, "visdial")
            if kind is recognise.VISDIAL:
                self.files.append(_dialog_file(path, values))
            else:
                self._add_dense(path, values)
        self._check_dense(files)

    def __len__(self) -> int:
        return sum(len(file.dialogs) for file in self.files) + len(self.bad)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        seen: set[int] = set()
        for file in self.files:
            for number, row in enumerate(file.dialogs, start=1):
                name = f"dialog {number}"
                try:
                    image_id = field(row, "image_id", int)
                    name = f"image_id {image_id}"
                    if image_id in seen:
                        raise BadSampleError("duplicate image_id")
                    seen.add(image_id)
                    yield self._sample(file, row, image_id)
                except BadSampleError as error:
                    yield BadSample(file.path, name, error.reason)
        yield from self.bad

    def _sample(self, file: DialogFile, row: dict, image_id: int) -> ImportedSample:
        """The sample of a dialog; raises BadSampleError if the dialog is damaged or has no image."""
        caption, rounds = field(row, "caption", str), field(row, "dialog", list)
        if not rounds:
            raise BadSampleError("empty dialog")
        dialog = [self._round(file, one, image_id, number, len(rounds)) for number, one in enumerate(rounds, start=1)]
        places = [f"{folder}{name.format(image_id)}" for name in NAMES for folder in FOLDERS]
        image, extension = read_image(self.folder, *places)
        info = {"uid": f"visdial-{image_id}", "image_id": image_id, "caption": caption.strip(), "dialog": dialog}
        if file.split:
            info["split"] = file.split
        return ImportedSample(f"{image_id:012d}", image, extension, [caption.strip()], info)

    def _round(self, file: DialogFile, row: Any, image_id: int, number: int, last: int) -> dict[str, Any]:
        """A round with its texts; raises BadSampleError if it is damaged.

        Args:
            number, last: of this and of the last round, from 1; in the test split only the last one has no answer.
        """
        found: dict[str, Any] = {"question": _pooled(file.questions, field(row, "question", int))}
        options, right = row.get("answer_options"), row.get("gt_index")
        if options is not None and not (isinstance(options, list) and options):
            raise BadSampleError("bad row")
        if row.get("answer") is not None:
            found["answer"] = _pooled(file.answers, field(row, "answer", int))
        elif number < last or options is None:
            raise BadSampleError("question without an answer")
        if options is None:
            return found
        found["options"] = [_pooled(file.answers, one) for one in options]
        if right is not None:
            _check_index(options, right)
            if found.setdefault("answer", found["options"][right]) != found["options"][right]:
                raise BadSampleError("gt_index is not the answer")
            found["gt_index"] = right
            self._keep_options(found)
        if (image_id, number) in self.dense:
            found["relevance"] = self.dense[image_id, number].relevance
        return found

    def _keep_options(self, found: dict[str, Any]) -> None:
        """Shorten the options of a round to `options`; the true one stays, in its place or as the last."""
        options, right = found["options"], found["gt_index"]
        if self.options is None or len(options) <= self.options:
            return
        place = min(right, self.options - 1)
        others = options[:right] + options[right + 1 :]
        found["options"] = [*others[:place], options[right], *others[place : self.options - 1]]
        found["gt_index"] = place

    def _add_dense(self, path: str, rows: Any) -> None:
        """Read dense annotations: [{image_id, round_id, gt_relevance or relevance: [a number for each option]}]."""
        for number, row in enumerate(listed(path, rows, "rows"), start=1):
            try:
                place = field(row, "image_id", int), field(row, "round_id", int)
                values = row.get("gt_relevance", row.get("relevance"))
                if not isinstance(values, list) or not all(_is_share(one) for one in values):
                    raise BadSampleError("bad row")
                if place in self.dense:
                    raise BadSampleError("duplicate round_id")
                self.dense[place] = DenseRow(path, number, [float(one) for one in values])
            except BadSampleError as error:
                self.bad.append(BadSample(path, f"row {number}", error.reason))

    def _check_dense(self, files: list[str]) -> None:
        """Move the dense annotations without a round to the bad rows; raises UserError if none has one."""
        if not self.files:
            raise UserError(f"{', '.join(files) or 'The call'} has no dialogs; add visdial_1.0_val.json or the like.")
        if self.dense and self.options is not None:
            raise UserError("Dense annotations are for all options of a round; leave --options out.")
        sizes = {place: size for file in self.files for place, size in _option_counts(file.dialogs)}
        lost = [place for place in self.dense if place not in sizes]
        if lost and len(lost) == len(self.dense):
            raise UserError(
                f"{self.dense[lost[0]].path} is of another split: none of its rows belongs to a dialog of these files; "
                "name the dense annotations of the same split."
            )
        for place in list(self.dense):
            if len(self.dense[place].relevance) != sizes.get(place):
                dense = self.dense.pop(place)
                reason = "no such round" if place not in sizes else "relevance does not fit the options"
                self.bad.append(BadSample(dense.path, f"row {dense.row}", reason))


def _option_counts(dialogs: list[Any]) -> Iterator[tuple[tuple[Any, int], int]]:
    """The number of options of each round that has some, by image_id and round_id (from 1)."""
    for row in dialogs:
        rounds = row.get("dialog") if isinstance(row, dict) else None
        for number, one in enumerate(rounds if isinstance(rounds, list) else [], start=1):
            if (
                isinstance(row.get("image_id"), int)
                and isinstance(one, dict)
                and isinstance(one.get("answer_options"), list)
            ):
                yield (row["image_id"], number), len(one["answer_options"])


def _dialog_file(path: str, values: dict) -> DialogFile:
    """The parts of a file of dialogs; raises UserError if one is missing or is no list."""
    data = values["data"]
    questions, answers, dialogs = (listed(path, data.get(name), name) for name in ("questions", "answers", "dialogs"))
    split = values.get("split")
    return DialogFile(path, split if isinstance(split, str) else "", questions, answers, dialogs)


def _pooled(pool: list, number: Any) -> str:
    """A text of a pool; raises BadSampleError if there is none of this number."""
    _check_index(pool, number)
    if not isinstance(pool[number], str):
        raise BadSampleError("bad row")
    return pool[number]


def _check_index(values: list, number: Any) -> None:
    """Raise BadSampleError unless a list has an entry of this number."""
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(values):
        raise BadSampleError("index out of the pool")


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
