"""Creates models of open_clip with pretrained weights, without running code that a file contains."""

import difflib
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlp.errors import UserError

OPEN_CLIP = "open_clip:"
SCHEMES = ("local-dir:", "hf-hub:")  # open_clip's names of folders and of models on the hub
OTHER_SHAPE = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")  # torch's words
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass
class OpenClipModel:
    """A model of open_clip, in evaluation mode.

    Attributes:
        name: of the architecture, as open_clip's functions take it.
        weights: the file with its weights, or the pretrained tag; "" for a folder and the hub.
        prepare_image: an image to the model's input, float32 [3, size, size].
        settings: `model_cfg` of the architecture.
    """

    name: str
    weights: str
    model: Any
    prepare_image: Callable[[Image.Image], Tensor]
    settings: dict[str, Any]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """open_clip's settings of images: mean, std, interpolation, resize_mode and size."""
        return self.model.visual.preprocess_cfg


def create_open_clip(source: str, precision: str = "fp32", device: torch.device | None = None) -> OpenClipModel:
    """Create the model that a source names.

    Args:
        source: NAME,PRETRAINED with a pretrained tag of open_clip or a file of weights; or the folder of a model that
            open_clip can load, or hf-hub:NAME. The prefix open_clip: may be left out.
        precision: one of open_clip's, such as "bf16".

    Raises:
        UserError: open_clip has no such model or tag, or the file does not fit the model.
    """
    import open_clip  # takes seconds

    name, _, pretrained = source.removeprefix(OPEN_CLIP).partition(",")
    if (Path(name) / "open_clip_config.json").is_file():
        name = f"local-dir:{name}"
    if not name.startswith(SCHEMES):
        _check_names(name, pretrained)
    try:
        created: Any = open_clip.create_model_from_pretrained(
            name, pretrained or None, precision, device=device or "cpu"
        )
    except pickle.UnpicklingError:
        raise UserError(f"{pretrained} contains more than tensors, and loading it would run code.") from None
    except Exception as error:  # each format and each library has exceptions of its own
        raise UserError(f"{OPEN_CLIP}{name},{pretrained} cannot be loaded: {_problem(error, name)}.") from None
    settings: Any = open_clip.get_model_config(name)
    model, prepare_image = created
    return OpenClipModel(name, pretrained, model.eval(), prepare_image, settings)


def _problem(error: Exception, name: str) -> str:
    """Why a model cannot be loaded, in one sentence without its period."""
    import open_clip

    text = " ".join(str(error).split())
    if shapes := OTHER_SHAPE.search(text):
        weight, theirs, ours = shapes.groups()
        return f"the weights are those of another architecture, with {weight} of {theirs}; {name} has {ours}"
    config: Any = open_clip.get_model_config(name) or {}
    tower = config.get("text_cfg", {}).get("hf_model_name")
    if tower and isinstance(error, OSError):  # of transformers, where it neither has the tower nor can download it
        return f"its text tower is {tower} of the Hugging Face hub; download that once, where there is a network"
    if isinstance(error, AssertionError):  # of open_clip, where it resizes positions
        return f"the weights are those of another architecture than {name}"
    return text[:200].rstrip(".")


def _check_names(name: str, pretrained: str) -> None:
    """Check that open_clip has the architecture, and that its weights are a tag or a file.

    Raises:
        UserError: it has not, or they are neither.
    """
    import open_clip

    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"open_clip has no model {name!r}{hint}; choose a name from `open_clip.list_models()`.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_file = pretrained.endswith(WEIGHTS) and Path(pretrained).is_file()
    if pretrained not in tags and not is_file:
        raise UserError(
            f"{OPEN_CLIP}{name},{pretrained} needs a file of weights ({', '.join(WEIGHTS)}) or one of open_clip's tags "
            f"for {name}: {', '.join(tags) or 'none'}."
        )
