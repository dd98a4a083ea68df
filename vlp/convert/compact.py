"""Converting the published checkpoints of Compact Transformers: ViT-Lite, CVT and CCT."""

import math
from typing import Literal

import torch
from torch import Tensor

from vlp.config_model import ImageEncoderConfig
from vlp.convert.tables import State, count_layers
from vlp.errors import UserError
from vlp.models.image_encoders.layers import sine_positions

HEAD_WIDTH = 64  # of all published models
PREFIX, LAST = "classifier.", ("fc.weight", "fc.bias")  # of the transformer's names; its linear layer to classes


def compact_from_published(weights: State) -> tuple[ImageEncoderConfig, State] | None:
    """The settings and weights of a published Compact Transformer; None if the weights are of something else.

    The names say which family it is, and the shapes give the sizes. Without positions the image size is not known, and
    the config has its default.

    Raises:
        UserError: the places of the position embeddings do not form a square grid.
    """
    if f"{PREFIX}blocks.0.pre_norm.weight" not in weights:
        return None
    state = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    state = {name: weight for name, weight in state.items() if name not in LAST}
    convolutions = sorted(name for name in state if name.startswith("tokenizer.conv_layers."))
    first = state[convolutions[0]]  # [width, 3, kernel, kernel]; the biases of patches sort first
    family = "vit_lite" if "class_emb" in state else "cvt_compact"
    if "tokenizer.conv_layers.0.0.bias" not in state:
        family = "cct"
    else:
        first = state["tokenizer.conv_layers.0.0.weight"]
        for part in ("weight", "bias"):
            state[f"tokenizer.proj.{part}"] = state.pop(f"tokenizer.conv_layers.0.0.{part}")
    width, kernel = state["norm.weight"].shape[0], first.shape[-1]
    per_place = kernel
    if family == "cct":
        per_place = (2 * max(1, kernel // 2 - 1)) ** len(convolutions)  # pooling halves the side once more
    positions, side = _positions(state, leading=int(family == "vit_lite"))
    return ImageEncoderConfig(
        name=family,
        image_size=side * per_place if side else ImageEncoderConfig().image_size,
        patch_size=ImageEncoderConfig().patch_size if family == "cct" else kernel,
        width=width,
        layers=count_layers(state, "blocks."),
        heads=max(width // HEAD_WIDTH, 1),
        feed_forward=state["blocks.0.linear1.bias"].shape[0],
        norm_eps=1e-5,
        positions=positions,
        kernel=kernel if family == "cct" else ImageEncoderConfig().kernel,
        convolutions=len(convolutions) if family == "cct" else ImageEncoderConfig().convolutions,
    ), state


def _positions(state: State, leading: int) -> tuple[Literal["learned", "sine", "none"], int]:
    """The kind of position embeddings, and the side of their grid or 0; sine positions leave the state.

    Raises:
        UserError: the places do not form a square grid.
    """
    found: Tensor | None = state.get("positional_emb")
    if found is None:
        return "none", 0
    rows, width = found.shape[1:]
    side = math.isqrt(rows - leading)
    if side**2 != rows - leading:
        raise UserError(f"The {rows - leading} places of positional_emb form no square grid; images must be square.")
    if torch.allclose(found.float(), sine_positions(rows, width), atol=1e-4):
        del state["positional_emb"]
        return "sine", side
    return "learned", side
