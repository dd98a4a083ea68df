"""Collections of web images to shards: an image folder with metadata.jsonl."""

import json
from pathlib import Path

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_image
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.files import prepare_output


def import_folder(folder: str, output: str, samples_per_shard: int = 1000, max_bad_share: float = 0.1) -> int:
    """An image folder as `datasets` reads it: metadata.jsonl with a line {"file_name", "text", ...} an image.

    `text` may be a list of captions; other fields are kept in the sample's JSON.

    Returns:
        The number of samples written.

    Raises:
        UserError: there is no metadata.jsonl, or the output exists.
        WorkError: too many lines or images were bad.
    """
    metadata = Path(folder) / "metadata.jsonl"
    if not metadata.is_file():
        raise UserError(f"{folder} has no metadata.jsonl with file_name and text for each image.")
    prepare_output(output)
    bad, written = BadSamples(max_bad_share), 0
    with ShardWriter(output, samples_per_shard) as writer, metadata.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                _write(writer, Path(folder), f"{written:08d}", line)
            except BadSampleError as error:
                bad.add(BadSample(str(metadata), f"line {number + 1}", error.reason))
                continue
            bad.seen()
            written += 1
        bad.finish()
    return written


def _write(writer: ShardWriter, folder: Path, key: str, line: bytes) -> None:
    """The sample of one line; raises BadSampleError where it is no use."""
    try:
        facts = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadSampleError("text not UTF-8") from None
    except ValueError:
        raise BadSampleError("bad json") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("file_name"), str):
        raise BadSampleError("bad json")
    name, texts = facts.pop("file_name"), facts.pop("text", None)
    captions = [text.strip() for text in (texts if isinstance(texts, list) else [texts]) if isinstance(text, str)]
    captions = [text for text in captions if text]
    if not captions:
        raise BadSampleError("no text" if texts is None else "empty text")
    path = folder / name
    extension = name.rpartition(".")[2].lower()
    inside = path.resolve().is_relative_to(folder.resolve())  # a name such as ../x leads nowhere
    if extension not in IMAGE_EXTENSIONS or not inside or not path.is_file():
        raise BadSampleError("no image")
    data = path.read_bytes()
    decode_image(data)
    writer.write(key, data, extension, captions[0], {**facts, "uid": name, "captions": captions})
