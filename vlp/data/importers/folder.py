"""An image folder as `datasets` reads it: images and a metadata.jsonl."""

import json
from collections.abc import Iterator
from pathlib import Path

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.write import ImportedSample, read_image
from vlp.errors import UserError


class ImageFolder:
    """The lines {"file_name", "text", ...} of a folder's metadata.jsonl, one sample each.

    `text` may be a list of captions, and may be missing. Other fields are kept in the sample's JSON.
    """

    def __init__(self, folder: str):
        """Raises UserError if the folder has no metadata.jsonl."""
        self.folder = Path(folder)
        self.metadata = self.folder / "metadata.jsonl"
        if not self.metadata.is_file():
            raise UserError(f"{folder} has no metadata.jsonl with a file_name and a text for each image.")

    def __len__(self) -> int:
        with self.metadata.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        with self.metadata.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield _read_line(self.folder, f"{number:08d}", line)
                except BadSampleError as error:
                    yield BadSample(str(self.metadata), f"line {number}", error.reason)


def _read_line(folder: Path, key: str, line: bytes) -> ImportedSample:
    """The sample of one line; raises BadSampleError if the line or its image is broken."""
    try:
        facts = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadSampleError("text not UTF-8") from None
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise BadSampleError("bad json") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("file_name"), str):
        raise BadSampleError("bad json")
    name, texts = facts.pop("file_name"), facts.pop("text", None)
    captions = [text.strip() for text in (texts if isinstance(texts, list) else [texts]) if isinstance(text, str)]
    image, extension = read_image(folder, name)
    return ImportedSample(key, image, extension, [text for text in captions if text], {"uid": name, **facts})
