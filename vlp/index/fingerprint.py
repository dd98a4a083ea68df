"""The fingerprint of a model: tells whether vectors in an index were made with the same weights."""

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vlp.errors import UserError
from vlp.index.manifest import IndexModel
from vlp.model import Model

_known: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()  # versions of the weights, fingerprint


def fingerprint(model: Model) -> str:
    """SHA-256 of the size of the images and of the weights, rounded to bf16: the precision does not matter."""
    weights = model.network.state_dict()
    versions = sum(value._version for value in weights.values())  # counts changes in place
    before, known = _known.get(model.network, (-1, ""))
    if before == versions:
        return known
    digest = hashlib.sha256(f"{int(model.image_size)}".encode())
    for name, value in sorted(weights.items()):
        stored = value.detach().cpu()
        stored = stored.bfloat16().view(torch.int16) if stored.is_floating_point() else stored
        digest.update(name.encode() + str(tuple(stored.shape)).encode())
        digest.update(memoryview(stored.contiguous().view(-1).numpy()))
    _known[model.network] = versions, digest.hexdigest()[:32]
    return digest.hexdigest()[:32]


def check_model(made_with: IndexModel, model: Model, folder: str) -> None:
    """Make sure that an index and a model belong together.

    Raises:
        UserError: the index was made with another model.
    """
    width = model.config.embed_dim
    if made_with.width != width:
        raise UserError(
            f"The vectors of the index {folder} have {made_with.width} values and those of the model have {width}; "
            f"take the model that made them{_named(made_with)}."
        )
    if made_with.fingerprint and made_with.fingerprint != fingerprint(model):
        raise UserError(
            f"The index {folder} was made with another model{_named(made_with)}; "
            "take that model, or index into another folder."
        )


def _named(made_with: IndexModel) -> str:
    return f", {made_with.name}" if made_with.name else ""
