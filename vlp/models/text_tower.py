"""The text tower: one stack of layers with three uses, and the image memory that they share.

BLIP calls it the multimodal mixture of encoder and decoder (paper, section 3.1): a BERT whose layers also hold
cross-attention to an image. `encode` reads text alone, `match` reads text against images in both directions,
`decode` predicts text from left to right against images. Of an image, cross-attention sees keys and values that
depend on nothing else, so they are computed once, by `project_image`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlp.config import Sharing, TextTowerConfig
from vlp.errors import UserError
from vlp.models.cpu.attention import attend
from vlp.models.cpu.dropout import dropout
from vlp.models.cpu.unpadded import Unpadded, without_padding
from vlp.models.initialise import initialise
from vlp.models.precision import product_dtype

Side = Literal["encoder", "decoder"]


@dataclass
class ImageMemory:
    """Keys and values of images for every layer's cross-attention: each [images, heads, tokens, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[0]

    def select(self, rows: Tensor) -> "ImageMemory":
        """The memory of the images numbered `rows` (int64 [n], repeats allowed)."""
        return ImageMemory([k.index_select(0, rows) for k in self.keys], [v.index_select(0, rows) for v in self.values])


@dataclass
class LayerCache:
    """One layer's keys and values of the tokens decoded so far, each [rows, heads, max_length, head_dim], where room is
    reserved for all of them."""

    max_length: int
    length: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' [rows, heads, new, head_dim]; returns all tokens' keys and values so far."""
        if self.keys is None:
            rows, heads, _, head_dim = key.shape
            self.keys = key.new_empty(rows, heads, self.max_length, head_dim)
            self.values = value.new_empty(rows, heads, self.max_length, head_dim)
        start, self.length = self.length, self.length + key.shape[2]
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class SelfAttentionCache:
    """The caches of all layers."""

    def __init__(self, layers: int, max_length: int):
        self.layers = [LayerCache(max_length) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens decoded so far."""
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat rows (int64 [n]): beams that move, captions that are finished."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)


