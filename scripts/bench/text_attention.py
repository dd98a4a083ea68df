"""Time the GPU kernels of attention without padding: for a training step's texts, with the tiles in use or with others.

Usage: python scripts/bench/text_attention.py [--pairs 512] [--image-tokens 197] [--dropout 0.1]
           [--tile KERNEL:ROWS,KEYS,WARPS,STAGES ...]    KERNEL: gather-images, gather-texts, gradients-images, ...
Prints milliseconds of a layer with 12 heads of 64, the median of some calls. Texts have the lengths of Flickr8k's
captions; each image meets its caption in ITM and LM, a hard caption, and as the hard image of another caption.
"""

import argparse
import re
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from vlp.bench.timing import device, seconds_of
from vlp.bench.train import MAX_TOKENS, bench_captions, bench_tokenizer
from vlp.models import flat_kernels
from vlp.models.flat_attention import (
    FlatMemory,
    FlatTexts,
    flat_cross_attention,
    flat_self_attention,
    place_memory,
    place_texts,
)
from vlp.models.image_memory import ImageMemory

HEADS, DEPTH = 12, 64
VOCABULARY = 30_524
CALLS = 30
KERNELS = {
    "gather-images": (flat_kernels.GATHER, False),
    "gather-texts": (flat_kernels.GATHER, True),
    "gradients-images": (flat_kernels.GRADIENTS, False),
    "gradients-texts": (flat_kernels.GRADIENTS, True),
}


def texts_and_memory(pairs: int, image_tokens: int, dtype: torch.dtype) -> tuple[FlatTexts, FlatMemory]:
    """The texts of ITM and LM in a step with so many pairs, and their images."""
    torch.manual_seed(0)
    _, mask = bench_tokenizer(VOCABULARY).encode(bench_captions(VOCABULARY, pairs), MAX_TOKENS)
    mask, own = mask.to(device()), torch.arange(pairs, device=device())
    tokens = int(mask.sum())
    seeds = torch.tensor([2**61 + 1], device=device())
    texts = place_texts([mask] * 4, [tokens] * 4, [False, False, False, True], seeds)
    both = torch.randn(pairs, image_tokens, 2, HEADS, DEPTH, dtype=dtype, device=device()).permute(2, 0, 3, 1, 4)
    images = torch.cat([own, own, torch.randint(pairs, (pairs,), device=device()), own])
    memory = place_memory(texts, ImageMemory([both.requires_grad_()]), images)
    return texts.at_layer(0), memory.at_layer(0)


def milliseconds(work: Callable[[], object], calls: int) -> float:
    """The median time of a call, after one that is not counted."""
    seconds_of(work)
    return 1000 * statistics.median(seconds_of(work) for _ in range(calls))


def forward_and_gradients(attend: Callable[[], Tensor], inputs: list[Tensor], calls: int) -> str:
    """Both times of attention, as text."""
    result = attend()
    gradient = torch.randn_like(result)

    def differentiate() -> None:
        torch.autograd.grad(result, inputs, gradient, retain_graph=True)

    with torch.no_grad():
        forward = milliseconds(attend, calls)
    return f"forward {forward:.3f} ms, gradients {milliseconds(differentiate, calls):.3f} ms"


def named_tile(text: str) -> tuple[str, flat_kernels.Tile]:
    """A kernel's name, and a tile for it."""
    kernel, _, numbers = text.partition(":")
    if kernel not in KERNELS or not re.fullmatch(r"\d+(,\d+){3}", numbers):
        kernels = ", ".join(KERNELS)
        raise argparse.ArgumentTypeError(f"give KERNEL:ROWS,KEYS,WARPS,STAGES with one of {kernels}, not {text!r}")
    return kernel, flat_kernels.Tile(*map(int, numbers.split(",")))


def main() -> None:
    """Set the tiles and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--image-tokens", type=int, default=197)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--tile", action="append", default=[], type=named_tile)
    options = parser.parse_args()
    for kernel, tile in options.tile:
        tiles, own = KERNELS[kernel]
        tiles[own] = tile
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32  # the kernels' interpreter has no bfloat16
    texts, memory = texts_and_memory(options.pairs, options.image_tokens, dtype)
    query = torch.randn(texts.rows, HEADS * DEPTH, dtype=dtype, device=device(), requires_grad=True)
    qkv = torch.randn(texts.rows, 3 * HEADS * DEPTH, dtype=dtype, device=device(), requires_grad=True)
    print(f"{len(texts.starts)} texts with {texts.rows} tokens, {options.image_tokens} image tokens")
    across = forward_and_gradients(
        lambda: flat_cross_attention(query, [memory], options.dropout), [query, memory.both], options.calls
    )
    print(f"texts to images: {across}")
    within = forward_and_gradients(
        lambda: flat_self_attention(qkv, texts, HEADS, options.dropout), [qkv], options.calls
    )
    print(f"texts to themselves: {within}")


if __name__ == "__main__":
    main()
