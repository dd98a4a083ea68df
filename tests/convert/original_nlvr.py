"""The original NLVR network: random weights under its names, and what it computes from them, by plain operations.

Source: the paper's appendix on NLVR2 and Figure 5, and the names and shapes of the published checkpoints.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS, WIDTH, HEADS, UP, PATCH, SIZE = 12, 128, 2, 64, 16, 32
FIRST_MERGE = 6  # layers from this one on concatenate and project; those before it average

State = dict[str, Tensor]


def random_state(words: int, seed: int = 0) -> State:
    """Random weights with the names and shapes of an original NLVR checkpoint."""
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def linear(name: str, outs: int, ins: int) -> None:
        state[f"{name}.weight"] = torch.randn(outs, ins, generator=rng) * (1.5 / ins**0.5)
        state[f"{name}.bias"] = torch.randn(outs, generator=rng) * 0.1

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + torch.randn(WIDTH, generator=rng) * 0.1
        state[f"{name}.bias"] = torch.randn(WIDTH, generator=rng) * 0.1

    state["visual_encoder.cls_token"] = torch.randn(1, 1, WIDTH, generator=rng)
    state["visual_encoder.pos_embed"] = torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDTH, generator=rng)
    state["visual_encoder.patch_embed.proj.weight"] = torch.randn(WIDTH, 3, PATCH, PATCH, generator=rng) * 0.05
    state["visual_encoder.patch_embed.proj.bias"] = torch.zeros(WIDTH)
    for name, outs, ins in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 2, 1), ("mlp.fc2", 1, 2)):
        linear(f"visual_encoder.blocks.0.{name}", outs * WIDTH, ins * WIDTH)
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        norm(f"visual_encoder.{name}")
    state["text_encoder.embeddings.word_embeddings.weight"] = torch.randn(words, WIDTH, generator=rng)
    state["text_encoder.embeddings.position_embeddings.weight"] = torch.randn(40, WIDTH, generator=rng)
    norm("text_encoder.embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"text_encoder.encoder.layer.{number}"
        for own in ("attention.self", "crossattention.self0", "crossattention.self1"):
            for part in ("query", "key", "value"):
                linear(f"{layer}.{own}.{part}", WIDTH, WIDTH)
        for name in ("attention.output.dense", "crossattention.output.dense0", "crossattention.output.dense1"):
            linear(f"{layer}.{name}", WIDTH, WIDTH)
        if number >= FIRST_MERGE:
            linear(f"{layer}.crossattention.output.merge_layer", WIDTH, 2 * WIDTH)
        linear(f"{layer}.intermediate.dense", UP, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, UP)
        for name in ("attention.output", "crossattention.output", "output"):
            norm(f"{layer}.{name}.LayerNorm")
    linear("cls_head.0", WIDTH, WIDTH)
    linear("cls_head.2", 2, WIDTH)
    return state


def logits(state: State, left: Tensor, right: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits [texts, 2] of sentences about pairs.

    Args:
        left, right: image tokens [texts, tokens, width].
        ids, mask: int64 and bool [texts, length].
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def attend(name: str, x: Tensor, memory: Tensor, hidden: Tensor | None = None) -> Tensor:
        parts = [linear(f"{name}.{part}", one) for part, one in (("query", x), ("key", memory), ("value", memory))]
        query, key, value = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in parts)
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    words = state["text_encoder.embeddings.word_embeddings.weight"][ids]
    positions = state["text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("text_encoder.embeddings.LayerNorm", words + positions)
    for number in range(LAYERS):
        layer = f"text_encoder.encoder.layer.{number}"
        y = linear(f"{layer}.attention.output.dense", attend(f"{layer}.attention.self", x, x, ~mask))
        x = norm(f"{layer}.attention.output.LayerNorm", x + y)
        cross = f"{layer}.crossattention"
        first = linear(f"{cross}.output.dense0", attend(f"{cross}.self0", x, left))
        second = linear(f"{cross}.output.dense1", attend(f"{cross}.self1", x, right))
        if number >= FIRST_MERGE:
            y = linear(f"{cross}.output.merge_layer", torch.cat([first, second], dim=-1))
        else:
            y = (first + second) / 2
        x = norm(f"{cross}.output.LayerNorm", x + y)
        y = linear(f"{layer}.output.dense", F.gelu(linear(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", x + y)
    return linear("cls_head.2", linear("cls_head.0", x[:, 0]).relu())
