"""A source of any kind to one of our networks, with a list of what it lacked and what was left behind."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vlp.convert.blip import Carried, from_original, from_transformers
from vlp.convert.files import find_folder, read_json, read_pickle, read_weights
from vlp.convert.tokenizers import check_vocabulary, read_tokenizer
from vlp.convert.towers import image_tower, is_image_source, text_tower
from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError
from vlp.models.blip import Blip

ORIGINAL_TOKENIZER = "bert-base-uncased"  # what all of BLIP's own checkpoints were trained with
PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Source:
    """A network from elsewhere.

    Attributes:
        started: parts of ours that the source lacks, each with what it starts from instead.
        left: parts of the source that ours has no place for.
    """

    blip: Blip
    tokenizer: CaptionTokenizer
    started: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def read_source(source: str, image: str = "", tokenizer: str = "", image_size: int = 0) -> Source:
    """Read a model, or put one together from a text tower and an image encoder.

    Args:
        source: a `transformers` folder or hub name (BLIP, or a BERT-family encoder), or an original BLIP .pth file.
        image: takes the image encoder from here: "timm:NAME", "open_clip:NAME,PRETRAINED", or a ViT's folder or name.
        tokenizer: folder or hub name of the tokenizer, for sources that have none; a .pth has BERT's.
        image_size: in pixels; position embeddings are resized to it. 0 keeps the source's.

    Raises:
        UserError: something is missing, broken, of an unknown kind or of the wrong shape.
    """
    carried, words = _read(source, tokenizer)
    if image:
        carried = _with_image_encoder(carried, image)
    rows = carried.config.text_tower.vocabulary
    check_vocabulary(words, rows, source)
    config = replace(carried.config, text_tower=replace(carried.config.text_tower, vocabulary=len(words)))
    blip = Blip(config)
    started = _fill(blip, carried.state, source)
    if image_size not in (0, config.image_encoder.image_size):
        blip.resize_images(image_size)
    return Source(blip.eval(), words, started + carried.started, carried.left)


def _read(source: str, tokenizer: str) -> tuple[Carried, CaptionTokenizer]:
    """What a source holds, and the tokenizer that goes with it."""
    if is_image_source(source):
        raise UserError(f"{source} is an image encoder; name a text tower first and this one with --image.")
    path = find_folder(source)
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UserError(f"{path} is neither a folder nor a checkpoint ({', '.join(PICKLES)}).")
        carried = from_original(read_pickle(path), str(path))
        return carried, read_tokenizer(find_folder(tokenizer or ORIGINAL_TOKENIZER))
    facts = read_json(path / "config.json")
    if "format" in facts:
        raise UserError(f"{path} is a model of ours already.")
    kind = facts.get("model_type")
    readers: dict[str, Callable[[Path, dict[str, Tensor]], Carried]] = {
        "blip": from_transformers,
        "bert": text_tower,
        "roberta": text_tower,
        "xlm-roberta": text_tower,
        "camembert": text_tower,
    }
    if kind in ("vit", "clip", "clip_vision_model", "deit"):
        raise UserError(f"{path} is an image encoder; name a text tower first and this one with --image.")
    if kind not in readers:
        raise UserError(f"{path} is of the unknown kind {kind!r}; known: {', '.join(readers)}.")
    carried = readers[kind](path, read_weights(path))
    return carried, read_tokenizer(find_folder(tokenizer) if tokenizer else path)


def _with_image_encoder(carried: Carried, image: str) -> Carried:
    """The same text tower behind another image encoder."""
    config, state = image_tower(image)
    before = {name: value for name, value in carried.state.items() if not name.startswith("image_encoder.")}
    if config.width != carried.config.image_encoder.width:
        before = {n: v for n, v in before.items() if ".key_value." not in n and not n.startswith("image_projection.")}
    return replace(
        carried,
        config=replace(carried.config, image_encoder=config),
        state={**before, **{f"image_encoder.tower.{name}": value for name, value in state.items()}},
        started=[note for note in carried.started if not note.startswith("image_encoder")],
    )


def _fill(blip: Blip, state: dict[str, Tensor], source: str) -> list[str]:
    """Put the weights into the network; returns what it had to start otherwise."""
    ours = blip.state_dict()
    wrong = []
    for name, tensor in state.items():
        if _grows(name) and len(tensor) < len(ours[name]) and tensor.shape[1:] == ours[name].shape[1:]:
            # room for [DEC] and [ENC]
            state[name] = tensor = torch.cat([tensor, ours[name][len(tensor) :]])
        if tensor.shape != ours[name].shape:
            wrong.append(f"{name} {list(tensor.shape)} instead of {list(ours[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{source} does not fit its own settings: {', '.join(wrong[:5])}{more}.")
    started: dict[str, None] = {}  # in order, each once
    for name in ours:
        if name in state:
            continue
        twin = _other_side(name)
        part = re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name
        if twin in state:
            state[name] = state[twin]
            started[f"{part}: from {'decoder' if '.encoder.' in name else 'encoder'}"] = None
        else:
            started[f"{part}: new weights"] = None
    blip.load_state_dict({**ours, **{name: value.float() for name, value in state.items()}})
    return list(started)


def _grows(name: str) -> bool:
    return name.endswith("words.weight") or name == "language_head.bias"


def _other_side(name: str) -> str:
    """The name of the same weight on the tower's other side."""
    if ".encoder." in name:
        return name.replace(".encoder.", ".decoder.")
    return name.replace(".decoder.", ".encoder.")
