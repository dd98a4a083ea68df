"""Opens the index and the model of the page; the demo's index is made on its first start."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from vlp.app.inputs import AppInputs
from vlp.app.model_thread import ModelThread
from vlp.errors import UserError
from vlp.files import remove
from vlp.index import ImageIndex, open_index
from vlp.index.build import build_index
from vlp.index.fingerprint import check_model
from vlp.index.manifest import is_index, read_manifest
from vlp.model import Model, load_model
from vlp.models.cpu.optimise import optimise_for_cpu

log = logging.getLogger("vlp")


def open_models(inputs: AppInputs, stack: ExitStack) -> tuple[ImageIndex | None, ModelThread]:
    """The index, None where none is given, and the model that the page needs. `stack` closes them.

    Raises:
        UserError: the index does not tell its model, or the model has nothing to do on the page.
    """
    index = open_index(inputs.index) if inputs.index and not inputs.images else None
    name = inputs.model or (index.model.name if index else "")
    if not name:
        raise UserError(f"{inputs.index} does not tell its model; add --model.")
    loaded = optimise_for_cpu(load_model(name))
    if inputs.images:
        index = open_index(_index_scenes(loaded, name, inputs, stack))
    model = ModelThread(loaded, name)
    stack.callback(model.close)
    if index is None and not model.can.any():
        raise UserError(
            f"{name} was finetuned for {loaded.config.finetuned_for}, for which the page has no tab; "
            "choose another model."
        )
    return index, model


def _index_scenes(model: Model, name: str, inputs: AppInputs, stack: ExitStack) -> str:
    """The folder of the demo's index, up to date with its model and scenes.

    It is made where it is not there, and anew for another model or demo: the page made it, and can make it again. It is
    temporary where the demo cannot be written.
    """
    folder, made_with = inputs.index, os.path.abspath(name)
    fits, writable = _fits(folder, model, made_with), os.access(os.path.dirname(folder) or ".", os.W_OK)
    if fits and not writable:
        return folder
    if not writable:
        folder = os.path.join(stack.enter_context(TemporaryDirectory(prefix="vlp-index-")), "index")
    elif is_index(folder) and not fits:
        log.info("%s is of another model or demo, so its scenes are indexed anew", folder)
        remove(Path(folder))
    build_index(model, inputs.images, folder, made_with, quiet=fits)  # what it has is not embedded again
    return folder


def _fits(folder: str, model: Model, made_with: str) -> bool:
    """Whether an index is there that this model, in this folder, made."""
    if not is_index(folder):
        return False
    try:
        known = read_manifest(folder).model
        check_model(known, model, folder)
        return known.name == made_with
    except UserError:
        return False
