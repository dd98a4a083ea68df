"""Text without its padding: captions are about half as long as the longest of their batch, which halves the work."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp.models.clip_text import ClipTextLayer, ClipTextTower
from vlp.models.image_memory import AnyLayerCache, DecodingCache, ImageMemory
from vlp.models.text_layers import Layer, Side
from vlp.models.text_tower import TextTower

WORTHWHILE = 0.9  # with a larger share of real tokens, moving the rows costs more than it saves


@dataclass
class Unpadded:
    """Which rows of padded texts are kept.

    Attributes:
        index: int64 [kept], positions in the flattened [texts, tokens]: all tokens and a little padding.
        texts, tokens: the shape of the padded texts.
    """

    index: Tensor
    texts: int
    tokens: int

    def remove(self, x: Tensor) -> Tensor:
        """[texts, tokens, width] -> [kept, width]."""
        return _Remove.apply(x.flatten(0, 1), self.index)

    def put_back(self, x: Tensor) -> Tensor:
        """[kept, width] -> [texts, tokens, width], zero where rows were removed."""
        return _PutBack.apply(x, self.index, self.texts * self.tokens).view(self.texts, self.tokens, -1)


def find_padding(mask: Tensor | None, count: int | None = None) -> Unpadded | None:
    """The rows to keep for a mask bool [texts, tokens]; None where removing padding does not pay.

    Args:
        count: of the tokens, where the host knows it. None: they are counted, but not on a GPU, where the host would
            wait for the device.
    """
    if mask is None or (count is None and mask.device.type != "cpu"):
        return None
    flat = mask.flatten()
    rows = rounded_up(int(flat.sum()) if count is None else count)
    return Unpadded(true_places(flat, rows), *mask.shape) if rows < WORTHWHILE * len(flat) else None


def true_places(mask: Tensor, count: int) -> Tensor:
    """The first `count` places where a mask bool [places] is True, int64; then those where it is False.

    The host does not wait for the device, unlike with `nonzero`.
    """
    return (~mask).to(torch.uint8).argsort(stable=True)[:count]


def rounded_up(rows: int) -> int:
    """A number of rows, rounded up by at most an eighth to one of few numbers.

    oneDNN builds a program for every new shape of a product, which costs a small model a tenth of its training step
    (docs/benchmarks.md).
    """
    step = max(8, 2 ** (rows.bit_length() - 1) // 8) if rows else 1
    return rows + -rows % step


class UnpaddedTextTower(TextTower):
    """A text tower that removes the padding before its first layer and puts zeros back after the last one."""

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        side: Side,
        memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cache: DecodingCache | None = None,
        count: int | None = None,
    ) -> Tensor:
        unpadded = find_padding(mask, count) if cache is None else None
        if unpadded is None:
            return super()._run(ids, mask, side, memory, image_index, cache)
        x, bias = self._embed(ids, mask, side)
        x = self._run_layers(unpadded.remove(x), side, bias, memory, image_index, None, unpadded)
        return unpadded.put_back(x)


class UnpaddedLayer(Layer):
    """A layer that can take rows without padding; only attention sees the padded texts."""

    def forward(
        self,
        x: Tensor,
        side: Side,
        bias: Tensor | None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        image_index: Tensor | None = None,
        memory_bias: Tensor | None = None,
        cache: AnyLayerCache | None = None,
        unpadded: Unpadded | None = None,
    ) -> Tensor:
        """As in `Layer`, with x [kept, width] where `unpadded` is given."""
        if unpadded is None:
            return super().forward(x, side, bias, key, value, image_index, memory_bias, cache)
        attention = self.self_attention.side(side)
        y = attention.attend(unpadded.put_back(attention.qkv(x)), bias)
        x = attention.add(x, unpadded.remove(y))
        if key is not None and value is not None:
            attention = self.cross_attention.side(side)
            y = attention.attend(unpadded.put_back(attention.ask(x)), key, value, image_index, memory_bias)
            x = attention.add(x, unpadded.remove(y))
        return self.feed_forward.side(side)(x)


class UnpaddedClipTextTower(ClipTextTower):
    """CLIP's text tower without padding, as `UnpaddedTextTower`."""

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As in `ClipTextTower`; the states of padding are zero."""
        unpadded = find_padding(mask)
        if unpadded is None:
            return super().encode(ids, mask)
        x = self.embed(ids)
        bias = self.bias(x, mask)
        return unpadded.put_back(self.norm(self.run_layers(unpadded.remove(x), bias, unpadded)))


class UnpaddedClipTextLayer(ClipTextLayer):
    """A layer that can take rows without padding; only attention sees the padded texts."""

    def forward(self, x: Tensor, bias: Tensor | None, unpadded: Unpadded | None = None) -> Tensor:
        """As in `ClipTextLayer`, with x [kept, width] where `unpadded` is given."""
        if unpadded is None:
            return super().forward(x, bias)
        y = self.attend(unpadded.put_back(self.project(x)), bias)
        return self.feed_forward(self.add(x, unpadded.remove(y)))


class _Remove(torch.autograd.Function):
    """Rows of a matrix by number. PyTorch's own gradient adds rows up; here none occurs twice."""

    @staticmethod
    def forward(context: Any, x: Tensor, index: Tensor) -> Tensor:
        context.save_for_backward(index)
        context.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = context.saved_tensors
        return gradient.new_zeros(context.rows, gradient.shape[1]).index_copy_(0, index, gradient), None


class _PutBack(torch.autograd.Function):
    """The inverse of `_Remove`, and its gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        context.save_for_backward(index)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, index, x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = context.saved_tensors
        return gradient.index_select(0, index), None, None


UNPADDED: dict[type[nn.Module], type[nn.Module]] = {
    Layer: UnpaddedLayer,
    TextTower: UnpaddedTextTower,
    ClipTextLayer: UnpaddedClipTextLayer,
    ClipTextTower: UnpaddedClipTextTower,
}


def skip_padding(network: nn.Module) -> None:
    """Let the text towers of a network skip padding, in place: their classes change to those of `UNPADDED`.

    `optimise_for_cpu` does this, too. On a GPU, only texts whose tokens the host has counted lose their padding.
    """
    for module in network.modules():
        if unpadded := UNPADDED.get(type(module)):
            module.__class__ = unpadded
