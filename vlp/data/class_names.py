"""Names and numbers of classes and prompt templates, as CLIP_benchmark keeps them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSampleError
from vlp.errors import UserError
from vlp.files import read_text

NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TYPE_FILE = "dataset_type.txt"
COUNT_FILE = "nshards.txt"  # of a split
CLASS_KEY = "cls"  # of a class in the JSON of samples, unless another is named
PLACE = re.compile(r"\{c?\}")  # of the name in a template
LONGEST_NUMBER = 9  # digits of a class, or of a number of shards
BAD_CLASS, NO_CLASS, SEVERAL_CLASSES = "bad class", "no class", "several classes"  # reasons of skipped images


def check_template(template: str) -> str:
    """The template itself; raises UserError if it has no place ({c} or {}) for the name of a class."""
    if not PLACE.search(template):
        raise UserError(f"The template {template!r} has no {{}} for the name of the class.")
    return template


def fill_template(template: str, name: str) -> str:
    """The text of a class: its name in place of {c} or {}."""
    return PLACE.sub(lambda _: name, template)


def read_names(path: str | Path) -> list[str]:
    """The names of classes, one a line; line N names class N.

    Raises:
        UserError: the file is missing or unreadable, or it has no names, or an empty one.
    """
    names = [line.strip() for line in read_text(path, "file of class names").rstrip("\n").split("\n")]
    if not any(names):
        raise UserError(f"{path} has no class names; write one a line.")
    if not all(names):
        raise UserError(f"{path}, line {names.index('') + 1} is empty; each line must name a class.")
    return names


def read_templates(path: str | Path) -> list[str]:
    """Prompt templates, one a line, with {c} or {} where the name of the class goes; empty lines are left out.

    Raises:
        UserError: the file is missing or unreadable, has no template, or one without a place for the name.
    """
    templates = [line.strip() for line in read_text(path, "file of templates").split("\n") if line.strip()]
    if not templates:
        raise UserError(f"{path} has no templates; write one a line, such as: a photo of a {{}}")
    return [check_template(template) for template in templates]


def repeated(names: list[str]) -> list[str]:
    """The names that several classes have; such classes cannot be told apart by their names."""
    return [name for name, count in Counter(names).items() if count > 1]


def read_class(label: Any, classes: int | None) -> int:
    """The number of a class.

    Args:
        label: a whole number, or its digits as text or bytes; None where an image has no class.
        classes: there are classes 0 to `classes` - 1; None where the number of classes is unknown.

    Raises:
        BadSampleError: there is no class, there are several (a multi-label data set), or it is out of range.
    """
    if isinstance(label, bytes):
        label = label.decode("ascii", "replace")
    if label is None or label == "":
        raise BadSampleError(NO_CLASS)
    if isinstance(label, list) or (isinstance(label, str) and label.strip().startswith("[")):
        raise BadSampleError(SEVERAL_CLASSES)
    digits = str(label).strip()
    if isinstance(label, (bool, float, dict)) or not digits.isdecimal() or len(digits) > LONGEST_NUMBER:
        raise BadSampleError(BAD_CLASS)
    if classes is not None and int(digits) >= classes:
        raise BadSampleError(BAD_CLASS)
    return int(digits)
