"""`vlp convert`: from a source to a folder, with a report of missing and unused parts."""

from pathlib import Path

from vlp.convert.read import read_source
from vlp.convert.write import CLASSES, Kind, write_transformers
from vlp.files import prepare_output
from vlp.model_folder import read_model, save_model


def to_ours(source: str, output: str, image: str = "", tokenizer: str = "", image_size: int = 0) -> list[str]:
    """Convert another project's model to a model folder; arguments as in `read_source`.

    Returns:
        A line for each part that the source lacks, with how it was initialized, and for each unused part of the source.

    Raises:
        UserError: the source cannot be read or does not fit together, or the output exists.
    """
    prepare_output(output)
    found = read_source(source, image, tokenizer, image_size)
    lines = [f"missing in the source: {part}" for part in found.missing]
    lines += [f"not used: {part}" for part in found.unused]
    notes = "".join(f"- {line}\n" for line in lines) or "- every weight was converted\n"
    origin = f"`{source}`" + (f", its image encoder from `{image}`" if image else "")
    card = f"# {Path(output).name}\n\nConverted by `vlp convert` from {origin}.\n\n{notes}"
    save_model(found.blip, found.tokenizer, output, card, found.decoding)
    return lines


def from_ours(source: str, output: str, kind: Kind = "captioning") -> list[str]:
    """Convert a model folder to a `transformers` folder.

    Returns:
        A line that names the class, and one for each part of the model that the class does not have.

    Raises:
        UserError: the source is not a model folder, the class cannot represent the model, or the output exists.
    """
    unused = write_transformers(read_model(source), output, kind)
    return [f"for transformers.{CLASSES[kind]}", *(f"not used: {part}" for part in unused)]
