"""Attention of texts that stand one behind the other as rows, without padding and without copies of image memories.

PyTorch's kernels want padded texts, and the keys of an image copied for each text that does not stand beside its
others; then most of their time goes into what is masked. These read the rows where they are. They need Triton, which
comes with PyTorch for GPUs; `vlp.models.flat_kernels` has the kernels.
"""

import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlp.models.image_memory import ImageMemory

HEAD_DIMS = (16, 32, 64, 128)  # that the kernels have
log = logging.getLogger(__name__)


@dataclass
class FlatTexts:
    """Where texts stand among rows.

    Attributes:
        rows: their number, including those that belong to no text.
        longest: at least the tokens of the longest text.
        starts, lengths: int32 [texts], the first row of each text and the number of its rows.
        causal: int32 [texts], 1 where a token does not see later ones.
        seeds: int64 [layers], of the dropout of attention weights; in a layer int64 [].
    """

    rows: int
    longest: int
    starts: Tensor
    lengths: Tensor
    causal: Tensor
    seeds: Tensor

    def at_layer(self, number: int) -> "FlatTexts":
        """Those of a layer."""
        return replace(self, seeds=self.seeds[number])


@dataclass
class FlatMemory:
    """Texts that meet the images of one memory.

    Attributes:
        texts: numbered and placed within the rows of these texts.
        memory: all layers.
        both: the layer's keys and values, [2, images, heads, tokens, head_dim], in any strides.
        images: int32 [texts], the image of each text.
        ends, order: int32 [images + 1] and [texts]: the texts of image i are `order[ends[i] : ends[i + 1]]`.
    """

    texts: FlatTexts
    memory: ImageMemory | None
    both: Tensor
    images: Tensor
    ends: Tensor
    order: Tensor

    def at_layer(self, number: int) -> "FlatMemory":
        """That of a layer."""
        assert self.memory is not None
        return replace(self, texts=self.texts.at_layer(number), memory=None, both=self.memory.layers[number])


def place_texts(masks: list[Tensor], rows: list[int], causal: list[bool], seeds: Tensor) -> FlatTexts:
    """The texts of several uses, whose rows follow each other.

    Args:
        masks: bool [texts, tokens] of each use; its tokens take its first rows.
        rows: of each use.
        causal: whether its tokens see no later ones.
        seeds: int64 [layers].
    """
    lengths = [mask.sum(dim=1) for mask in masks]
    firsts = [sum(rows[:number]) for number in range(len(rows))]
    starts = [one.cumsum(0) - one + first for one, first in zip(lengths, firsts, strict=True)]
    kinds = [torch.full_like(one, int(kind)) for one, kind in zip(lengths, causal, strict=True)]
    starts, lengths, kinds = (torch.cat(parts).to(torch.int32) for parts in (starts, lengths, kinds))
    return FlatTexts(sum(rows), max(mask.shape[1] for mask in masks), starts, lengths, kinds, seeds)


def place_memory(texts: FlatTexts, memory: ImageMemory, images: Tensor) -> FlatMemory:
    """Texts and the image of a memory that each of them meets, int64 [texts]."""
    ordered, order = images.sort(stable=True)
    numbers = torch.arange(len(memory) + 1, device=images.device)
    ends = torch.searchsorted(ordered, numbers)
    images, ends, order = (one.to(torch.int32) for one in (images, ends, order))
    return FlatMemory(texts, memory, memory.layers[0], images, ends, order)


def flat_self_attention(qkv: Tensor, texts: FlatTexts, heads: int, dropping: float) -> Tensor:
    """Each row attends to the rows of its text: softmax(query key^T / sqrt(head_dim)) value.

    Args:
        qkv: queries, keys and values [rows, 3 width].
        dropping: the probability of dropping an attention weight; 0 outside training.

    Returns:
        [rows, width], zero in rows that belong to no text.
    """
    places = (texts.starts, texts.lengths, texts.causal, texts.seeds)
    return torch.ops.vlp.flat_self_attention(qkv, *places, texts.longest, heads, dropping)[0]


def flat_cross_attention(query: Tensor, memories: list[FlatMemory], dropping: float) -> Tensor:
    """Each row attends to the image of its text, [rows, width] -> the same shape; as `flat_self_attention`.

    Args:
        query: the rows of the texts of each memory in turn.
    """
    parts = query.split([one.texts.rows for one in memories]) if len(memories) > 1 else [query]
    done = []
    for part, one in zip(parts, memories, strict=True):
        texts = one.texts
        places = (texts.starts, texts.lengths, texts.seeds, one.images, one.ends, one.order)
        done.append(torch.ops.vlp.flat_cross_attention(part, one.both, *places, texts.longest, dropping)[0])
    return torch.cat(done) if len(done) > 1 else done[0]


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels can be compiled for a device, for which Triton needs a C compiler.

    GPUs before Ampere have too little memory that a program's threads share.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        numbers = torch.ones(1, dtype=torch.int32, device=device)
        texts = FlatTexts(1, 1, numbers - 1, numbers, numbers - 1, torch.zeros((), dtype=torch.int64, device=device))
        flat_self_attention(torch.zeros(1, 48, dtype=torch.bfloat16, device=device), texts, 1, 0.0)
    except ImportError:
        return False
    except Exception as error:  # Triton, the C compiler and the driver raise many kinds
        log.warning("Training is slower here: Triton cannot compile (%s).", error)
        return False
    return True


