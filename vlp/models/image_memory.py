"""What a decoding text tower keeps: the image memory that cross-attention reads, and the cache of self-attention."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ImageMemory:
    """Keys and values of images for every layer's cross-attention.

    A memory may also hold other states that a decoder reads, such as those of questions.

    Attributes:
        keys, values: one tensor a layer, each [images, heads, tokens, head_dim].
        mask: bool [images, tokens], False at padding, which cross-attention ignores; None where nothing is padding.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.keys[0].shape[0]

    def select(self, rows: Tensor) -> "ImageMemory":
        """The memory of the images numbered `rows` (int64 [n], repeats allowed)."""
        keys, values = ([one.index_select(0, rows) for one in layers] for layers in (self.keys, self.values))
        return ImageMemory(keys, values, None if self.mask is None else self.mask.index_select(0, rows))


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

    @property
    def length(self) -> int:
        """Tokens decoded so far."""
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat rows (int64 [n]), as beams move and captions finish."""
        for layer in self.layers:
            layer.select(rows)
