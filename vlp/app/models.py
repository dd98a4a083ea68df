"""Opens the index and the model of the page; the demo's index is made on its first start."""

import os
from contextlib import ExitStack
from tempfile import TemporaryDirectory

from vlp.app.inputs import AppInputs
from vlp.app.model_thread import ModelThread
from vlp.errors import UserError
from vlp.index import ImageIndex, open_index
from vlp.index.build import build_index
from vlp.index.manifest import is_index
from vlp.model import Model, load_model
from vlp.models.cpu.optimise import optimise_for_cpu


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
    """The folder of the demo's index: made where it is not there, temporary where the demo cannot be written."""
    folder, made_with = inputs.index, os.path.abspath(name)
    if is_index(folder):
        return folder
    if not os.access(os.path.dirname(folder) or ".", os.W_OK):
        folder = os.path.join(stack.enter_context(TemporaryDirectory(prefix="vlp-index-")), "index")
    build_index(model, inputs.images, folder, made_with)
    return folder