@torch.library.custom_op("vlp::flat_self_attention", mutates_args=())
def _self_attention(
    qkv: Tensor,
    starts: Tensor,
    lengths: Tensor,
    causal: Tensor,
    seed: Tensor,
    longest: int,
    heads: int,
    dropping: float,
) -> tuple[Tensor, Tensor]:
    """The gathered rows [rows, width], and float32 [rows, heads], the base-2 logarithm of each softmax's sum."""
    from vlp.models.flat_kernels import Places, attend

    return attend(qkv, qkv, Places.within(qkv, heads), starts, lengths, starts, causal, seed, longest, dropping)


@_self_attention.register_fake
def _(qkv: Tensor, starts: Tensor, lengths: Tensor, causal: Tensor, seed: Tensor, longest: int, heads: int, *_: Any):
    rows, width = qkv.shape
    return qkv.new_empty(rows, width // 3), qkv.new_empty(rows, heads, dtype=torch.float32)


@torch.library.custom_op("vlp::flat_self_attention_backward", mutates_args=())
def _self_attention_backward(
    gradient: Tensor,
    gathered: Tensor,
    sums: Tensor,
    qkv: Tensor,
    starts: Tensor,
    lengths: Tensor,
    causal: Tensor,
    seed: Tensor,
    longest: int,
    heads: int,
    dropping: float,
) -> Tensor:
    """The gradient of `qkv`."""
    from vlp.models.flat_kernels import Places, attend_backward

    made = torch.zeros_like(qkv)  # rows that belong to no text stay zero
    given, settings = (gradient, gathered, sums), (starts, lengths, causal, seed, longest, dropping)
    attend_backward(given, (qkv, qkv), (made, made), Places.within(qkv, heads), settings, None)
    return made


@_self_attention_backward.register_fake
def _(gradient: Tensor, gathered: Tensor, sums: Tensor, qkv: Tensor, *_: Any):
    return torch.empty_like(qkv)


@torch.library.custom_op("vlp::flat_cross_attention", mutates_args=())
def _cross_attention(
    query: Tensor,
    both: Tensor,
    starts: Tensor,
    lengths: Tensor,
    seed: Tensor,
    images: Tensor,
    ends: Tensor,
    order: Tensor,
    longest: int,
    dropping: float,
) -> tuple[Tensor, Tensor]:
    """As `_self_attention`; the arguments are those of `FlatMemory`."""
    from vlp.models.flat_kernels import Places, attend

    places = Places.to_images(query, both)
    return attend(query, both, places, starts, lengths, images, None, seed, longest, dropping)


@_cross_attention.register_fake
def _(query: Tensor, both: Tensor, *_: Any):
    return query.new_empty(query.shape), query.new_empty(query.shape[0], both.shape[2], dtype=torch.float32)


@torch.library.custom_op("vlp::flat_cross_attention_backward", mutates_args=())
def _cross_attention_backward(
    gradient: Tensor,
    gathered: Tensor,
    sums: Tensor,
    query: Tensor,
    both: Tensor,
    starts: Tensor,
    lengths: Tensor,
    seed: Tensor,
    images: Tensor,
    ends: Tensor,
    order: Tensor,
    longest: int,
    dropping: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of `query` and `both`."""
    from vlp.models.flat_kernels import Places, attend_backward

    wanted = torch.zeros_like(query), torch.empty_like(both)
    given, settings = (gradient, gathered, sums), (starts, lengths, None, seed, longest, dropping)
    attend_backward(given, (query, both), wanted, Places.to_images(query, both), settings, (ends, order))
    return wanted


@_cross_attention_backward.register_fake
def _(gradient: Tensor, gathered: Tensor, sums: Tensor, query: Tensor, both: Tensor, *_: Any):
    return torch.empty_like(query), torch.empty_like(both)


def _keep_self(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, starts, lengths, causal, seed, *ctx.numbers = inputs
    ctx.save_for_backward(*output, qkv, starts, lengths, causal, seed)


def _differentiate_self(ctx: Any, gradient: Tensor, _: Tensor) -> tuple:
    made = torch.ops.vlp.flat_self_attention_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers)
    return made, *[None] * 7


def _keep_cross(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, longest, dropping = inputs
    ctx.numbers = longest, dropping
    ctx.save_for_backward(*output, *tensors)


def _differentiate_cross(ctx: Any, gradient: Tensor, _: Tensor) -> tuple:
    made = torch.ops.vlp.flat_cross_attention_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers)
    return *made, *[None] * 8


_self_attention.register_autograd(_differentiate_self, setup_context=_keep_self)
_cross_attention.register_autograd(_differentiate_cross, setup_context=_keep_cross)
