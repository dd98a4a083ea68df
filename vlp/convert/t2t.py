"""Converting the published checkpoints of T2T-ViT."""

import math

from vlp.config_model import ImageEncoderConfig
from vlp.convert.tables import State, count_layers
from vlp.errors import UserError
from vlp.models.image_encoders.t2t import PATCH, TOKEN_WIDTH

HEAD_WIDTH = 64  # of all published models that have weights
PUBLISHED_FLOOR = 1e-8
HEADS = ("head.", "aux_head.")  # linear layers to classes; the second one is that of token labeling


def t2t_from_published(weights: State) -> tuple[ImageEncoderConfig, State] | None:
    """The settings and weights of a published T2T-ViT; None if the weights are of something else.

    The names are ours. The published transformers between the splits divide their scores by the square root of the
    width before the queries are narrowed, ours by that of the queries' own width, so the queries are scaled.

    Raises:
        UserError: the positions do not form a square grid and a class token.
    """
    state = {name.removeprefix("module."): weight for name, weight in weights.items()}
    if "tokens_to_token.project.weight" not in state or "pos_embed" not in state:
        return None
    state = {name: weight for name, weight in state.items() if not name.startswith(HEADS)}
    for number in (1, 2):
        name = f"tokens_to_token.attention{number}.attn.qkv.weight"
        if name in state:
            weight = state[name].clone()  # [3 x 64, width]
            weight[:TOKEN_WIDTH] *= math.sqrt(TOKEN_WIDTH / weight.shape[1])
            state[name] = weight
    rows, width = state["pos_embed"].shape[1:]
    side = math.isqrt(rows - 1)
    if side**2 != rows - 1:
        raise UserError(f"The {rows - 1} places of pos_embed form no square grid; images must be square.")
    hidden = state.get("blocks.0.mlp.fc1.bias")
    performer = "tokens_to_token.attention1.w" in state
    return ImageEncoderConfig(
        name="t2t",
        image_size=side * PATCH,
        width=width,
        layers=count_layers(state, "blocks."),
        heads=max(width // HEAD_WIDTH, 1),
        feed_forward=0 if hidden is None else len(hidden),
        norm_eps=1e-5,
        performer=performer,
        performer_floor=PUBLISHED_FLOOR if performer else 0.0,
    ), state
