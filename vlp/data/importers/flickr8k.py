"""Caption files of research data sets to shards: Flickr8k's CSV."""

import csv
from pathlib import Path

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_image
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.files import prepare_output


def import_flickr8k(
    images: str,
    captions: str,
    output: str,
    split: str | None = None,
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.1,
) -> int:
    """Flickr8k's layout: a CSV `image,caption` with a row a caption, five an image.

    Args:
        images: folder of the images.
        captions: the CSV; captions may hold commas, quoted or not.
        output: folder for the shards.
        split: a file with the image names to take, one a line; None takes all.

    Returns:
        The number of samples written, one an image with all its captions.

    Raises:
        UserError: a file or folder is missing, or the output exists.
        WorkError: too many images were missing or broken.
    """
    texts = _read_captions(captions)
    names = list(texts)
    if split is not None:
        names = [name for name in _read(split).splitlines() if name.strip()]
        names = [name.strip() for name in names]
    if not Path(images).is_dir():
        raise UserError(f"There is no image folder {images}.")
    prepare_output(output)
    bad, written = BadSamples(max_bad_share), 0
    with ShardWriter(output, samples_per_shard) as writer:
        for name in names:
            try:
                _write(writer, Path(images), name, texts.get(name, []))
            except BadSampleError as error:
                bad.add(BadSample(captions, name, error.reason))
                continue
            bad.seen()
            written += 1
        bad.finish()
    return written


def _write(writer: ShardWriter, folder: Path, name: str, captions: list[str]) -> None:
    """One image with its captions; raises BadSampleError where either is no use."""
    extension = name.rpartition(".")[2].lower()
    path = folder / name
    if extension not in IMAGE_EXTENSIONS or path.parent != folder or not path.is_file():
        raise BadSampleError("no image")
    if not captions:
        raise BadSampleError("no text")
    data = path.read_bytes()
    decode_image(data)
    key = name.rpartition(".")[0].replace(".", "_")
    writer.write(key, data, extension, captions[0], {"uid": name, "captions": captions})


def _read_captions(path: str) -> dict[str, list[str]]:
    """Captions of each image, in the file's order."""
    texts: dict[str, list[str]] = {}
    for row in csv.reader(_read(path).splitlines()):
        if len(row) < 2 or row[:2] == ["image", "caption"]:
            continue
        caption = ",".join(row[1:]).strip()
        if caption:
            texts.setdefault(row[0].strip(), []).append(caption)
    if not texts:
        raise UserError(f"{path} holds no captions; it must be a CSV with the columns image,caption.")
    return texts


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file.") from None
