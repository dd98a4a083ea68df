"""Names of our CLIP's weights and of open_clip's, and the settings of one from those of the other."""

from vlp.convert.tables import Table, clip_image_table, prefixed


def open_clip_text_table(layers: int) -> Table:
    """The text transformer of open_clip and `ClipTextTower`."""
    table: Table = {
        "words.weight": ("token_embedding.weight",),
        "pos_embed": ("positional_embedding",),
        "norm": ("ln_final",),
    }
    for n in range(layers):
        ours, theirs = f"layers.{n}", f"transformer.resblocks.{n}"
        table |= {
            f"{ours}.norm1": (f"{theirs}.ln_1",),
            f"{ours}.qkv.weight": (f"{theirs}.attn.in_proj_weight",),
            f"{ours}.qkv.bias": (f"{theirs}.attn.in_proj_bias",),
            f"{ours}.out": (f"{theirs}.attn.out_proj",),
            f"{ours}.norm2": (f"{theirs}.ln_2",),
            f"{ours}.up": (f"{theirs}.mlp.c_fc",),
            f"{ours}.down": (f"{theirs}.mlp.c_proj",),
        }
    return table


def open_clip_image_table(layers: int) -> Table:
    """The vision transformer of open_clip and the ViT of our image encoder."""
    return prefixed(clip_image_table(layers), "image_encoder.tower.", "visual.")
