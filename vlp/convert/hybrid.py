"""Converting the hybrid ViTs of timm, whose weights are those that the papers published."""

import math
import re

from vlp.config_model import ImageEncoderConfig
from vlp.convert.tables import State, count_layers
from vlp.errors import UserError
from vlp.models.image_encoders.hybrid import stem_stride

HEAD_WIDTH = 64  # of all published models
BACKBONE = "patch_embed.backbone."


def hybrid_from_timm(weights: State) -> tuple[ImageEncoderConfig, State] | None:
    """The settings and weights of a hybrid ViT of timm; None if the weights are of something else.

    The names are ours, except that timm gives the stem no name of its own where no stages follow it.

    Raises:
        UserError: the positions do not form a square grid and a class token.
    """
    bare = re.compile(f"^{re.escape(BACKBONE)}(?=(conv|norm)\\.)")
    state = {bare.sub(f"{BACKBONE}stem.", name): weight for name, weight in weights.items()}
    if f"{BACKBONE}stem.conv.weight" not in state or "pos_embed" not in state:
        return None
    state = {name: weight for name, weight in state.items() if not name.startswith("head.")}
    stages = count_layers(state, f"{BACKBONE}stages.")
    rows, width = state["pos_embed"].shape[1:]
    side = math.isqrt(rows - 1)
    if side**2 != rows - 1:
        raise UserError(f"The {rows - 1} places of pos_embed form no square grid; images must be square.")
    patch_size = stem_stride(stages) * state["patch_embed.proj.weight"].shape[-1]
    hidden = len(state["blocks.0.mlp.fc1.bias"])
    return ImageEncoderConfig(
        name="hybrid",
        image_size=side * patch_size,
        patch_size=patch_size,
        width=width,
        layers=count_layers(state, "blocks."),
        heads=max(width // HEAD_WIDTH, 1),
        feed_forward=0 if hidden == 4 * width else hidden,
        stem=[count_layers(state, f"{BACKBONE}stages.{stage}.blocks.") for stage in range(stages)],
    ), state
