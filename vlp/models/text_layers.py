"""The layers of the text tower: attention, feed-forward, embeddings, and what encoder and decoder share of them."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import FinetunedFor, Sharing, TextTowerConfig
from vlp.errors import UserError
from vlp.models.image_memory import AnyLayerCache

Side = Literal["encoder", "decoder"]


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

    def forward(self, x: Tensor, bias: Tensor | None, cache: AnyLayerCache | None = None) -> Tensor:
        """[texts, tokens, width] -> the same shape; `bias` [texts or 1, 1, tokens, keys]."""
        return self.add(x, self.attend(self.qkv(x), bias, cache))

    def attend(self, qkv: Tensor, bias: Tensor | None, cache: AnyLayerCache | None = None) -> Tensor:
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


def project_tokens(key_value: nn.Module, image_tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Image tokens [images, tokens, image width] -> keys and values, each [images, heads, tokens, head_dim].

    Args:
        key_value: from the image width to twice the text width.
    """
    images, tokens, _ = image_tokens.shape
    both = key_value(image_tokens).view(images, tokens, 2, heads, -1)
    # Contiguous; otherwise every text and every new token would copy them again.
    key, value = both.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    return key, value


def attend_images(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image_index: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Queries [texts, tokens, width] to one layer's memory -> what all heads gather, [texts, tokens, width].

    Args:
        attention: an `Attention`.
        key, value, image_index, bias: as in `CrossAttention.forward`.
    """
    texts, tokens, width = query.shape
    if image_index is not None:
        key, value = key.index_select(0, image_index), value.index_select(0, image_index)
        bias = None if bias is None else bias.index_select(0, image_index)
    images, heads, _, head_dim = key.shape
    # All texts of an image form one long row of queries, so the image's keys are never copied.
    query = query.reshape(images, texts // images * tokens, heads, head_dim).transpose(1, 2)
    y = attention(query, key, value, bias)  # [images, heads, texts per image x tokens, head_dim]
    return y.transpose(1, 2).reshape(texts, tokens, width)


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
        return project_tokens(self.key_value, image_tokens, self.heads)

    def ask(self, x: Tensor) -> Tensor:
        """The queries, [..., width] -> the same shape."""
        return self.query(x)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """[texts, tokens, width] against one layer's memory -> the same shape; see `TextTower.match`.

        Args:
            bias: [images, 1, 1, memory tokens], -inf at padding of the memory.
        """
        return self.add(x, self.attend(self.ask(x), key, value, image_index, bias))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """Queries [texts, tokens, width] -> what all heads gather, [texts, tokens, width]."""
        return attend_images(self.attention, query, key, value, image_index, bias)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Project `y` from `attend`, add it to `x` and normalize; all [..., width]."""
        return self.norm(x + self.dropout(self.out(y)))


class PairAttention(nn.Module):
    """Cross-attention to the two images of a pair, each with its own weights, in the place of `CrossAttention`.

    The original NLVR network averages the two results in the first half of the layers and concatenates and projects
    them in the second half (paper, appendix A, Figure 5). One dropout, residual and norm follow.
    """

    def __init__(self, config: TextTowerConfig, image_width: int, projects: bool):
        """`projects` says whether the results are concatenated and projected, or averaged."""
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(2))
        self.key_value = nn.ModuleList(nn.Linear(image_width, 2 * config.width) for _ in range(2))
        self.attention = Attention(config.dropout)
        self.out = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(2))
        self.merge = nn.Linear(2 * config.width, config.width) if projects else None
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.heads = config.heads

    def project(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[pairs, 2, tokens, image width] -> keys and values, each [pairs, 2, heads, tokens, head_dim].

        Raises:
            UserError: the tokens are those of single images.
        """
        if image_tokens.ndim != 4:
            raise UserError(
                "The model was finetuned for nlvr2 and takes pairs of images; use compare, or another model."
            )
        projected = [
            project_tokens(layer, image_tokens[:, side], self.heads) for side, layer in enumerate(self.key_value)
        ]
        return torch.stack([key for key, _ in projected], 1), torch.stack([value for _, value in projected], 1)

    def ask(self, x: Tensor) -> Tensor:
        """The queries to both images: [..., width] -> [..., 2 width]."""
        return torch.cat([layer(x) for layer in self.query], dim=-1)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """As in `CrossAttention`."""
        return self.add(x, self.attend(self.ask(x), key, value, image_index, bias))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, image_index: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """Queries [texts, tokens, 2 width] -> what the heads gather from each image, [texts, tokens, 2 width]."""
        gathered = [
            attend_images(self.attention, one, key[:, side], value[:, side], image_index, bias)
            for side, one in enumerate(query.chunk(2, dim=-1))
        ]
        return torch.cat(gathered, dim=-1)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Project and merge `y` [..., 2 width] from `attend`, add it to `x` [..., width] and normalize."""
        left, right = (layer(one) for layer, one in zip(self.out, y.chunk(2, dim=-1), strict=True))
        merged = (left + right) / 2 if self.merge is None else self.merge(torch.cat([left, right], dim=-1))
        return self.norm(x + self.dropout(merged))


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

    def forward(self, ids: Tensor, positions: slice | Tensor) -> Tensor:
        """ids [texts, tokens] at positions (a slice, or int64 [tokens]) -> [texts, tokens, width]."""
        return self.dropout(self.norm(self.words(ids) + self.positions.weight[positions]))


class Shareable(nn.ModuleDict):
    """A module that encoder and decoder share, or one module for each of them."""

    def __init__(self, make: Callable[[], nn.Module], shared: bool, decoder: Callable[[], nn.Module] | None = None):
        """Make the module or modules; `decoder` makes the decoder's if it differs from the encoder's."""
        super().__init__({"shared": make()} if shared else {"encoder": make(), "decoder": (decoder or make)()})

    def side(self, side: Side) -> Any:
        """The module that one side uses."""
        return self["shared"] if "shared" in self else self[side]


class Layer(nn.Module):
    """One layer: self-attention, cross-attention where there is an image, feed-forward."""

    def __init__(
        self, config: TextTowerConfig, image_width: int | None, finetuned_for: FinetunedFor = "", number: int = 0
    ):
        """New weights.

        Args:
            image_width: of the tokens that cross-attention reads; None: no cross-attention, and no decoder.
            number: that of the layer, from 0.
        """
        super().__init__()
        if image_width is None:
            self.self_attention = Shareable(lambda: SelfAttention(config), True)
            self.feed_forward = Shareable(lambda: FeedForward(config), True)
            return
        shared = shared_parts(config.sharing)
        if finetuned_for == "nlvr2":  # only the encoder reads pairs
            shared = shared - {"cross_attention"}
        # BLIP's answer decoder attends to the states of the question, which have the text's width.
        decoder_width = config.width if finetuned_for == "vqa" else image_width
        self.self_attention = Shareable(lambda: SelfAttention(config), "self_attention" in shared)
        self.cross_attention = Shareable(
            lambda: (
                PairAttention(config, image_width, number >= config.layers // 2)
                if finetuned_for == "nlvr2"
                else CrossAttention(config, image_width)
            ),
            "cross_attention" in shared,
            lambda: CrossAttention(config, decoder_width),
        )
        self.feed_forward = Shareable(lambda: FeedForward(config), "feed_forward" in shared)

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
    ) -> Tensor:
        """[texts, tokens, width] -> the same shape; cross-attention is skipped without `key`."""
        x = self.self_attention.side(side)(x, bias, cache)
        if key is not None:
            x = self.cross_attention.side(side)(x, key, value, image_index, memory_bias)
        return self.feed_forward.side(side)(x)


def shared_parts(sharing: Sharing) -> set[str]:
    """The parts that encoder and decoder share (paper, Table 3)."""
    everything = {"embeddings", "self_attention", "cross_attention", "feed_forward"}
    return {
        "all": everything,
        "all_but_cross_attention": everything - {"cross_attention"},
        "all_but_self_attention": everything - {"self_attention"},
        "nothing": set(),
    }[sharing]
