"""Load a model from a folder or the hub."""

import logging
from pathlib import Path

import torch

from vlp.config import Precision
from vlp.convert.files import find_folder, read_json
from vlp.convert.read import read_source
from vlp.model.model import Model
from vlp.model_folder import SavedModel, is_model_folder, read_model
from vlp.models.compiled import compile_blocks

log = logging.getLogger("vlp")


def load_model(
    source: str | Path,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> Model:
    """Load a model. Nothing is unpickled, and the weights must match the network exactly.

    Args:
        source: a model folder, a `transformers` BLIP folder, or the name of either on the hub. A `transformers` BLIP is
            converted in memory, and the log lists the parts that it lacks; `vlp convert` makes a model folder of it.
        device: None means the first GPU, or the CPU if there is none.
        precision: of the computation, with weights in float32; "auto" is bf16 on devices that multiply it fast.
        dtype: of the weights, and thus of the computation, instead of `precision`.
        compile: use `torch.compile`; it delays the first batches by a minute and does not pay on a CPU.

    Raises:
        UserError: the source is not a model, or its files do not fit together.
    """
    folder = find_folder(str(source))
    foreign = folder.is_dir() and not is_model_folder(folder)
    if foreign and read_json(folder / "config.json").get("model_type") == "blip":
        found = read_source(str(folder))
        saved = SavedModel(found.blip, found.tokenizer, found.decoding)
        log.info("%s is converted; it lacks %s", source, "; ".join(found.missing) or "nothing")
    else:
        saved = read_model(folder)
    saved.network.to(device=device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype=dtype)
    if compile:
        compile_blocks(saved.network)
    return Model(saved.network, saved.tokenizer, "fp32" if dtype else precision, saved.card, saved.decoding)
