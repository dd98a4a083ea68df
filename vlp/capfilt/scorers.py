"""Loads the captioners and filters of a CapFilt run, each model once."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from vlp.capfilt.clip_scorer import ClipScorer, clip_of_open_clip, clip_of_ours
from vlp.capfilt.transformers_captioner import READ, TransformersCaptioner
from vlp.config import Precision
from vlp.convert.files import find_folder
from vlp.convert.open_clip_models import OPEN_CLIP
from vlp.data.score_tables import files_hash, folder_hash
from vlp.errors import UserError
from vlp.model import Model, load_model
from vlp.model_folder import is_model_folder
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.network import as_two_towers
from vlp.models.precision import compute_dtype

TRANSFORMERS = "hf:"


@dataclass
class Scorers:
    """The models of a run. A model that captions and filters is one object, so it encodes an image once.

    Attributes:
        captioners: their captions are pooled; `nll` is the mean over the BLIP models among them.
        filters: BLIP models; `itm` and `itc` are their means, null without any.
        clips: CLIP models of ours and of open_clip; `clip` is their mean.
        identity: what a table's rows depend on: hashes of the models, and the precision.
        names: the names given for the captioners and filters.
    """

    captioners: list[Model | TransformersCaptioner]
    filters: list[Model]
    clips: list[ClipScorer]
    identity: dict[str, Any]
    names: dict[str, list[str]]

    @property
    def models(self) -> list[Model]:
        """Every BLIP model once, filters first."""
        models = [*self.filters, *(model for model in self.captioners if isinstance(model, Model))]
        return list(dict.fromkeys(models))


def load_scorers(
    captioner: str | list[str],
    filter: str | list[str],
    precision: Precision = "auto",
    device: torch.device | None = None,
    compile: bool = False,
) -> Scorers:
    """Load captioners and filters.

    Args:
        captioner: model folders, or hf:NAME_OR_FOLDER for image-to-text models of `transformers`; "" or []: none.
        filter: model folders of BLIP or CLIP, or open_clip:NAME,PRETRAINED.
        compile: compile the models from model folders, see `load_model`.

    Raises:
        UserError: there is no filter, or a name is not a model of the required kind.
    """
    captioners, filters = as_list(captioner), as_list(filter)
    if not filters:
        raise UserError("CapFilt needs a filter; give a model folder or open_clip:NAME,PRETRAINED.")
    if any(name.startswith(OPEN_CLIP) for name in captioners):
        raise UserError("An open_clip model cannot caption; give it as a filter.")
    if any(name.startswith(TRANSFORMERS) for name in filters):
        raise UserError("An hf: captioner cannot filter; give a model folder or open_clip:NAME,PRETRAINED.")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded: dict[str, tuple[Model | TransformersCaptioner | ClipScorer, str]] = {}
    for name in [*captioners, *filters]:
        if _real_name(name) not in loaded:
            loaded[_real_name(name)] = _load(name, device, precision, compile)
    captioning, filtering = ([loaded[_real_name(name)] for name in names] for names in (captioners, filters))
    for name, (model, _) in zip(captioners, captioning, strict=True):
        if isinstance(model, ClipScorer):
            raise UserError(f"{name} is a CLIP model, which cannot caption; give it as a filter.")
    return Scorers(
        [model for model, _ in captioning if not isinstance(model, ClipScorer)],
        [model for model, _ in filtering if isinstance(model, Model)],
        [model for model, _ in filtering if isinstance(model, ClipScorer)],
        {
            "captioner": [content_hash for _, content_hash in captioning],
            "filter": [content_hash for _, content_hash in filtering],
            "precision": str(compute_dtype(precision, device)) + (", compiled" if compile else ""),
        },
        {"captioner": captioners, "filter": filters},
    )


def as_list(names: str | list[str]) -> list[str]:
    """A name or a list of names as a list without empty names."""
    return [name for name in ([names] if isinstance(names, str) else names) if name]


def _real_name(name: str) -> str:
    """The name, with folders as real paths, so that two spellings of a path load one model."""
    return name if name.startswith((TRANSFORMERS, OPEN_CLIP)) else os.path.realpath(name)


def _load(
    name: str, device: torch.device, precision: Precision, compile: bool
) -> tuple[Model | TransformersCaptioner | ClipScorer, str]:
    """A model, and a hash of its files."""
    if name.startswith(TRANSFORMERS):
        captioner = TransformersCaptioner(name.removeprefix(TRANSFORMERS), device, precision)
        return captioner, captioner.identity
    if name.startswith(OPEN_CLIP):
        return clip_of_open_clip(name, device, precision)
    # Store bf16 weights if they would be converted at every call anyway.
    dtype = torch.bfloat16 if compute_dtype(precision, device) == torch.bfloat16 else None
    model, folder = optimise_for_cpu(load_model(name, device, precision, dtype, compile)), find_folder(name)
    as_two_towers(model.network, "score or caption")
    converted = sorted(file for file in folder.iterdir() if file.suffix in READ)
    content_hash = folder_hash(folder) if is_model_folder(folder) else files_hash(converted)
    return clip_of_ours(model) if model.config.network == "clip" else model, content_hash
