"""Reading a source of any kind into our network, with a list of its missing and unused parts."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import DecodingConfig
from vlp.convert.blip import Converted, from_original, from_transformers
from vlp.convert.files import find_folder, read_json, read_pickle, read_weights
from vlp.convert.tokenizers import check_vocabulary, read_tokenizer
from vlp.convert.towers import image_tower, is_image_source, text_tower
from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.models.untrained import parts_of

ORIGINAL_TOKENIZER = "bert-base-uncased"  # of all published BLIP checkpoints
RANDOM = ": random weights"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Source:
    """A network converted from another project.

    Attributes:
        missing: parts of our network that the source lacks, each with how it was initialized.
        unused: parts of the source that our network does not have.
    """

    blip: Blip
    tokenizer: CaptionTokenizer
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


def read_source(source: str, image: str = "", tokenizer: str = "", image_size: int = 0) -> Source:
    """Read a model, or combine a text tower and an image encoder.

    Args:
        source: a `transformers` folder or hub name (BLIP, or an encoder of the BERT family), or an original BLIP .pth.
        image: use this image encoder: "timm:NAME", "open_clip:NAME,PRETRAINED", or a ViT's folder or hub name.
        tokenizer: folder or hub name of the tokenizer, for sources without one; a .pth file has BERT's by default.
        image_size: in pixels; position embeddings are resized to it. 0 keeps the source's size.

    Raises:
        UserError: a file is missing, broken or of an unknown kind, or the files do not fit together.
    """
    converted, words = _read(source, tokenizer)
    if image:
        converted = _with_image_encoder(converted, image)
    check_vocabulary(words, converted.config.text_tower.vocabulary, source)
    config = replace(converted.config, text_tower=replace(converted.config.text_tower, vocabulary=len(words)))
    blip = Blip(config)
    missing = _fill(blip, converted.state, source)
    random = [part for part in missing if part.endswith(RANDOM)]
    blip.config.untrained = parts_of(part.removesuffix(RANDOM) for part in random)
    if image_size not in (0, config.image_encoder.image_size):
        blip.resize_images(image_size)
    return Source(blip.eval(), words, missing, converted.unused, converted.decoding)


def _read(source: str, tokenizer: str) -> tuple[Converted, CaptionTokenizer]:
    """The settings and weights of a source, and its tokenizer."""
    if is_image_source(source):
        raise UserError(f"{source} is an image encoder: make the source a text tower, and give this one as --image.")
    path = find_folder(source)
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UserError(f"{path} is neither a folder nor a checkpoint ({', '.join(PICKLES)}).")
        converted = from_original(read_pickle(path), str(path))
        return converted, read_tokenizer(find_folder(tokenizer or ORIGINAL_TOKENIZER))
    facts = read_json(path / "config.json")
    if "format" in facts:
        raise UserError(f"{path} is a model folder of vlp already.")
    kind = str(facts.get("model_type"))
    readers: dict[str, Callable[[Path, dict[str, Tensor]], Converted]] = {
        "blip": from_transformers,
        "bert": text_tower,
        "roberta": text_tower,
        "xlm-roberta": text_tower,
        "camembert": text_tower,
    }
    if kind in ("vit", "clip", "clip_vision_model", "deit"):
        raise UserError(f"{path} is an image encoder: make the source a text tower, and give this one as --image.")
    if kind not in readers:
        raise UserError(f"{path} is of the unknown kind {kind!r}; known kinds are {', '.join(readers)}.")
    converted = readers[kind](path, read_weights(path))
    return converted, read_tokenizer(find_folder(tokenizer) if tokenizer else path)


def _with_image_encoder(converted: Converted, image: str) -> Converted:
    """The same text tower with another image encoder."""
    config, state = image_tower(image)
    kept = {name: value for name, value in converted.state.items() if not name.startswith("image_encoder.")}
    if config.width != converted.config.image_encoder.width:
        kept = {n: v for n, v in kept.items() if ".key_value." not in n and not n.startswith("image_projection.")}
    return replace(
        converted,
        config=replace(converted.config, image_encoder=config),
        state={**kept, **{f"image_encoder.tower.{name}": value for name, value in state.items()}},
    )


def _fill(blip: Blip, state: dict[str, Tensor], source: str) -> list[str]:
    """Load the weights into the network; returns the parts that are missing, each with how it was initialized."""
    ours = blip.state_dict()
    wrong = []
    for name, tensor in state.items():
        if _grows(name) and len(tensor) < len(ours[name]) and tensor.shape[1:] == ours[name].shape[1:]:
            state[name] = tensor = torch.cat([tensor, ours[name][len(tensor) :]])  # new rows for [DEC] and [ENC]
        if tensor.shape != ours[name].shape:
            wrong.append(f"{name} {list(tensor.shape)} instead of {list(ours[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{source} does not fit its own settings: {', '.join(wrong[:5])}{more}.")
    missing: dict[str, None] = {}  # an ordered set
    for name in ours:
        if name in state:
            continue
        twin = _other_side(name)
        part = re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name
        if twin in state:
            state[name] = state[twin]
            missing[f"{part}: copied from the {'decoder' if '.encoder.' in name else 'encoder'}"] = None
        else:
            missing[part + RANDOM] = None
    blip.load_state_dict({**ours, **{name: value.float() for name, value in state.items()}})
    return list(missing)


def _grows(name: str) -> bool:
    """Whether a weight has a row for each token, so that [DEC] and [ENC] may be added."""
    return name.endswith("words.weight") or name == "language_head.bias"


def _other_side(name: str) -> str:
    """The name of the same weight on the other side of the text tower."""
    if ".encoder." in name:
        return name.replace(".encoder.", ".decoder.")
    return name.replace(".decoder.", ".encoder.")
