"""What a decoding text tower keeps: the image memory that cross-attention reads, and the cache of self-attention."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlp.models.attention_bias import causal_bias, padding_bias


@dataclass
class ImageMemory:
    """Keys and values of images for every layer's cross-attention.

    A memory may also hold other states that a decoder reads, such as those of questions.

    Attributes:
        layers: one tensor a layer with keys and values, each [2, images, heads, tokens, head_dim].
        mask: bool [images, tokens], False at padding, which cross-attention ignores; None where nothing is padding.
        keys, values: views of `layers`, each [images, heads, tokens, head_dim].
    """

    layers: list[Tensor]
    mask: Tensor | None = None
    keys: list[Tensor] = field(init=False)
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        both = [layer.unbind(0) for layer in self.layers]
        self.keys, self.values = [key for key, _ in both], [value for _, value in both]

    def __len__(self) -> int:
        return self.layers[0].shape[1]

    def select(self, rows: Tensor) -> "ImageMemory":
        """The memory of the images numbered `rows` (int64 [n], repeats allowed)."""
        layers = [layer.index_select(1, rows) for layer in self.layers]
        return ImageMemory(layers, None if self.mask is None else self.mask.index_select(0, rows))

    def for_texts(self, image_index: Tensor | None, dtype: torch.dtype) -> Callable[[int], "LayerMemory"]:
        """A function that gives a layer's memory by the layer's number.

        Args:
            image_index: int64 [texts], the image that each text meets; None: the images in their order.
            dtype: of the scores that a mask is added to.
        """
        bias = None if self.mask is None else padding_bias(self.mask).to(dtype)
        if image_index is None:
            return lambda number: LayerMemory(self.keys[number], self.values[number], bias)
        bias = None if bias is None else bias.index_select(0, image_index)
        take = image_taker(image_index, self.keys[0])
        return lambda number: LayerMemory(take(self.keys[number]), take(self.values[number]), bias)


class LayerMemory(NamedTuple):
    """One layer's keys and values, [images, heads, tokens, head_dim], and the bias of its scores.

    The bias is [images, 1, 1, tokens], -inf at padding; None where nothing is padding.
    """

    key: Tensor
    value: Tensor
    bias: Tensor | None


def image_taker(rows: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that takes the images numbered `rows` (int64 [n]) from tensors [images, ...] like `like`.

    Their gradient sums what the same image gets from several rows. PyTorch adds these on a GPU one number at a time and
    in no fixed order; in half precision a product with the zeros and ones of `rows` is several times as fast.
    """
    if like.device.type != "cuda" or like.dtype not in (torch.bfloat16, torch.float16) or not like.requires_grad:
        return lambda images: images.index_select(0, rows)
    chosen = torch.zeros(len(rows), len(like), dtype=like.dtype, device=like.device).scatter_(1, rows[:, None], 1)
    return lambda images: TakeImages.apply(images, rows, chosen)


class TakeImages(torch.autograd.Function):
    """`index_select` of images, whose gradient is a product; see `image_taker`."""

    @staticmethod
    def forward(context: Any, images: Tensor, rows: Tensor, chosen: Tensor) -> Tensor:
        """images [images, ...], rows int64 [n], chosen [n, images] with a one for each row -> [n, ...]."""
        context.save_for_backward(chosen)
        return images.index_select(0, rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """gradient [n, ...] -> that of the images."""
        (chosen,) = context.saved_tensors
        return (chosen.T @ gradient.flatten(1)).view(-1, *gradient.shape[1:]), None, None


@dataclass
class LayerCache:
    """One layer's keys and values of the tokens decoded so far: [rows, heads, max_length, head_dim], allocated once."""

    max_length: int
    length: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' [rows, heads, new, head_dim]; returns all tokens' keys and values so far."""
        if self.keys is None or self.values is None:
            rows, heads, _, head_dim = key.shape
            self.keys = key.new_empty(rows, heads, self.max_length, head_dim)
            self.values = value.new_empty(rows, heads, self.max_length, head_dim)
        start, self.length = self.length, self.length + key.shape[2]
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """As in `SelfAttentionCache`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class SelfAttentionCache:
    """The caches of all layers."""

    def __init__(self, layers: int, max_length: int):
        self.layers = [LayerCache(max_length) for _ in range(layers)]

    def positions(self, tokens: int) -> slice:
        """Those of the next tokens."""
        return slice(self.layers[0].length, self.layers[0].length + tokens)

    def bias(self, tokens: int, device: torch.device) -> Tensor | None:
        """What hides later tokens from the next ones, float [1, 1, tokens, all tokens so far]; None: nothing."""
        return causal_bias(self.layers[0].length, tokens, device) if tokens > 1 else None

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat rows (int64 [n]), as beams move and captions finish."""
        for layer in self.layers:
            layer.select(rows)


class FixedCache:
    """A `SelfAttentionCache` whose shapes never change: every step attends to all places, and unused ones are masked.

    The next positions are a tensor on the device, so the same kernels serve every step and can be recorded in a CUDA
    graph.

    Attributes:
        states: [layers, 2, rows, heads, room, head_dim], keys and values.
        next: int64 [new], the positions of the next tokens.
    """

    ROOM = 16  # the kernels for masked attention want a multiple of this

    def __init__(self, layers: int, rows: int, max_length: int, like: Tensor):
        """Start empty; `like` [..., heads, any, head_dim] gives heads, dtype and device."""
        room = max_length + -max_length % self.ROOM
        # Zeros: what is not written yet has weight 0, and 0 times NaN would be NaN.
        self.states = like.new_zeros(layers, 2, rows, like.shape[-3], room, like.shape[-1])
        self.next = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.layers = [FixedLayerCache(keys, values, self) for keys, values in self.states]

    def positions(self, tokens: int) -> Tensor:
        """Those of the next tokens, int64 [tokens]."""
        return self.next

    def bias(self, tokens: int, device: torch.device) -> Tensor:
        """What hides later tokens and unused places from the next tokens, float [1, 1, tokens, room]."""
        later = torch.arange(self.states.shape[4], device=device) > self.next[:, None]
        return torch.zeros(later.shape, device=device).masked_fill(later, float("-inf"))[None, None]

    def select(self, rows: Tensor) -> None:
        """Reorder or repeat rows; int64 [rows], as many as there are."""
        self.states.copy_(self.states.index_select(2, rows))


@dataclass
class FixedLayerCache:
    """One layer's part of a `FixedCache`: views [rows, heads, room, head_dim]."""

    keys: Tensor
    values: Tensor
    whole: FixedCache

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' [rows, heads, new, head_dim]; returns keys and values of all places."""
        self.keys.index_copy_(2, self.whole.next, key)
        self.values.index_copy_(2, self.whole.next, value)
        return self.keys, self.values


AnyLayerCache = LayerCache | FixedLayerCache
DecodingCache = SelfAttentionCache | FixedCache
