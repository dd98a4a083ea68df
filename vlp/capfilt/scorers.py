"""The models of a CapFilt run: captioners, filters and scorers from outside, each loaded once."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from vlp.capfilt.clip_scorer import ClipScorer
from vlp.capfilt.transformers_captioner import READ, TransformersCaptioner
from vlp.config import Precision
from vlp.convert.files import find_folder
from vlp.data.score_tables import files_hash, folder_hash
from vlp.errors import UserError
from vlp.model import Model, load_model
from vlp.model_folder import is_ours
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.precision import compute_dtype

TRANSFORMERS, OPEN_CLIP = "hf:", "open_clip:"


@dataclass
class Scorers:
    """The models of a run. A model that captions and filters is one and the same object, which sees an image once.

    Attributes:
        captioners: their captions are pooled; the likelihood of a text is the mean over the BLIP models among them.
        filters: BLIP models, whose ITM and ITC are averaged; without one both are null.
        clips: open_clip models, whose cosines are averaged.
        identity: what of them decides a table's rows: hashes of their contents, and the precision.
        names: as they were given.
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
    """Load the models that are named.

    Args:
        captioner: model folders, or hf:NAME_OR_FOLDER for an image-to-text model of `transformers`; "" or []: none.
        filter: model folders, or open_clip:NAME,PRETRAINED.
        compile: compile the blocks of model folders, see `load_model`.

    Raises:
        UserError: there is no filter, or a name does not lead to a model of its kind.
    """
    captioners, filters = as_list(captioner), as_list(filter)
    if not filters:
        raise UserError("CapFilt needs a filter: a model folder, or open_clip:NAME,PRETRAINED.")
    if any(name.startswith(OPEN_CLIP) for name in captioners):
        raise UserError("An open_clip model makes no captions; name it as a filter.")
    if any(name.startswith(TRANSFORMERS) for name in filters):
        raise UserError("A captioner of transformers cannot filter; name a model folder or open_clip:NAME,PRETRAINED.")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded: dict[str, tuple[Model | TransformersCaptioner | ClipScorer, str]] = {}
    for name in [*captioners, *filters]:
        if _place(name) not in loaded:
            loaded[_place(name)] = _load(name, device, precision, compile)
    making, judging = ([loaded[_place(name)] for name in names] for names in (captioners, filters))
    return Scorers(
        [model for model, _ in making],
        [model for model, _ in judging if isinstance(model, Model)],
        [model for model, _ in judging if isinstance(model, ClipScorer)],
        {
            "captioner": [content for _, content in making],
            "filter": [content for _, content in judging],
            "precision": str(compute_dtype(precision, device)) + (", compiled" if compile else ""),
        },
        {"captioner": captioners, "filter": filters},
    )


def as_list(names: str | list[str]) -> list[str]:
    """One name or several, empty ones left out."""
    return [name for name in ([names] if isinstance(names, str) else names) if name]


def _place(name: str) -> str:
    """The same for every way to write the path of a folder."""
    return name if name.startswith((TRANSFORMERS, OPEN_CLIP)) else os.path.realpath(name)


def _load(
    name: str, device: torch.device, precision: Precision, compile: bool
) -> tuple[Model | TransformersCaptioner | ClipScorer, str]:
    """A model, and a hash of its content."""
    if name.startswith(TRANSFORMERS):
        captioner = TransformersCaptioner(name.removeprefix(TRANSFORMERS), device, precision)
        return captioner, captioner.identity
    if name.startswith(OPEN_CLIP):
        scorer = ClipScorer(name.removeprefix(OPEN_CLIP), device, precision)
        return scorer, scorer.identity
    # Weights are bf16 from the start where they would be turned into it at every call.
    dtype = torch.bfloat16 if compute_dtype(precision, device) == torch.bfloat16 else None
    model, folder = optimise_for_cpu(load_model(name, device, precision, dtype, compile)), find_folder(name)
    converted = sorted(file for file in folder.iterdir() if file.suffix in READ)
    return model, folder_hash(folder) if is_ours(folder) else files_hash(converted)
