"""A model on disk: a folder with config.json, model.safetensors, tokenizer files and a model card (README.md)."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlp.config import DecodingConfig
from vlp.config_model import ModelConfig
from vlp.config_reader import from_dict, to_dict
from vlp.data.tokenizer import CaptionTokenizer, load_tokenizer
from vlp.errors import UserError
from vlp.files import read_json, writing_folder
from vlp.models.network import Network, build_network

FORMAT = "vlp-blip-1"
DECODING_HEADING = "## Decoding defaults"


@dataclass
class SavedModel:
    """The content of a model folder: the network (on the CPU, in evaluation mode) and what belongs to it."""

    network: Network
    tokenizer: CaptionTokenizer | None  # a classifier has none
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    card: str = ""


def read_model(folder: str | Path) -> SavedModel:
    """Read a model folder. Nothing is unpickled, and the weights must match config.json exactly.

    A folder without decoding settings, as older versions wrote it, gets the defaults of `DecodingConfig`.

    Raises:
        UserError: the folder is not a model, or its files do not fit together.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: it has no {name}.")
    config, decoding = _read_config(folder)
    tokenizer = None if config.network == "classifier" else load_tokenizer(str(folder))
    vocabulary, words = config.text_tower.vocabulary, len(tokenizer) if tokenizer else 0
    if tokenizer and (words > vocabulary or (words < vocabulary and tokenizer.form.cleaning == "caption")):
        raise UserError(
            f"{folder} does not fit together: the tokenizer has {words} words and config.json says {vocabulary}."
        )
    network = build_network(config)
    try:
        weights = load_file(folder / "model.safetensors")
        network.load_state_dict(weights, strict=True)
    except SafetensorError as error:
        raise UserError(f"{folder}/model.safetensors is damaged ({error}); copy or convert the model again.") from None
    except RuntimeError as error:
        problem = " ".join(str(error).split("\n\t")[-1].split())
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {problem}") from None
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{folder}/model.safetensors has values that are not finite numbers, in {broken[0]}.")
    card = folder / "README.md"
    return SavedModel(network.eval(), tokenizer, decoding, card.read_text("utf-8", "replace") if card.is_file() else "")


def is_model_folder(folder: str | Path) -> bool:
    """Whether config.json declares a model of this format."""
    try:
        return read_json(Path(folder) / "config.json").get("format") == FORMAT
    except UserError:
        return False


def save_model(
    network: Network,
    tokenizer: CaptionTokenizer | None,
    folder: str | Path,
    card: str = "",
    decoding: DecodingConfig | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        card: the text of README.md: what the model is, what it was trained on, how good it is. A section with the
            decoding defaults is appended for a BLIP model.
        decoding: how the model makes captions unless the caller says otherwise; None: the defaults.

    Raises:
        UserError: the folder exists and is not empty.
        WorkError: the folder cannot be written.
    """
    with writing_folder(folder) as temporary:
        config = {"format": FORMAT, "model": to_dict(network.config), "decoding": to_dict(decoding or DecodingConfig())}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        if tokenizer:
            tokenizer.write_files(temporary)
        card = card or f"# {Path(folder).name}\n\nA vision-language model made with vlp.\n"
        (temporary / "README.md").write_text(card_with_decoding(card, network.config, decoding), "utf-8")


def _read_config(folder: Path) -> tuple[ModelConfig, DecodingConfig]:
    values = read_json(folder / "config.json")
    if values.get("format") != FORMAT:
        raise UserError(f"{folder} is not a model folder: its config.json does not have format {FORMAT}.")
    try:
        return from_dict(ModelConfig, values["model"]), from_dict(DecodingConfig, values.get("decoding", {}))
    except KeyError:
        raise UserError(f"{folder}/config.json has no section model.") from None
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None


def card_with_decoding(card: str, config: ModelConfig, decoding: DecodingConfig | None) -> str:
    """A model card with a section on the decoding defaults, in place of the one it may have; for BLIP models only."""
    card = re.sub(rf"\n*^{DECODING_HEADING}\n.*?(?=^#|\Z)", "\n\n", card, flags=re.MULTILINE | re.DOTALL).rstrip()
    if config.network != "blip":
        return f"{card}\n"
    values = to_dict(decoding or DecodingConfig())
    settings = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in values.items())
    return f"{card}\n\n{DECODING_HEADING}\n\n| setting | value |\n| --- | --- |\n{settings}\n"
