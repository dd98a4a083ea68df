"""Names of our weights and of other projects' weights: tables, and state dicts renamed by them.

A table maps each of our names to a tuple of their names. There are several where our attention keeps query, key and
value in one matrix: our tensor is theirs concatenated. A name stands for a module (its weight and bias) or for a single
parameter.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from vlp.config_model import Sharing
from vlp.models.text_layers import shared_parts
from vlp.models.text_rows import Side

Table = dict[str, tuple[str, ...]]
State = dict[str, Tensor]


def blip_image_table(layers: int) -> Table:
    """The vision model of BLIP in `transformers`."""
    table: Table = {
        "cls_token": ("embeddings.class_embedding",),
        "pos_embed": ("embeddings.position_embedding",),
        "patch_embed.proj": ("embeddings.patch_embedding",),
        "norm": ("post_layernorm",),
    }
    for n in range(layers):
        ours, theirs = f"blocks.{n}", f"encoder.layers.{n}"
        table |= {
            f"{ours}.norm1": (f"{theirs}.layer_norm1",),
            f"{ours}.attn.qkv": (f"{theirs}.self_attn.qkv",),
            f"{ours}.attn.proj": (f"{theirs}.self_attn.projection",),
            f"{ours}.norm2": (f"{theirs}.layer_norm2",),
            f"{ours}.mlp.fc1": (f"{theirs}.mlp.fc1",),
            f"{ours}.mlp.fc2": (f"{theirs}.mlp.fc2",),
        }
    return table


def timm_image_table(layers: int) -> Table:
    """The ViT of timm, which the original BLIP uses, too; we use the same names."""
    return {ours: (ours,) for ours in blip_image_table(layers)}


def vit_image_table(layers: int) -> Table:
    """The ViT of `transformers`, with the names in its files."""
    table: Table = {
        "cls_token": ("embeddings.cls_token",),
        "pos_embed": ("embeddings.position_embeddings",),
        "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
        "norm": ("layernorm",),
    }
    for n in range(layers):
        ours, theirs = f"blocks.{n}", f"encoder.layer.{n}"
        table |= {
            f"{ours}.norm1": (f"{theirs}.layernorm_before",),
            f"{ours}.attn.qkv": tuple(f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")),
            f"{ours}.attn.proj": (f"{theirs}.attention.output.dense",),
            f"{ours}.norm2": (f"{theirs}.layernorm_after",),
            f"{ours}.mlp.fc1": (f"{theirs}.intermediate.dense",),
            f"{ours}.mlp.fc2": (f"{theirs}.output.dense",),
        }
    return table


def clip_image_table(layers: int) -> Table:
    """The vision transformer of open_clip."""
    table: Table = {
        "cls_token": ("class_embedding",),
        "pos_embed": ("positional_embedding",),
        "patch_embed.proj.weight": ("conv1.weight",),
        "norm_pre": ("ln_pre",),
        "norm": ("ln_post",),
    }
    for n in range(layers):
        ours, theirs = f"blocks.{n}", f"transformer.resblocks.{n}"
        table |= {
            f"{ours}.norm1": (f"{theirs}.ln_1",),
            f"{ours}.attn.qkv.weight": (f"{theirs}.attn.in_proj_weight",),
            f"{ours}.attn.qkv.bias": (f"{theirs}.attn.in_proj_bias",),
            f"{ours}.attn.proj": (f"{theirs}.attn.out_proj",),
            f"{ours}.norm2": (f"{theirs}.ln_2",),
            f"{ours}.mlp.fc1": (f"{theirs}.mlp.c_fc",),
            f"{ours}.mlp.fc2": (f"{theirs}.mlp.c_proj",),
        }
    return table


def text_table(layers: int, side: Side, sharing: Sharing, cross_attention: bool = True) -> Table:
    """The text tower's encoder or decoder, with the names of BERT and BLIP.

    Args:
        side: "encoder" or "decoder", which selects our weights where the two sides do not share them.
        sharing: what the two sides of our tower share.
        cross_attention: False for BERT, which has none.
    """
    shared = shared_parts(sharing)

    def place(part: str) -> str:
        return f"{part}.{'shared' if part in shared else side}"

    words = place("embeddings")
    table: Table = {
        f"{words}.words.weight": ("embeddings.word_embeddings.weight",),
        f"{words}.positions.weight": ("embeddings.position_embeddings.weight",),
        f"{words}.norm": ("embeddings.LayerNorm",),
    }
    for n in range(layers):
        layer, theirs = f"layers.{n}", f"encoder.layer.{n}"
        own, forward = f"{layer}.{place('self_attention')}", f"{layer}.{place('feed_forward')}"
        table |= {
            f"{own}.qkv": tuple(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")),
            f"{own}.out": (f"{theirs}.attention.output.dense",),
            f"{own}.norm": (f"{theirs}.attention.output.LayerNorm",),
            f"{forward}.up": (f"{theirs}.intermediate.dense",),
            f"{forward}.down": (f"{theirs}.output.dense",),
            f"{forward}.norm": (f"{theirs}.output.LayerNorm",),
        }
        if cross_attention:
            across = f"{layer}.{place('cross_attention')}"
            table |= {
                f"{across}.query": (f"{theirs}.crossattention.self.query",),
                f"{across}.key_value": tuple(f"{theirs}.crossattention.self.{part}" for part in ("key", "value")),
                f"{across}.out": (f"{theirs}.crossattention.output.dense",),
                f"{across}.norm": (f"{theirs}.crossattention.output.LayerNorm",),
            }
    return table


def pair_table(layers: int) -> Table:
    """The cross-attention to pairs of images, and the head, with the names of the original NLVR network."""
    table: Table = {"pair_head.0": ("cls_head.0",), "pair_head.2": ("cls_head.2",)}
    for n in range(layers):
        across = f"text_tower.layers.{n}.cross_attention.encoder"
        theirs = f"text_encoder.encoder.layer.{n}.crossattention"
        for side in (0, 1):
            parts = {part: f"{theirs}.self{side}.{part}" for part in ("query", "key", "value")}
            table |= {
                f"{across}.query.{side}": (parts["query"],),
                f"{across}.key_value.{side}": (parts["key"], parts["value"]),
                f"{across}.out.{side}": (f"{theirs}.output.dense{side}",),
            }
        table |= {
            f"{across}.merge": (f"{theirs}.output.merge_layer",),
            f"{across}.norm": (f"{theirs}.output.LayerNorm",),
        }
    return table


LANGUAGE_HEAD: Table = {"transform": ("transform.dense",), "norm": ("transform.LayerNorm",), "bias": ("bias",)}


def prefixed(table: Table, ours: str, theirs: str) -> Table:
    """The table with a prefix added to our names and another one to theirs."""
    return {ours + name: tuple(theirs + one for one in names) for name, names in table.items()}


def to_our_names(table: Table, state: State) -> tuple[State, set[str]]:
    """Our weights from theirs, as far as theirs contain them, and the names of theirs that were used."""
    renamed: State = {}
    used: set[str] = set()
    for module, sources in table.items():
        for kind in ("", ".weight", ".bias"):
            names = [source + kind for source in sources]
            if all(name in state for name in names):
                parts = [state[name] for name in names]
                renamed[module + kind] = torch.cat(parts) if len(parts) > 1 else parts[0]
                used.update(names)
    return renamed, used


def to_their_names(table: Table, state: State) -> tuple[State, set[str]]:
    """Their weights from ours, and the names of ours that were used; the inverse of `to_our_names`."""
    renamed: State = {}
    used: set[str] = set()
    for module, sources in table.items():
        for kind in ("", ".weight", ".bias"):
            if module + kind in state:
                tensor = state[module + kind]
                parts = tensor.chunk(len(sources)) if len(sources) > 1 else [tensor]
                renamed |= {name + kind: part.contiguous() for name, part in zip(sources, parts, strict=True)}
                used.add(module + kind)
    return renamed, used


def count_layers(state: State, prefix: str) -> int:
    """The number of numbered modules after `prefix`."""
    rests = [name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)]
    return max((int(rest) + 1 for rest in rests if rest.isdigit()), default=0)


def group_names(names: Iterable[str]) -> list[str]:
    """Names of weights as distinct names of modules, with * for layer numbers."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name for name in names))
