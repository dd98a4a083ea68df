"""Lists of videos with captions or questions, as the tests of MSRVTT and MSVD have them, and the files they name."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlp.data.bad_samples import NO_TEXT, BadSample, BadSampleError, BadSamples
from vlp.data.transforms import clean_caption
from vlp.data.video import VIDEO_EXTENSIONS, is_video
from vlp.errors import UserError
from vlp.files import files_below, read_text

NAMES = ("clip_name", "video", "video_id")  # the fields that name a video
IDS = ("question_id", "id")  # the fields that number a question
NUMBERED = ("video{}", "vid{}")  # the files of MSRVTT and MSVD, whose lists may give only the number

Row = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """A question with its answer; `number` is its id in the list, or its row from 1."""

    number: int | str
    text: str
    answer: str


@dataclass
class ListedVideo:
    """A video that a list names, with its captions or questions in the order of the list."""

    name: str
    path: str
    captions: list[str]
    questions: list[Question]


def read_video_captions(path: str, folder: str) -> tuple[list[ListedVideo], Counter[str]]:
    """The videos of a list with their captions: [{clip_name or video, caption}], as JSON or JSON lines.

    Several rows may name one video, and a caption may be a list of captions.

    Args:
        folder: the folder of the files, which may be in subfolders. Names are given with or without extension.

    Returns:
        The videos in the order of the list, and the rows that are skipped and named in the log, by reason: those of
        missing videos, without a caption, or equal to an earlier row.

    Raises:
        UserError: there is no such list or folder, or the list is of another kind or empty.
    """

    def read(row: Row, video: ListedVideo) -> None:
        given = row.get("caption")
        texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        usable = [text for text in texts if isinstance(text, str) and clean_caption(text)]
        if not usable:
            raise BadSampleError(NO_TEXT)
        new = [text for text in dict.fromkeys(usable) if text not in video.captions]
        if not new:
            raise BadSampleError("duplicate row")
        video.captions += new

    videos, skipped = _read(path, folder, "caption", read)
    return [video for video in videos if video.captions], skipped


def read_video_questions(path: str, folder: str) -> tuple[list[ListedVideo], Counter[str]]:
    """The videos of a list with their questions: [{video, question, answer}], as JSON or JSON lines.

    Arguments, result and errors as in `read_video_captions`; rows without a question or an answer, and those with the
    id of an earlier row, are skipped.
    """
    known: set[int | str] = set()

    def read(row: Row, video: ListedVideo) -> None:
        text, answer = row.get("question"), row.get("answer")
        if not isinstance(text, str) or not clean_caption(text):
            raise BadSampleError("no question")
        if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
            raise BadSampleError("no answer")
        number = next((row[field] for field in IDS if isinstance(row.get(field), int | str)), f"row {row['row']}")
        if number in known:
            raise BadSampleError("duplicate question id")
        known.add(number)
        video.questions.append(Question(number, text, str(answer)))

    videos, skipped = _read(path, folder, "question", read)
    return [video for video in videos if video.questions], skipped


def _read(
    path: str, folder: str, wanted: str, read: Callable[[Row, ListedVideo], None]
) -> tuple[list[ListedVideo], Counter[str]]:
    """Add each row to its video by `read`, which raises BadSampleError for bad rows."""
    files = _video_files(folder)
    bad = BadSamples(max_share=1.0)
    rows = list(_rows(path, bad))
    if not any(wanted in row and any(field in row for field in NAMES) for row in rows):
        raise UserError(f"{path} does not list videos: no row has a {wanted!r} and one of {', '.join(NAMES)}.")
    videos: dict[str, ListedVideo] = {}
    for row in rows:
        name = _name(row)
        try:
            file = _find(files, row)
            video = videos.setdefault(file, ListedVideo(name, file, [], []))
            read(row, video)
        except BadSampleError as error:
            bad.add(BadSample(path, f"row {row['row']} {name}", error.reason))
    return list(videos.values()), bad.counts


def _rows(path: str, bad: BadSamples) -> Iterator[Row]:
    """The rows of a JSON list or of JSON lines, with their numbers from 1 as `row`."""
    text = read_text(path, "list of videos")
    try:
        rows = json.loads(text)
        parsed = [rows] if isinstance(rows, dict) else rows
    except (ValueError, RecursionError):
        parsed = [_parse(line) for line in text.split("\n") if line.strip()]
    if not isinstance(parsed, list) or not any(isinstance(row, dict) for row in parsed):
        raise UserError(f"{path} is neither a JSON list of rows nor JSON lines.")
    for number, row in enumerate(parsed, start=1):
        if isinstance(row, dict):
            yield row | {"row": number}
        else:
            bad.add(BadSample(path, f"row {number}", "bad json"))


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _video_files(folder: str) -> dict[str, str]:
    """The video files in a folder and its subfolders, by relative path and name, with and without extension."""
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder of videos {folder}; name it with --videos.")
    files: dict[str, str] = {}
    found = (place / name for place, names in files_below(folder).items() for name in names if is_video(name))
    for path in sorted(path for path in found if path.is_file()):
        inside = path.relative_to(folder)
        for name in (inside.as_posix(), inside.with_suffix("").as_posix(), path.name, path.stem):
            files.setdefault(name, str(path))
    if not files:
        raise UserError(f"{folder} has no video files ({', '.join(VIDEO_EXTENSIONS)}).")
    return files


def _name(row: Row) -> str:
    """The name of the video of a row; empty if it has none."""
    return next((str(row[field]) for field in NAMES if isinstance(row.get(field), str | int)), "")


def file_names(row: Row) -> list[str]:
    """What the file of the video of a row may be called, with its folders and its extension or without."""
    name = _name(row)
    numbered = [form.format(name) for form in NUMBERED if name.isdigit()]
    return [name, name.removeprefix("./"), *numbered] if name else []


def _find(files: dict[str, str], row: Row) -> str:
    """The file of the video of a row; raises BadSampleError if there is none."""
    names = file_names(row)
    for one in names:
        if one in files:
            return files[one]
    raise BadSampleError("missing file" if names else "bad row")
