"""The text tower: one stack of layers with three uses, and the image memory that cross-attention reads.

BLIP calls it the multimodal mixture of encoder and decoder (paper, section 3.1): a BERT whose layers also have
cross-attention to an image. `encode` reads text alone, `match` reads text against images in both directions, and
`decode` predicts text from left to right against images. Cross-attention reads only the image's keys and values, which
do not depend on the text, so `project_image` computes them once for all texts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlp.config import Sharing, TextTowerConfig
from vlp.errors import UserError
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


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1) with dropout of the attention weights."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """softmax(query key^T / sqrt(head_dim) + bias) value.

        Args:
            query: [batch, heads, queries, head_dim].
            key, value: [batch, heads, keys, head_dim].
            bias: added to the scores, broadcastable to [batch, heads, queries, keys]; -inf forbids a pair.

        Returns:
            [batch, heads, queries, head_dim].
        """
        dropping = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropping)


class SelfAttention(nn.Module):
    """Post-norm multi-head self-attention of BERT."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, bias: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """[texts, tokens, width] -> the same shape; `bias` [texts or 1, 1, tokens, keys]."""
        return self.add(x, self.attend(self.qkv(x), bias, cache))

    def attend(self, qkv: Tensor, bias: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """Queries, keys and values [texts, tokens, 3 width] -> what all heads gather, [texts, tokens, width]."""
        texts, tokens, _ = qkv.shape
        qkv = qkv.view(texts, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [texts, heads, tokens, head_dim]
        if cache is not None:
            key, value = cache.append(key, value)
        return self.attention(query, key, value, bias).transpose(1, 2).flatten(2)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Project `y` from `attend`, add it to `x` and normalize; all [..., width]."""
        return self.norm(x + self.dropout(self.out(y)))