class SelfAttention(nn.Module):
    """Post-norm multi-head self-attention of BERT."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        cache: LayerCache | None = None,
        unpadded: Unpadded | None = None,
    ) -> Tensor:
        """[texts, tokens, width], or [kept, width] of `unpadded` -> the same shape; `bias` [texts or 1, 1, tokens,
        keys]."""
        qkv = self.qkv(x)
        if unpadded is not None:
            qkv = unpadded.put_back(qkv)
        texts, tokens, _ = qkv.shape
        qkv = qkv.view(texts, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [texts, heads, tokens, head_dim]
        if cache is not None:
            key, value = cache.append(key, value)
        y = attend(query, key, value, bias, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)  # [texts, tokens, width]
        if unpadded is not None:
            y = unpadded.remove(y)
        return self.norm(x + dropout(self.out(y), self.dropout, self.training))


class CrossAttention(nn.Module):
    """Post-norm multi-head attention from text to the image memory."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(image_width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def project(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[images, tokens, image width] -> keys and values, each [images, heads, tokens, head_dim]."""
        images, tokens, _ = image_tokens.shape
        key_value = self.key_value(image_tokens).view(images, tokens, 2, self.heads, -1)
        # In one piece, as every text and every token that meets it would else make its own copy.
        key, value = key_value.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return key, value

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None, unpadded: Unpadded | None = None
    ) -> Tensor:
        """[texts, tokens, width], or [kept, width] of `unpadded`, against the memory of one layer; `image_index` as in
        `TextTower.match`."""
        query = self.query(x)
        if unpadded is not None:
            query = unpadded.put_back(query)
        texts, tokens, width = query.shape
        if image_index is not None:
            key, value = key.index_select(0, image_index), value.index_select(0, image_index)
        images, heads, _, head_dim = key.shape
        # The texts of one image stand side by side as one long row of queries, so its keys are never copied.
        query = query.view(images, texts // images * tokens, heads, head_dim).transpose(1, 2)
        # [images, heads, texts an image x tokens, head_dim]
        y = attend(query, key, value, dropping=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(texts, tokens, width)
        if unpadded is not None:
            y = unpadded.remove(y)
        return self.norm(x + dropout(self.out(y), self.dropout, self.training))


class FeedForward(nn.Module):
    """Post-norm feed-forward block of BERT (exact GELU)."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.dropout = config.dropout
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        y = self.down(F.gelu(self.up(x)))
        return self.norm(x + dropout(y, self.dropout, self.training))


class Embeddings(nn.Module):
    """Word and position embeddings; BLIP has no token types."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.dropout = config.dropout
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """ids [texts, tokens], the first at position `start` -> [texts, tokens, width]."""
        positions = self.positions.weight[start : start + ids.shape[1]]
        return dropout(self.norm(self.words(ids) + positions), self.dropout, self.training)


class Both(nn.ModuleDict):
    """What encoder and decoder use at one place: one shared module, or one for each side."""

    def __init__(self, make: Callable[[], nn.Module], shared: bool):
        super().__init__({"shared": make()} if shared else {"encoder": make(), "decoder": make()})

    def side(self, side: Side) -> nn.Module:
        return self["shared"] if "shared" in self else self[side]


class Layer(nn.Module):
    """One layer: self-attention, cross-attention where there is an image, feed-forward."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        shared = shared_parts(config.sharing)
        self.self_attention = Both(lambda: SelfAttention(config), "self_attention" in shared)
        self.cross_attention = Both(lambda: CrossAttention(config, image_width), "cross_attention" in shared)
        self.feed_forward = Both(lambda: FeedForward(config), "feed_forward" in shared)

    def forward(
        self,
        x: Tensor,
        side: Side,
        bias: Tensor | None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        image_index: Tensor | None = None,
        cache: LayerCache | None = None,
        unpadded: Unpadded | None = None,
    ) -> Tensor:
        """[texts, tokens, width], or [kept, width] of `unpadded` -> the same shape; without `key` the cross-attention
        is left out."""
        x = self.self_attention.side(side)(x, bias, cache, unpadded)
        if key is not None:
            x = self.cross_attention.side(side)(x, key, value, image_index, unpadded)
        return self.feed_forward.side(side)(x)


class TextTower(nn.Module):
    """The stack of layers behind ITC, ITM and LM; see the head of this file."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        if config.width % config.heads:
            raise UserError(f"model.text_tower.width ({config.width}) must be a multiple of heads ({config.heads}).")
        self.config = config
        self.checkpointing = False
        self.embeddings = Both(lambda: Embeddings(config), "embeddings" in shared_parts(config.sharing))
        self.layers = nn.ModuleList(Layer(config, image_width) for _ in range(config.layers))
        initialise(self, config.width)

    def project_image(self, image_tokens: Tensor, side: Side = "encoder") -> ImageMemory:
        """Keys and values of images for all layers, computed once for all the texts that meet them.

        Args:
            image_tokens: [images, tokens, image width].
            side: "encoder" for `match`, "decoder" for `decode`; one memory serves both where cross-attention is
                shared (`shares_memory`).
        """
        pairs = [layer.cross_attention.side(side).project(image_tokens) for layer in self.layers]
        return ImageMemory([key for key, _ in pairs], [value for _, value in pairs])

    @property
    def shares_memory(self) -> bool:
        """Whether `match` and `decode` read the same image memory."""
        return "cross_attention" in shared_parts(self.config.sharing)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text alone, both directions: ids int64, mask bool (True: token) [texts, tokens] -> [texts, tokens, width]."""
        return self._run(ids, mask, "encoder", _padding_bias(mask))

    def match(self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None) -> Tensor:
        """Text against images, both directions.

        Args:
            ids, mask: int64 and bool [texts, tokens]; True marks a token, False padding.
            memory: from `project_image`.
            image_index: int64 [texts], the image that each text meets; None when the texts of each image stand
                together and are equally many, in the order of the images.

        Returns:
            [texts, tokens, width].
        """
        return self._run(ids, mask, "encoder", _padding_bias(mask), memory, image_index)

    def decode(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        cache: SelfAttentionCache | None = None,
    ) -> Tensor:
        """Text against images, from left to right.

        Args:
            ids: int64 [texts, tokens]; with a cache only the tokens that it does not hold yet.
            mask: bool [texts, all tokens], the cached ones included; None when nothing is padding.
            memory, image_index: as in `match`.
            cache: grows by the new tokens.

        Returns:
            [texts, tokens, width].
        """
        start = cache.length if cache is not None else 0
        bias = _causal_bias(start, ids.shape[1], ids.device)
        if mask is not None:
            bias = bias + _padding_bias(mask)
        if ids.shape[1] == 1 and mask is None:  # one token may look at all before it
            bias = None
        return self._run(ids, mask, "decoder", bias, memory, image_index, cache)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        side: Side,
        bias: Tensor | None,
        memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cache: SelfAttentionCache | None = None,
    ) -> Tensor:
        x = self.embeddings.side(side)(ids, cache.length if cache is not None else 0)
        unpadded = without_padding(mask) if cache is None else None
        if unpadded is not None:
            x = unpadded.remove(x)
        if bias is not None:
            bias = bias.to(product_dtype(x))
        for number, layer in enumerate(self.layers):
            key = memory.keys[number] if memory is not None else None
            value = memory.values[number] if memory is not None else None
            past = cache.layers[number] if cache is not None else None
            arguments = (x, side, bias, key, value, image_index, past, unpadded)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x if unpadded is None else unpadded.put_back(x)


def shared_parts(sharing: Sharing) -> set[str]:
    """What one module serves for both encoder and decoder (paper, Table 3)."""
    everything = {"embeddings", "self_attention", "cross_attention", "feed_forward"}
    return {
        "all": everything,
        "all_but_cross_attention": everything - {"cross_attention"},
        "all_but_self_attention": everything - {"self_attention"},
        "nothing": set(),
    }[sharing]


def _padding_bias(mask: Tensor) -> Tensor:
    """bool [texts, keys] -> float [texts, 1, 1, keys]: 0 at tokens, -inf at padding."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))[:, None, None, :]


def _causal_bias(start: int, tokens: int, device: torch.device) -> Tensor:
    """float [1, 1, tokens, start + tokens]: -inf where a key comes after its query."""
    bias = torch.full((tokens, start + tokens), float("-inf"), device=device)
    return bias.triu(start + 1)[None, None]
