"""Hugging Face data sets to shards; the rows of an image become one sample with all their captions or questions."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.dataset_columns import guess_columns, texts_of
from vlp.data.dataset_source import ROWS_AT_ONCE, image_bytes, select_columns, unbatched
from vlp.data.image_decoding import decode_image
from vlp.data.importers.write import ImportedSample, make_key
from vlp.data.open_dataset import SPLIT_COLUMN, dataset_errors, open_dataset
from vlp.errors import UserError

BEGINNINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}  # what image files begin with

QUESTION = ("question", "question_id")  # the columns of a data set of questions; it may have these, too:
ANSWERS = ("answers", "answer", "multiple_choice_answer", "question_type", "answer_type")

log = logging.getLogger("vlp")


class HuggingFaceDataset:
    """The images of a split of a data set. The other columns are kept in the sample's JSON.

    The rows of a data set of questions (VQAv2's columns), of which the caller names no column of texts, become the
    `questions` of their image, as `vlp data import vqa` writes them.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        image: str = "",
        text: str = "",
        group_by: str = "",
        need_text: bool = True,
    ):
        """Read the captions of all rows, without the images.

        Args:
            name: a folder, a parquet file, or a name of the hub.
            split: a split, several with + between them, or values of the column `split`.
            image, text: the columns; empty: guessed, and the log says which.
            group_by: the column with equal values for the rows of one image; empty: guessed.
            need_text: whether a data set without a column of texts is refused.

        Raises:
            UserError: there is no such data set or split, a column cannot be guessed, or there is no row.
            WorkError: the hub cannot be reached.
        """
        self.opened = open_dataset(name, split)
        features = self.opened.features
        self.asks = not text and all(column in features for column in QUESTION)
        need_text = need_text and not self.asks
        self.columns = guess_columns(features, name, image, text, need_text, advice="give --{}")
        if group_by and group_by not in features:
            raise UserError(f"{name} has no column {group_by!r} to group by; its columns are {', '.join(features)}.")
        self.group = group_by or self.columns.group
        self.asked = [one for one in (*QUESTION, *ANSWERS) if one in features] if self.asks else []
        left_out = {self.columns.image, *self.asked}
        self.kept = [column for column, kind in features.items() if column not in left_out and _is_plain(kind)]
        self.questions: dict[str, list[dict[str, Any]]] = {}  # of each image
        self.bad: list[BadSample] = []  # questions
        self.captions: dict[str, dict[str, None]] = {}  # of each image, each once, in the order of the rows
        self._read_captions()
        log.info(
            "%s: image: %s, text: %s, a sample for each %s",
            *(name, self.columns.image, self.columns.text or "none", self.group or "row"),
        )
        if not self.captions:
            raise UserError(f"{name} has no rows in the split {split!r}; name another with --split.")

    def __len__(self) -> int:
        return len(self.captions) + len(self.bad)

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        written: set[str] = set()
        names = [self.columns.image, *self.kept, self.group, self._key, self.columns.text.partition(".")[0]]
        for number, row in self._rows(names):
            name = self._name(number, row)
            if name in written:
                continue
            written.add(name)
            try:
                yield self._sample(name, row)
            except BadSampleError as error:
                yield BadSample(self.opened.name, name, error.reason)
        yield from self.bad

    def _sample(self, name: str, row: dict[str, Any]) -> ImportedSample:
        image = image_bytes(row[self.columns.image], self.opened)
        extension = next((kind for start, kind in BEGINNINGS.items() if image.startswith(start)), "")
        if not extension:  # shards hold no other formats
            file = io.BytesIO()
            decode_image(image).save(file, "PNG")
            image, extension = file.getvalue(), "png"
        texts = self.columns.text.partition(".")[0]
        info = {column: row[column] for column in self.kept if column != texts and row[column] is not None}
        info = json.loads(json.dumps(info, default=str))  # dates and the like become strings
        if self.asks:
            info["questions"] = self.questions.get(name, [])
        return ImportedSample(make_key(name), image, extension, list(self.captions[name]), info)

    def _read_captions(self) -> None:
        """Collect the captions of each image; keys that are not unique are replaced by row numbers."""
        self._key = "" if self.group else self.columns.key  # the column of names that must be unique
        names = [self.group, self._key, self.columns.text.partition(".")[0], *self.asked]
        rows = self._rows(names if any(names) else [self.columns.image])
        numbers: set[Any] = set()
        for number, row in rows:
            name = self._name(number, row)
            if self._key and name in self.captions:
                log.info("%s: the column %s is not unique; keys are row numbers", self.opened.name, self._key)
                self.columns = replace(self.columns, key="")
                self.captions.clear()
                self.questions.clear()
                self.bad.clear()
                self._read_captions()
                return
            self.captions.setdefault(name, {}).update(dict.fromkeys(texts_of(row, self.columns.text)))
            if self.asks:
                self._add_question(name, row, numbers)

    def _add_question(self, name: str, row: dict[str, Any], numbers: set[Any]) -> None:
        """Add a question to those of its image; `numbers` are the ids before it."""
        number, text = row["question_id"], row["question"]
        if number is None or not isinstance(text, str) or not text.strip() or number in numbers:
            reason = "duplicate question_id" if number in numbers else "no question"
            self.bad.append(BadSample(self.opened.name, f"question_id {number}", reason))
            return
        numbers.add(number)
        given = next((row[one] for one in ANSWERS[:3] if row.get(one)), [])
        answers = [one["answer"] if isinstance(one, dict) else one for one in _listed(given)]
        facts = {"answers": answers} if answers else {}
        kinds = {one: row[one] for one in ANSWERS[3:] if row.get(one)}
        self.questions.setdefault(name, []).append({"question": text, "question_id": number, **facts, **kinds})

    def _name(self, number: int, row: dict[str, Any]) -> str:
        """What names the image of a row."""
        column = self.group or self._key
        value = row[column] if column else None
        return f"{number:09d}" if value in (None, "") else str(value)

    def _rows(self, names: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The numbers and the rows of the split, with some columns."""
        wanted = [SPLIT_COLUMN] if self.opened.wanted else []
        columns = list(dict.fromkeys([*filter(None, names), *wanted]))
        with dataset_errors(self.opened.name):
            rows = select_columns(self.opened, columns, self.columns.image)
            for number, row in enumerate(one for batch in rows.iter(ROWS_AT_ONCE) for one in unbatched(batch)):
                if not wanted or row[SPLIT_COLUMN] in self.opened.wanted:
                    yield number, row


def _listed(answers: Any) -> list[Any]:
    """Answers as a list; a list of structs may come as a struct of lists."""
    if isinstance(answers, dict):
        return list(answers.get("answer") or [])
    return answers if isinstance(answers, list) else [answers]


def _is_plain(kind: Any) -> bool:
    """Whether JSON can hold the values of a column: no images, sounds, videos or bytes."""
    if isinstance(kind, dict):
        return "bytes" not in kind and all(map(_is_plain, kind.values()))
    if isinstance(kind, list):
        return all(map(_is_plain, kind))
    inner = getattr(kind, "feature", None)
    if inner is not None:
        return _is_plain(inner)
    return hasattr(kind, "dtype") and type(kind).__name__ in ("Value", "ClassLabel") and "binary" not in kind.dtype
