"""Texts as the rows that the layers of a text tower compute: of one use of the tower or of several, without padding.

A layer sees rows [rows, width], one for each token. Where padding is removed, captions cost about half: they are about
half as long as the longest of their batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vlp.models.flat_attention import FlatMemory, FlatTexts
from vlp.models.image_memory import AnyLayerCache, DecodingCache, ImageMemory, LayerMemory

Side = Literal["encoder", "decoder"]
Span = tuple[Side, int, int]  # a side, its first use and the one behind its last
WORTHWHILE = 0.9  # with a larger share of real tokens, moving the rows costs more than it saves


@dataclass
class TextUse:
    """Texts, and what a text tower does with them.

    Attributes:
        ids: int64 [texts, tokens]; with a cache only the tokens that it does not hold yet.
        mask: bool [texts, all tokens], including the cached ones; False at padding; None when nothing is padding.
        side: "encoder" reads in both directions unless the tower is causal, "decoder" from left to right.
        memory: from `TextTower.project_image`; None: text alone.
        image_index: int64 [texts], the image that each text meets. None: every image has the same number of texts,
            which are adjacent and in the order of the images.
        cache: of the tokens before; it grows by the new ones.
        count: of the tokens in `mask`, or more, where the host knows it: then a GPU can skip padding.
    """

    ids: Tensor
    mask: Tensor | None
    side: Side
    memory: ImageMemory | None = None
    image_index: Tensor | None = None
    cache: DecodingCache | None = None
    count: int | None = None


@dataclass
class Layout:
    """Where the rows of texts stand.

    Attributes:
        texts, tokens: the shape of the padded texts.
        index: int64 [rows], places of the rows in the flattened [texts, tokens]: all tokens and a little padding.
            None: padding was not removed, and every place has a row.
    """

    texts: int
    tokens: int
    index: Tensor | None = None

    @staticmethod
    def padded(ids: Tensor) -> "Layout":
        """That of texts [texts, tokens] which keep their padding."""
        texts, tokens = ids.shape
        return Layout(texts, tokens)

    @property
    def rows(self) -> int:
        """Their number."""
        return self.texts * self.tokens if self.index is None else len(self.index)

    def remove_padding(self, x: Tensor) -> Tensor:
        """[texts, tokens, width] -> [rows, width]."""
        return x.flatten(0, 1) if self.index is None else _Remove.apply(x.flatten(0, 1), self.index)

    def put_back(self, x: Tensor) -> Tensor:
        """[rows, width] -> [texts, tokens, width], zero where padding was removed."""
        if self.index is not None:
            x = _PutBack.apply(x, self.index, self.texts * self.tokens)
        return x.view(self.texts, self.tokens, -1)


@dataclass
class TextRows:
    """The rows of one use, and what a layer's attention must know of it.

    Attributes:
        bias: of self-attention, [texts or 1, 1, tokens or 1, keys].
        memory: the layer's, where each image has equally many of the texts, which are adjacent; None: text alone.
        cache: the layer's.
    """

    layout: Layout
    bias: Tensor | None = None
    memory: LayerMemory | None = None
    cache: AnyLayerCache | None = None


@dataclass
class FlatGroup:
    """What attention without padding needs of a group: its texts, and the image memories that they meet in turn."""

    texts: FlatTexts
    memories: list[FlatMemory]

    def at_layer(self, number: int) -> "FlatGroup":
        """That of a layer."""
        return FlatGroup(self.texts.at_layer(number), [memory.at_layer(number) for memory in self.memories])


@dataclass
class RowGroup:
    """The rows that one module of a layer computes together: those of adjacent uses.

    Attributes:
        flat: None where attention sees padded texts.
    """

    side: Side
    uses: list[TextRows]
    flat: FlatGroup | None = None

    @property
    def rows(self) -> int:
        """Their number."""
        return sum(use.layout.rows for use in self.uses)

    def each(self, x: Tensor, function: Callable[[Tensor, TextRows], Tensor]) -> Tensor:
        """Apply a function of padded texts [texts, tokens, any] to the rows of each use, [rows, any]."""
        parts = x.split([use.layout.rows for use in self.uses]) if len(self.uses) > 1 else [x]
        done = [
            use.layout.remove_padding(function(use.layout.put_back(part), use))
            for part, use in zip(parts, self.uses, strict=True)
        ]
        return torch.cat(done) if len(done) > 1 else done[0]


@dataclass
class LayerTexts:
    """All the rows of a layer: together, and by side, for modules that encoder and decoder do not share."""

    together: RowGroup
    by_side: list[RowGroup]
    meet_images: bool

    def groups(self, shared: bool) -> list[RowGroup]:
        """The groups that the modules of one kind compute."""
        return [self.together] if shared else self.by_side


def layer_texts(spans: list[Span], texts: list[TextRows], flat: list[FlatGroup] | None, number: int) -> LayerTexts:
    """The rows of the layer with a number.

    Args:
        spans: from `side_spans`.
        texts: of each use.
        flat: of all uses together, then of those of each side.
    """
    by_side = [RowGroup(side, texts[first:end]) for side, first, end in spans]
    together = by_side[0] if len(spans) == 1 else RowGroup(spans[0][0], texts)
    meet_images = texts[0].memory is not None
    if flat is not None:
        for group, one in zip([together, *by_side], flat, strict=True):
            group.flat = one.at_layer(number)
        meet_images = bool(flat[0].memories)
    return LayerTexts(together, by_side, meet_images)


def side_spans(sides: list[Side]) -> list[Span]:
    """Each side, its first use and the one behind its last."""
    firsts = [number for number, side in enumerate(sides) if number == 0 or side != sides[number - 1]]
    return [(sides[first], first, end) for first, end in zip(firsts, [*firsts[1:], len(sides)], strict=True)]


def layout_of(mask: Tensor | None, count: int | None = None, worthwhile: float | None = WORTHWHILE) -> Layout | None:
    """The layout without padding of texts with a mask bool [texts, tokens]; None where removing it does not pay.

    Args:
        count: of the tokens, or more, where the host knows it. None: they are counted, but not on a GPU, where the
            host would wait for the device.
        worthwhile: the share of tokens from which removing no longer pays; None: it always does.
    """
    if mask is None or (count is None and mask.device.type != "cpu"):
        return None
    flat = mask.flatten()
    rows = min(rounded_up(int(flat.sum()) if count is None else count), len(flat))
    if worthwhile is not None and rows >= worthwhile * len(flat):
        return None
    return replace(Layout.padded(mask), index=true_places(flat, rows))


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
