"""A model on disk: config.json, model.safetensors, tokenizer files and a card, in a folder that appears whole."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlp.config import ModelConfig
from vlp.config_reader import from_dict, to_dict
from vlp.data.tokenizer import CaptionTokenizer, load_tokenizer
from vlp.errors import UserError
from vlp.files import writing_folder
from vlp.models.blip import Blip

FORMAT = "vlp-blip-1"


def read_model(folder: str | Path) -> tuple[Blip, CaptionTokenizer]:
    """The network, on the CPU and in evaluation mode, and its tokenizer. Nothing is unpickled; every weight must fit.

    Raises:
        UserError: the folder is not a model or does not fit together; one sentence says what is wrong.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: it has no {name}.")
    config = _read_config(folder)
    tokenizer = load_tokenizer(str(folder))
    if len(tokenizer) != config.text_tower.vocabulary:
        raise UserError(
            f"{folder} does not fit together: the tokenizer has {len(tokenizer)} words and "
            f"config.json says {config.text_tower.vocabulary}."
        )
    blip = Blip(config)
    try:
        blip.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except SafetensorError as error:
        raise UserError(f"{folder}/model.safetensors cannot be read: {error}.") from None
    except RuntimeError as error:
        problem = " ".join(str(error).split("\n\t")[-1].split())
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {problem}") from None
    return blip.eval(), tokenizer


def is_ours(folder: str | Path) -> bool:
    """Whether a folder's config.json says that it is a model of this format."""
    try:
        values = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def save_model(blip: Blip, tokenizer: CaptionTokenizer, folder: str | Path, card: str = "") -> None:
    """Write a model folder: config.json, model.safetensors, tokenizer files and README.md, whole or not at all.

    Args:
        card: text of README.md: what the model is, what it learned from, how good it is.

    Raises:
        UserError: the folder exists and is not empty.
        WorkError: it cannot be written.
    """
    with writing_folder(folder) as temporary:
        config = {"format": FORMAT, "model": to_dict(blip.config)}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.detach().cpu().contiguous() for name, value in blip.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        tokenizer.write_files(temporary)
        card = card or f"# {Path(folder).name}\n\nA vision-language model made with vlp.\n"
        (temporary / "README.md").write_text(card, "utf-8")


def _read_config(folder: Path) -> ModelConfig:
    try:
        values = json.loads((folder / "config.json").read_text())
    except ValueError:
        raise UserError(f"{folder}/config.json is not readable as JSON.") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{folder} is not a model folder: its config.json does not say format {FORMAT}.")
    return from_dict(ModelConfig, values.get("model"))
