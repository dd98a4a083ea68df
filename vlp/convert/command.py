"""`vlp convert`: from a source to a folder, and what could not come along in sentences."""

from pathlib import Path

from vlp.convert.read import read_source
from vlp.convert.write import CLASSES, Kind, write_transformers
from vlp.errors import UserError
from vlp.model_folder import read_model, save_model


def to_ours(source: str, output: str, image: str = "", tokenizer: str = "", image_size: int = 0) -> list[str]:
    """Write a model folder of ours from another project's; arguments as in `read_source`.

    Returns:
        A line for each part that starts otherwise than from the source, and for each that was left behind.

    Raises:
        UserError: the source cannot be read whole, or the output exists.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{output} exists already; choose another name or remove it.")
    found = read_source(source, image, tokenizer, image_size)
    lines = [f"lacking in the source: {part}" for part in found.started]
    lines += [f"left behind: {part}" for part in found.left]
    notes = "".join(f"- {line}\n" for line in lines) or "- nothing was lacking and nothing was left behind\n"
    origin = f"`{source}`" + (f", its image encoder from `{image}`" if image else "")
    save_model(
        found.blip, found.tokenizer, folder, f"# {folder.name}\n\nConverted by `vlp convert` from {origin}.\n\n{notes}"
    )
    return lines


def from_ours(source: str, output: str, kind: Kind = "captioning") -> list[str]:
    """Write the `transformers` folder of a model of ours.

    Returns:
        A line for the class, and one for each part of ours that it has no place for.

    Raises:
        UserError: the source is no model of ours, or the output exists.
    """
    blip, tokenizer = read_model(source)
    left = write_transformers(blip, tokenizer, output, kind)
    return [f"for transformers.{CLASSES[kind]}", *(f"left behind: {part}" for part in left)]
