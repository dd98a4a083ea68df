"""The columns of a Hugging Face data set: which hold the image, the texts and the key, and what their values mean."""

from dataclasses import dataclass
from typing import Any

from vlp.errors import UserError

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pil_image")
TEXTS = (
    *("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "sentences_raw", "annotations_captions"),
    *("caption_text", "raw", "answer", "alt_text", "description", "descriptions", "title", "json"),
)
FIELDS = ("raw", "caption", "captions", "text", "sentence", "answer", "value")  # of a struct that holds a text
GROUPS = ("cocoid", "image_id", "img_id", "imgid", "image_open_images_id")  # equal for the rows of one image
LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
KEYS = ("__key__", "key", "uid", *GROUPS, "image_file_name", "file_name", "filename", "id", "identifier", "question_id")


@dataclass(frozen=True)
class DatasetColumns:
    """Columns of a data set by what they hold. `text` may name a field, as in `json.caption`.

    Attributes:
        text: "" for images without texts.
        key: "" for row numbers.
        label: the class of the image; "" where classes are not asked for.
    """

    image: str
    text: str
    key: str = ""
    label: str = ""

    @property
    def group(self) -> str:
        """The key where its values are known to name images, so that rows with equal ones share the image; else ""."""
        return self.key if self.key.lower() in GROUPS else ""

    @property
    def read(self) -> list[str]:
        """The columns to read."""
        names = (self.image, self.text.partition(".")[0], self.key, self.label)
        return list(dict.fromkeys(name for name in names if name))


def guess_columns(
    features: dict[str, Any],
    name: str,
    image: str,
    text: str,
    need_text: bool = True,
    advice: str = "set {} to its name",
) -> DatasetColumns:
    """Choose the columns by their types and names.

    Args:
        features: the type of each column, as `datasets` gives them.
        name: of the data set, for errors.
        image, text: the columns as the user names them; empty: guessed.
        need_text: whether a data set without texts is refused.
        advice: how the caller gives a column, with {} for "image" or "text".

    Raises:
        UserError: a column cannot be guessed, or a given one is missing or of another type.
    """
    listed = ", ".join(features)
    for what, given, fits in (("image", image, _may_be_image), ("text", text, _holds_text)):
        column = given.partition(".")[0] if what == "text" else given
        if given and column not in features:
            raise UserError(f"{name} has no column {column!r} for {what}; its columns are {listed}.")
        if given and not fits(features[column]):
            raise UserError(f"The column {given!r} of {name} holds no {what}; its columns are {listed}.")
    if not image:
        certain = [column for column, kind in features.items() if _is_image(kind)]
        named = [column for column in _by_name(features, IMAGES) if _may_be_bytes(features[column])]
        found = certain if len(certain) == 1 else [column for column in named if column in certain or not certain][:1]
        if not found:
            unknown = f"Which column of {name} holds the image cannot be guessed (columns: {listed})"
            raise UserError(f"{unknown}; {advice.format('image')}.")
        image = found[0]
    if not text and need_text:
        found = [column for column in _by_name(features, TEXTS) if column != image and _holds_text(features[column])]
        if not found:
            unknown = f"Which column of {name} holds the texts cannot be guessed (columns: {listed})"
            raise UserError(f"{unknown}; {advice.format('text')}.")
        text = found[0]
    keys = [column for column in _by_name(features, KEYS) if _is_scalar(features[column])]
    return DatasetColumns(image, text, keys[0] if keys else "")


def guess_label(features: dict[str, Any], name: str, label: str) -> str:
    """Choose the column of classes by its type and name.

    Args:
        features, name: as in `guess_columns`.
        label: the column as the user names it; empty: guessed.

    Raises:
        UserError: it cannot be guessed, or the given one is missing or does not hold whole numbers.
    """
    listed = ", ".join(features)
    if label:
        if label not in features:
            raise UserError(f"{name} has no column {label!r} for label; its columns are {listed}.")
        if not _is_label(features[label]):
            raise UserError(f"The column {label!r} of {name} does not hold whole numbers; its columns are {listed}.")
        return label
    named = [column for column in _by_name(features, LABELS) if _is_label(features[column])]
    certain = [column for column, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if not named and len(certain) != 1:
        raise UserError(
            f"Which column of {name} holds the classes cannot be guessed (columns: {listed}); set label to its name."
        )
    return named[0] if named else certain[0]


def class_names_of(kind: Any) -> list[str]:
    """The names of the classes of a column, with spaces for underscores; [] where it has numbers alone."""
    return [str(name).replace("_", " ") for name in getattr(kind, "names", None) or ()]


def texts_of(row: dict[str, Any], column: str) -> list[str]:
    """The texts in a column of a row, stripped and not empty, each once; [] for the column ""."""
    if not column:
        return []
    first, *fields = column.split(".")
    value = row.get(first)
    for one in fields:
        items = value if isinstance(value, list) else [value]
        value = [item.get(one) for item in items if isinstance(item, dict)]
    return list(dict.fromkeys(_texts(value)))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        field = next((name for name in FIELDS if value.get(name)), None)
        return _texts(value[field]) if field else []
    return []


def _by_name(features: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """The columns with these names in any case, in the order of the names."""
    lower = {column.lower(): column for column in reversed(features)}
    return [lower[name] for name in names if name in lower]


def _is_image(kind: Any) -> bool:
    return type(kind).__name__ == "Image" or (isinstance(kind, dict) and "bytes" in kind)


def _may_be_bytes(kind: Any) -> bool:
    return _is_image(kind) or getattr(kind, "dtype", "") in ("binary", "large_binary")


def _may_be_image(kind: Any) -> bool:
    return _may_be_bytes(kind) or getattr(kind, "dtype", "") in ("string", "large_string")


def _is_scalar(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string", "int64", "int32", "uint64", "uint32")


def _is_label(kind: Any) -> bool:
    return "int" in getattr(kind, "dtype", "")  # a ClassLabel is int64


def _holds_text(kind: Any) -> bool:
    """Whether a column holds strings, lists of strings, or structs with a text."""
    if isinstance(kind, dict):
        return any(_holds_text(kind[name]) for name in FIELDS if name in kind)
    if isinstance(kind, list):  # how older versions of `datasets` write lists
        return _holds_text(kind[0])
    inner = getattr(kind, "feature", None)
    return _holds_text(inner) if inner is not None else getattr(kind, "dtype", "") in ("string", "large_string")
