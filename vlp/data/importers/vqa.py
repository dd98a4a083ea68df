"""VQA and Visual Genome: questions about images, an image once with all its questions."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import likely_places
from vlp.data.importers.annotation_rows import COCO_NUMBER, listed
from vlp.data.importers.annotation_rows import field as required
from vlp.data.importers.write import ImportedSample, make_key, read_image
from vlp.errors import UserError

KINDS = (recognise.VQA_QUESTIONS, recognise.VQA_ANSWERS, recognise.BLIP_VQA, recognise.VG_QUESTIONS)
COCO_FOLDERS = ("train2014", "val2014", "test2015")
VG_FOLDERS = ("VG_100K", "VG_100K_2")
VG_WEIGHT = 0.2  # of a question of Visual Genome in BLIP's training, which has one answer instead of ten


@dataclass
class AskedImage:
    """An image with its questions, in the form of a sample's JSON.

    Attributes:
        places: where its file may be, the likeliest first.
        source: the file that lists its first question.
    """

    places: tuple[str, ...]
    source: str
    info: dict[str, Any]
    questions: list[dict[str, Any]] = field(default_factory=list)


class Vqa:
    """An `Importer` of images with their questions. Bad questions and annotations come after the images."""

    def __init__(self, files: list[str], images: str):
        """Read the annotation files.

        Args:
            files: official questions, and the annotations of those that have them; BLIP's vqa_train.json, vg_qa.json
                and the like; Visual Genome's question_answers.json; all that belongs into one data set.
            images: the folder of the images, or the one above train2014, val2014, test2015, VG_100K and VG_100K_2.

        Raises:
            UserError: a file or folder is missing, unreadable or of another kind, or annotations belong to none of the
                questions.
        """
        if not Path(images).is_dir():
            raise UserError(f"There is no image folder {images}; name it with --images.")
        self.folder = Path(images)
        self.images: dict[str, AskedImage] = {}  # by the first place
        self.bad: list[BadSample] = []
        self.numbers: set[int | str] = set()  # question ids
        read = [(path, *recognise.read_annotations(path, KINDS, "vqa")) for path in files]
        annotations = self._annotations([(path, one) for path, kind, one in read if kind is recognise.VQA_ANSWERS])
        for path, kind, values in read:
            if kind is recognise.VQA_QUESTIONS:
                self._add_official(path, values, annotations)
            elif kind is recognise.BLIP_VQA:
                self._each(path, values, "row", lambda row, path=path: self._add_blip(path, row))
            elif kind is recognise.VG_QUESTIONS:
                self._each(path, values, "image", lambda row, path=path: self._add_visual_genome(path, row))
        self._name_unused(annotations)

    def __len__(self) -> int:
        return len(self.images) + len(self.bad)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for image in self.images.values():
            name = image.places[0].rpartition("/")[2]
            try:
                data, extension = read_image(self.folder, *image.places)
            except BadSampleError as error:
                lost = f"{image.places[0]} with {len(image.questions)} questions"
                yield BadSample(image.source, lost, error.reason)
                continue
            info = {"uid": name, **image.info, "questions": image.questions}
            yield ImportedSample(make_key(name), data, extension, [], info)
        yield from self.bad

    def _each(self, path: str, rows: list, what: str, add: Any) -> None:
        """Call `add` with each row; bad ones are skipped, named by their question id or their number from 1."""
        for number, row in enumerate(rows, start=1):
            try:
                add(row)
            except BadSampleError as error:
                known = isinstance(row, dict) and row.get("question_id") is not None
                name = f"question_id {row['question_id']}" if known else f"{what} {number}"
                self.bad.append(BadSample(path, name, error.reason))

    def _annotations(self, files: list[tuple[str, Any]]) -> "dict[int, Annotation]":
        found: dict[int, Annotation] = {}

        def add(path: str, row: Any) -> None:
            number = required(row, "question_id", int)
            if number in found:
                raise BadSampleError("duplicate annotation")
            found[number] = Annotation(path, row)

        for path, values in files:
            rows = listed(path, values["annotations"] if isinstance(values, dict) else values, "annotations")
            self._each(path, rows, "annotation", lambda row, path=path: add(path, row))
        return found

    def _add_official(self, path: str, values: dict, annotations: "dict[int, Annotation]") -> None:
        """Add {questions: [{image_id, question, question_id}], data_subtype}; a test split has no annotations."""
        rows = listed(path, values["questions"], "questions")
        split = str(values.get("data_subtype", ""))
        answered = any(isinstance(row, dict) and row.get("question_id") in annotations for row in rows)

        def add(row: Any) -> None:
            number, image_id = required(row, "question_id", int), required(row, "image_id", int)
            facts: dict[str, Any] = {}
            if answered:
                annotation = annotations.get(number)
                if annotation is None:
                    raise BadSampleError("question without an answer")
                annotation.used = True
                facts = _answers_of(annotation.row, image_id)
            self._add(path, _coco_places(image_id, split), image_id, required(row, "question", str), number, facts)

        self._each(path, rows, "question", add)

    def _add_blip(self, path: str, row: Any) -> None:
        """Add a row {image, question, question_id, answer, dataset}; a test split has no answers."""
        image, answers = required(row, "image", str), row.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        facts: dict[str, Any] = {}
        if answers is not None:
            facts["answers"] = _strings(answers)
            if row.get("dataset") == "vg":
                facts["weight"] = VG_WEIGHT
        base, number = image.rpartition("/")[2], COCO_NUMBER.search(image)
        folders = COCO_FOLDERS if number else VG_FOLDERS
        places = (*likely_places(image), *(f"{folder}/{base}" for folder in folders))
        image_id = int(number[1]) if number else None
        self._add(
            path, places, image_id, required(row, "question", str), required(row, "question_id", (int, str)), facts
        )

    def _add_visual_genome(self, path: str, row: Any) -> None:
        """Add {id, qas: [{question, answer, qa_id}]}."""
        image_id = required(row, "id", int)
        places = (f"{image_id}.jpg", *(f"{folder}/{image_id}.jpg" for folder in VG_FOLDERS))

        def add(one: Any) -> None:
            number = f"vg-{required(one, 'qa_id', int)}"  # VQA has numbers of its own
            facts = {"answers": _strings([required(one, "answer", str)]), "weight": VG_WEIGHT}
            self._add(path, places, image_id, required(one, "question", str), number, facts)

        self._each(path, required(row, "qas", list), f"question of image {image_id}", add)

    def _add(
        self,
        path: str,
        places: tuple[str, ...],
        image_id: int | None,
        question: str,
        number: int | str,
        facts: dict[str, Any],
    ) -> None:
        if not question.strip():
            raise BadSampleError("no question")
        if number in self.numbers:
            raise BadSampleError("duplicate question_id")
        self.numbers.add(number)
        info = {} if image_id is None else {"image_id": image_id}
        image = self.images.setdefault(places[0], AskedImage(places, path, info))
        image.questions.append({"question": question.strip(), "question_id": number, **facts})

    def _name_unused(self, annotations: "dict[int, Annotation]") -> None:
        """Name the annotations without a question; raises UserError if a file has no others."""
        by_file: dict[str, list[int]] = {}
        for number, one in annotations.items():
            by_file.setdefault(one.path, []).append(number)
        for path, numbers in by_file.items():
            unused = [number for number in numbers if not annotations[number].used and number not in self.numbers]
            if len(unused) == len(numbers):
                raise UserError(
                    f"{path} belongs to none of the questions, as if it was of another split; import it with the "
                    "questions file of its split."
                )
            self.bad += [BadSample(path, f"question_id {number}", "annotation without a question") for number in unused]


@dataclass
class Annotation:
    """The answers of a question, the file they are from, and whether a question was found for them."""

    path: str
    row: dict[str, Any]
    used: bool = False


def _answers_of(row: dict, image_id: int) -> dict[str, Any]:
    """What a question takes from its annotation; raises BadSampleError if they do not fit together."""
    if row.get("image_id", image_id) != image_id:
        raise BadSampleError("annotation of another image")
    given = row.get("answers")
    if given is None:
        given = [{"answer": required(row, "multiple_choice_answer", str)}]
    if not isinstance(given, list):
        raise BadSampleError("bad row")
    answers = _strings([required(one, "answer", str) for one in given])
    kinds = {name: row[name] for name in ("question_type", "answer_type") if isinstance(row.get(name), str)}
    return {"answers": answers, **kinds}


def _strings(answers: Any) -> list[str]:
    """Answers of annotators, stripped, "" of those who gave none; raises BadSampleError if nobody gave one."""
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise BadSampleError("bad row")
    stripped = [one.strip() for one in answers]
    if not any(stripped):
        raise BadSampleError("question without an answer")
    return stripped


def _coco_places(image_id: int, split: str) -> tuple[str, ...]:
    """Where the file of one of COCO's images may be; test-dev2015 is a part of test2015."""
    folders = sorted(COCO_FOLDERS, key=lambda name: name != split.replace("-dev", ""))
    names = [f"COCO_{folder}_{image_id:012d}.jpg" for folder in folders]
    pairs = zip(folders, names, strict=True)
    return (*(place for folder, name in pairs for place in (f"{folder}/{name}", name)), f"{image_id:012d}.jpg")
