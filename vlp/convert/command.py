"""`vlp convert`: from a source to a folder, with a report of missing and unused parts."""

from pathlib import Path

from vlp.convert.open_clip_models import OPEN_CLIP
from vlp.convert.open_clip_read import read_open_clip
from vlp.convert.open_clip_write import write_open_clip
from vlp.convert.read import read_source
from vlp.convert.write import CLASSES, Kind, write_transformers
from vlp.errors import UserError
from vlp.files import absolute, prepare_output
from vlp.model_folder import is_model_folder, read_model, save_model


def to_ours(source: str, output: str, image: str = "", tokenizer: str = "", image_size: int = 0) -> list[str]:
    """Convert another project's model to a model folder; arguments as in `read_source` or `read_open_clip`.

    Args:
        source: open_clip:NAME,PRETRAINED without `image` makes a CLIP model. A model folder is copied with another
            image size. Everything else makes a BLIP model.

    Returns:
        A line for each part that the source lacks, with how it was initialized, and for each unused part of the source.

    Raises:
        UserError: the source cannot be read or does not fit together, or the output exists.
    """
    prepare_output(output)
    if is_model_folder(source):
        _resize(source, output, image or tokenizer, image_size)
        return []
    if source.startswith(OPEN_CLIP) and not image:
        clip = read_open_clip(source, tokenizer, image_size)
        card = f"# {Path(output).name}\n\nConverted by `vlp convert` from `{source}`. Features equal open_clip's.\n"
        save_model(clip.network, clip.tokenizer, output, card)
        return []
    found = read_source(source, image, tokenizer, image_size)
    lines = [f"missing in the source: {part}" for part in found.missing]
    lines += [f"not used: {part}" for part in found.unused]
    notes = "".join(f"- {line}\n" for line in lines) or "- every weight was converted\n"
    origin = f"`{source}`" + (f", its image encoder from `{image}`" if image else "")
    card = f"# {Path(output).name}\n\nConverted by `vlp convert` from {origin}.\n\n{notes}"
    save_model(found.blip, found.tokenizer, output, card, found.decoding)
    return lines


def _resize(source: str, output: str, other: str, image_size: int) -> None:
    """Copy a model folder with another image size; `other` is an option that only sources of other kinds take."""
    if other or not image_size:
        raise UserError(f"{source} is a model folder of vlp already; only its image size can change, by --image-size.")
    saved = read_model(source)
    saved.network.resize_images(image_size)
    card = f"{saved.card.rstrip()}\n\nResized to {image_size} pixels by `vlp convert` from `{source}`.\n"
    save_model(saved.network, saved.tokenizer, output, card, saved.decoding)


def to_open_clip(source: str, output: str) -> list[str]:
    """Convert a model folder of a CLIP to a folder that open_clip loads.

    Returns:
        A line that names the model in open_clip's functions.

    Raises:
        UserError: the source is no such folder, open_clip has no such architecture, or the output exists.
    """
    write_open_clip(read_model(source), output)
    return [f'for open_clip.create_model_and_transforms("local-dir:{absolute(output)}")']


def from_ours(source: str, output: str, kind: Kind = "captioning") -> list[str]:
    """Convert a model folder to a `transformers` folder.

    Returns:
        A line that names the class, and one for each part of the model that the class does not have.

    Raises:
        UserError: the source is not a model folder, the class cannot represent the model, or the output exists.
    """
    unused = write_transformers(read_model(source), output, kind)
    return [f"for transformers.{CLASSES[kind]}", *(f"not used: {part}" for part in unused)]
