"""The columns of web-scale tables (LAION, LAION-COCO, COYO, DataComp, Recap-DataComp): texts, scores, joins."""

from collections.abc import Collection
from dataclasses import dataclass, field

import pyarrow as pa

from vlp.data.score_tables import SCHEMA, column_kind
from vlp.data.text_choice import SOURCES
from vlp.errors import UserError

JOINS = ("uid", "sha256", "key", "url")  # columns that name an image, the surest first
# Columns of texts in lower case: the source of the texts, and columns of their CLIP cosines, the best model's first.
TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("web", ("clip_l14_similarity_score", "clip_similarity_vitl14", "similarity", "clip_b32_similarity_score")),
    "caption": ("web", ("similarity",)),
    "org_caption": ("web", ("org_clip_score",)),
    "re_caption": ("synthetic", ("re_clip_score",)),
    "all_captions": ("synthetic", ("all_similarities",)),
    "top_caption": ("synthetic", ()),
    "syn_text": ("synthetic", ()),
}
RESERVED = {*SCHEMA.names, "words", "aspect", "shortest", "duplicate", "file_index", "file_row_number"}


@dataclass(frozen=True)
class TextColumn:
    """A column of texts, or of lists of texts; `clip` is the column of their CLIP cosines, "" where there is none."""

    name: str
    source: str
    clip: str = ""


@dataclass(frozen=True)
class TableColumns:
    """How the columns of tables are used.

    Attributes:
        join: the column that names the image; its rows and samples are matched by equal values.
        uid: the column of uids; "" where there is none.
        texts: the columns of texts, in the order in which an image's texts are listed.
        scores: the columns kept for rules, by their new names.
    """

    join: str
    uid: str = ""
    texts: list[TextColumn] = field(default_factory=list)
    scores: dict[str, str] = field(default_factory=dict)

    @property
    def read(self) -> list[str]:
        """The columns to read, besides `join`."""
        clips = [one.clip for one in self.texts if one.clip]
        uid = [self.uid] if self.uid else []
        return list(dict.fromkeys([*uid, *(one.name for one in self.texts), *clips, *self.scores.values()]))


def parse_texts(given: list[str]) -> dict[str, str]:
    """The entries of `--texts COLUMN=SOURCE` by column.

    Raises:
        UserError: an entry does not have this form.
    """
    texts = {}
    for one in given:
        column, _, source = one.rpartition("=")
        if not column or source not in SOURCES:
            raise UserError(f"--texts takes COLUMN=SOURCE, where SOURCE is one of {', '.join(SOURCES)}, not {one!r}.")
        texts[column] = source
    return texts


def possible_joins(schema: pa.Schema) -> dict[str, str]:
    """The columns of a table that may name an image: `JOINS` -> the column's own name."""
    by_name = {name.lower(): name for name in reversed(schema.names)}
    return {name: by_name[name] for name in JOINS if name in by_name}


def guess_columns(schema: pa.Schema, join: str, texts: dict[str, str], path: str) -> TableColumns:
    """Find out what the columns of a table mean by their names.

    Args:
        join: the column that names the image.
        texts: the sources of columns of texts that are named otherwise, or are of another source.
        path: of the table, for errors.

    Raises:
        UserError: a column of `texts` is missing or holds no texts.
    """
    by_name = {name.lower(): name for name in reversed(schema.names)}
    for name in texts:
        if name not in schema.names or _kind(schema.field(name).type) != "text":
            raise UserError(f"{path} has no column {name!r} of texts; its columns are {', '.join(schema.names)}.")
    guessed = {by_name[name]: source for name, (source, _) in TEXTS.items() if name in by_name}
    guessed = {name: source for name, source in guessed.items() if _kind(schema.field(name).type) == "text"}
    columns = []
    for name, source in (guessed | texts).items():
        clips = TEXTS.get(name.lower(), ("", ()))[1]
        clip = next((by_name[clip] for clip in clips if clip in by_name), "")
        columns.append(TextColumn(name, source, clip if clip and _fits(schema, name, clip) else ""))
    used = {join, *(name for name in schema.names if name.lower() in JOINS), *(one.name for one in columns)}
    scores = {}
    for one in schema:
        kind = "number" if pa.types.is_boolean(one.type) else column_kind(one.type)
        if one.name not in used and kind in ("number", "text"):
            scores[_free_name(one.name, by_name)] = one.name
    return TableColumns(join, by_name.get("uid", ""), columns, scores)


def _free_name(name: str, taken: Collection[str]) -> str:
    """A column's name in a score table. SQL ignores case, so LAION's WIDTH would be read as the table's own width.

    Args:
        taken: the names of the imported columns, in lower case.
    """
    free = name
    while free.lower() in RESERVED or (free != name and free.lower() in taken):
        free = f"original_{free}"
    return free


def _kind(type: pa.DataType) -> str:
    """The kind of a column's values, or of the items where they are lists."""
    return column_kind(type.value_type if _is_list(type) else type)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type)


def _fits(schema: pa.Schema, text: str, clip: str) -> bool:
    """Whether a column of cosines has a number for each text: both hold lists, or neither does."""
    one, other = schema.field(text).type, schema.field(clip).type
    return _is_list(one) == _is_list(other) and _kind(other) == "number"