class CrossAttention(nn.Module):
    """Post-norm multi-head attention from text to the image memory."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(image_width, 2 * config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def project(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[images, tokens, image width] -> keys and values, each [images, heads, tokens, head_dim]."""
        images, tokens, _ = image_tokens.shape
        key_value = self.key_value(image_tokens).view(images, tokens, 2, self.heads, -1)
        # Contiguous; otherwise every text and every new token would copy them again.
        key, value = key_value.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return key, value

    def forward(self, x: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None) -> Tensor:
        """[texts, tokens, width] against one layer's memory -> the same shape; see `TextTower.match`."""
        return self.add(x, self.attend(self.query(x), key, value, image_index))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None) -> Tensor:
        """Queries [texts, tokens, width] -> what all heads gather, [texts, tokens, width]."""
        texts, tokens, width = query.shape
        if image_index is not None:
            key, value = key.index_select(0, image_index), value.index_select(0, image_index)
        images, heads, _, head_dim = key.shape
        # All texts of an image form one long row of queries, so the image's keys are never copied.
        query = query.view(images, texts // images * tokens, heads, head_dim).transpose(1, 2)
        y = self.attention(query, key, value)  # [images, heads, texts per image x tokens, head_dim]
        return y.transpose(1, 2).reshape(texts, tokens, width)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Project `y` from `attend`, add it to `x` and normalize; all [..., width]."""
        return self.norm(x + self.dropout(self.out(y)))


class FeedForward(nn.Module):
    """Post-norm feed-forward block of BERT (exact GELU)."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Embeddings(nn.Module):
    """Word and position embeddings; BLIP has no token types."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """ids [texts, tokens], the first at position `start` -> [texts, tokens, width]."""
        positions = self.positions.weight[start : start + ids.shape[1]]
        return self.dropout(self.norm(self.words(ids) + positions))


class Shareable(nn.ModuleDict):
    """A module that encoder and decoder share, or one module for each of them."""

    def __init__(self, make: Callable[[], nn.Module], shared: bool):
        super().__init__({"shared": make()} if shared else {"encoder": make(), "decoder": make()})

    def side(self, side: Side) -> Any:
        """The module that one side uses."""
        return self["shared"] if "shared" in self else self[side]


class Layer(nn.Module):
    """One layer: self-attention, cross-attention where there is an image, feed-forward."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        shared = shared_parts(config.sharing)
        self.self_attention = Shareable(lambda: SelfAttention(config), "self_attention" in shared)
        self.cross_attention = Shareable(lambda: CrossAttention(config, image_width), "cross_attention" in shared)
        self.feed_forward = Shareable(lambda: FeedForward(config), "feed_forward" in shared)

    def forward(
        self,
        x: Tensor,
        side: Side,
        bias: Tensor | None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        image_index: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[texts, tokens, width] -> the same shape; cross-attention is skipped without `key`."""
        x = self.self_attention.side(side)(x, bias, cache)
        if key is not None:
            x = self.cross_attention.side(side)(x, key, value, image_index)
        return self.feed_forward.side(side)(x)


class TextTower(nn.Module):
    """The stack of layers behind ITC, ITM and LM; see the top of this file."""

    def __init__(self, config: TextTowerConfig, image_width: int):
        super().__init__()
        if config.width % config.heads:
            raise UserError(f"model.text_tower.width ({config.width}) must be a multiple of heads ({config.heads}).")
        self.config = config
        self.checkpointing = False
        self.embeddings = Shareable(lambda: Embeddings(config), "embeddings" in shared_parts(config.sharing))
        self.layers = nn.ModuleList(Layer(config, image_width) for _ in range(config.layers))
        initialise(self, config.width)

    def project_image(self, image_tokens: Tensor, side: Side = "encoder") -> ImageMemory:
        """Keys and values of images for all layers, computed once for all the texts that meet them.

        Args:
            image_tokens: [images, tokens, image width].
            side: "encoder" for `match`, "decoder" for `decode`; one memory serves both where cross-attention is
                shared (`shares_memory`).
        """
        layers = cast(Iterable[Layer], self.layers)
        pairs = [layer.cross_attention.side(side).project(image_tokens) for layer in layers]
        return ImageMemory([key for key, _ in pairs], [value for _, value in pairs])

    @property
    def shares_memory(self) -> bool:
        """Whether `match` and `decode` read the same image memory."""
        return "cross_attention" in shared_parts(self.config.sharing)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text alone, both directions: ids int64, mask bool (True: token) [texts, tokens] -> [texts, tokens, width]."""
        return self._run(ids, mask, "encoder")

    def match(self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None) -> Tensor:
        """Text against images, both directions.

        Args:
            ids, mask: int64 and bool [texts, tokens]; True marks a token, False padding.
            memory: from `project_image`.
            image_index: int64 [texts], the image that each text meets. None: every image has the same number of
                texts, which are adjacent and in the order of the images.

        Returns:
            [texts, tokens, width].
        """
        return self._run(ids, mask, "encoder", memory, image_index)

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
            mask: bool [texts, all tokens], including the cached ones; None when nothing is padding.
            memory, image_index: as in `match`.
            cache: grows by the new tokens.

        Returns:
            [texts, tokens, width].
        """
        return self._run(ids, mask, "decoder", memory, image_index, cache)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        side: Side,
        memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cache: SelfAttentionCache | None = None,
    ) -> Tensor:
        x, bias = self._embed(ids, mask, side, cache.length if cache is not None else 0)
        return self._run_layers(x, side, bias, memory, image_index, cache)

    def _embed(self, ids: Tensor, mask: Tensor | None, side: Side, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Embeddings [texts, tokens, width], and the bias of self-attention in the dtype of its products."""
        x = self.embeddings.side(side)(ids, start)
        bias = None if mask is None else _padding_bias(mask)
        if side == "decoder" and ids.shape[1] > 1:  # a single new token may attend to all tokens before it
            causal = _causal_bias(start, ids.shape[1], ids.device)
            bias = causal if bias is None else bias + causal
        return x, None if bias is None else bias.to(product_dtype(x))

    def _run_layers(
        self,
        x: Tensor,
        side: Side,
        bias: Tensor | None,
        memory: ImageMemory | None,
        image_index: Tensor | None,
        cache: SelfAttentionCache | None,
        *more: Any,
    ) -> Tensor:
        """[texts, tokens, width] -> the same shape; `more` are further arguments of each layer."""
        for number, layer in enumerate(self.layers):
            key = memory.keys[number] if memory is not None else None
            value = memory.values[number] if memory is not None else None
            past = cache.layers[number] if cache is not None else None
            arguments = (x, side, bias, key, value, image_index, past, *more)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x


def shared_parts(sharing: Sharing) -> set[str]:
    """The parts that encoder and decoder share (paper, Table 3)."""
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
