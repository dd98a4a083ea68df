"""Recognise other projects' annotation files by their keys, so that an importer can refuse the wrong ones by name."""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from vlp.errors import UserError
from vlp.files import read_text

log = logging.getLogger("vlp")

MOST_BYTES = 2**33  # of an annotation file


@dataclass(frozen=True)
class Kind:
    """A kind of annotation file, and the commands `vlp data import ...` that take it."""

    what: str
    commands: tuple[str, ...] = ()


COCO = Kind("COCO's captions", ("coco",))
KARPATHY_COCO = Kind("Karpathy's annotations of COCO", ("coco",))
KARPATHY_FLICKR8K = Kind("Karpathy's annotations of Flickr8k", ("flickr8k",))
KARPATHY_FLICKR30K = Kind("Karpathy's annotations of Flickr30k", ("flickr30k",))
BLIP_CAPTIONS = Kind("BLIP's captions", ("coco", "flickr8k", "flickr30k", "vg", "conceptual"))
NOCAPS = Kind("NoCaps's captions", ("nocaps",))
BLIP_NOCAPS = Kind("BLIP's list of NoCaps's images", ("nocaps",))
VG_REGIONS = Kind("Visual Genome's region descriptions", ("vg",))
WEB_ROWS = Kind("rows with a URL and a caption", ("conceptual",))
SBU = Kind("the captions of SBU", ("conceptual",))
METADATA = Kind("the metadata of an image folder", ("folder",))
COCO_BOXES = Kind("COCO's boxes")
COCO_RESULTS = Kind("captions that a model generated, in COCO's format for results")
VG_OTHER = Kind("Visual Genome's objects, attributes or relationships")
VG_QUESTIONS = Kind("Visual Genome's questions", ("vqa",))
VQA_QUESTIONS = Kind("VQA's questions", ("vqa",))
VQA_ANSWERS = Kind("VQA's answers", ("vqa",))
BLIP_VQA = Kind("BLIP's VQA questions", ("vqa",))
ANSWER_LIST = Kind("a list of answers")
NLVR2 = Kind("NLVR2's sentences", ("nlvr2",))
VISDIAL = Kind("VisDial's dialogs", ("visdial",))
VISDIAL_DENSE = Kind("VisDial's dense annotations", ("visdial",))
VIDEO_CAPTIONS = Kind("captions of videos, for `vlp evaluate video-retrieval`")
VIDEO_QUESTIONS = Kind("questions about videos, for `vlp evaluate video-qa`")


def recognise(values: Any) -> Kind | None:
    """The kind of an annotation file from its parsed JSON; None for an unknown one."""
    if isinstance(values, dict):
        return _recognise_object(values)
    if isinstance(values, list):
        return _recognise_rows(values)
    return None


def read_annotations(path: str, kinds: Collection[Kind], command: str) -> tuple[Kind, Any]:
    """The kind of a JSON file and its content; that of JSON lines is the list of its lines.

    Args:
        kinds: those that the importer takes.
        command: the name of the import command, for errors.

    Raises:
        UserError: the file is missing or unreadable, is no JSON, or is of another kind.
    """
    return read_kinds(path, kinds, f"data import {command}")


def read_kinds(path: str, kinds: Collection[Kind], command: str, what: str = "annotation file") -> tuple[Kind, Any]:
    """`read_annotations` for any command of vlp, such as "evaluate captions"; `what` the file is to that command."""
    text = read_text(path, what, MOST_BYTES)
    wanted = f"`vlp {command}` takes {' or '.join(one.what for one in kinds)}"
    values = _parse_json(path, text, wanted)
    kind = recognise(values)
    if kind in kinds and kind is not None:
        log.info("%s holds %s", path, kind.what)
        return kind, values
    if kind is None:
        raise UserError(f"{path} is of an unknown kind; {wanted}.")
    commands = " or ".join(f"`vlp data import {name}`" for name in kind.commands)
    remedy = f"import it with {commands}" if commands else "no import command takes it"
    raise UserError(f"{path} holds {kind.what}, and {wanted}; {remedy}.")


def _parse_json(path: str, text: str, wanted: str) -> Any:
    """The value of a JSON text; of JSON lines, the list of the values of its lines. Raises UserError."""
    if not text.strip():
        raise UserError(f"{path} is empty; {wanted}.")
    try:
        if path.lower().endswith(".jsonl") or _is_lines(text):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        problem = str(error) if isinstance(error, ValueError) else "too many nested brackets"
        raise UserError(f"{path} is not readable as JSON ({problem}); {wanted}.") from None


def _is_lines(text: str) -> bool:
    """Whether a text is JSON lines: its first line is an object, and another one follows; NLVR2's .json files are."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and rest.lstrip().startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _recognise_object(values: dict) -> Kind | None:
    images, annotations = _first_row(values.get("images")), _first_row(values.get("annotations"))
    if isinstance(values.get("data"), dict) and "dialogs" in values["data"]:
        return VISDIAL
    if "questions" in values:
        return VQA_QUESTIONS
    if "sentences" in images:
        return _recognise_karpathy(str(values.get("dataset", "")).lower(), images)
    if "answers" in annotations or "multiple_choice_answer" in annotations:
        return VQA_ANSWERS
    if "bbox" in annotations or "segments_info" in annotations:
        return COCO_BOXES
    if "domain" in images or "open_images_id" in images:
        return NOCAPS
    if "caption" in annotations or ("file_name" in images and not annotations):
        return COCO
    return SBU if "image_urls" in values and "captions" in values else None


def _recognise_karpathy(dataset: str, image: dict) -> Kind:
    kinds = {"coco": KARPATHY_COCO, "flickr8k": KARPATHY_FLICKR8K, "flickr30k": KARPATHY_FLICKR30K}
    return kinds.get(dataset) or (KARPATHY_COCO if "cocoid" in image else KARPATHY_FLICKR30K)


ROWS = (  # the keys of a row, which must all be there, and the kind; the first that fits
    (("images", "sentence"), NLVR2),
    (("sentence", "identifier"), NLVR2),
    (("question", "video"), VIDEO_QUESTIONS),
    (("question", "image"), BLIP_VQA),
    (("question", "image_id"), BLIP_VQA),
    (("question_type", "answers"), VQA_ANSWERS),
    (("regions",), VG_REGIONS),
    (("qas",), VG_QUESTIONS),
    (("objects",), VG_OTHER),
    (("attributes",), VG_OTHER),
    (("relationships",), VG_OTHER),
    (("round_id", "image_id"), VISDIAL_DENSE),
    (("clip_name", "caption"), VIDEO_CAPTIONS),
    (("video", "caption"), VIDEO_CAPTIONS),
    (("image", "img_id"), BLIP_NOCAPS),
    (("image",), BLIP_CAPTIONS),
    (("file_name",), METADATA),
    (("url",), WEB_ROWS),
    (("image_id", "caption"), COCO_RESULTS),
)


def _recognise_rows(values: list) -> Kind | None:
    if values and all(isinstance(one, str) for one in values[:100]):
        return ANSWER_LIST
    row = _first_row(values)
    return next((kind for keys, kind in ROWS if all(key in row for key in keys)), None)


def _first_row(rows: Any) -> dict:
    """The first object of a list; {} where there is none."""
    return next((row for row in rows if isinstance(row, dict)), {}) if isinstance(rows, list) else {}
