"""The layers of the text tower: attention, feed-forward, embeddings, and what encoder and decoder share of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import FinetunedFor, Sharing, TextTowerConfig
from vlp.errors import UserError
from vlp.models.flat_attention import flat_cross_attention, flat_self_attention
from vlp.models.text_rows import LayerTexts, RowGroup, Side, TextRows


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

    def forward(self, x: Tensor, group: RowGroup) -> Tensor:
        """Rows [rows, width] -> the same shape."""
        return self.norm(x + self.dropout(self.out(self._attend(self.qkv(x), group))))

    def _attend(self, qkv: Tensor, group: RowGroup) -> Tensor:
        """Queries, keys and values [rows, 3 width] -> what all heads gather, [rows, width]."""
        if group.flat is not None:
            dropping = self.attention.dropout.p if self.training else 0.0
            return flat_self_attention(qkv, group.flat.texts, self.heads, dropping)
        return group.each(qkv, self._attend_padded)

    def _attend_padded(self, qkv: Tensor, use: TextRows) -> Tensor:
        """[texts, tokens, 3 width] -> [texts, tokens, width]."""
        texts, tokens, _ = qkv.shape
        qkv = qkv.view(texts, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [texts, heads, tokens, head_dim]
        if use.cache is not None:
            key, value = use.cache.append(key, value)
        return self.attention(query, key, value, use.bias).transpose(1, 2).flatten(2)


def project_tokens(key_value: nn.Module, image_tokens: Tensor, heads: int) -> Tensor:
    """Image tokens [images, tokens, image width] -> keys and values, a view [2, images, heads, tokens, head_dim].

    Args:
        key_value: from the image width to twice the text width.
    """
    images, tokens, _ = image_tokens.shape
    return key_value(image_tokens).view(images, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4)


def attend_images(attention: nn.Module, query: Tensor, use: TextRows, side: int | None = None) -> Tensor:
    """Queries of padded texts [texts, tokens, width] to their memory -> what all heads gather, the same shape.

    Args:
        attention: an `Attention`.
        side: of the two images of pairs, 0 or 1; None: the memory is one of single images.
    """
    texts, tokens, width = query.shape
    if use.memory is None:
        raise ValueError("cross-attention needs an image memory")
    key, value, bias = use.memory
    if side is not None:
        key, value = key[:, side], value[:, side]
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

    def project(self, image_tokens: Tensor) -> Tensor:
        """[images, tokens, image width] -> keys and values, [2, images, heads, tokens, head_dim]."""
        return project_tokens(self.key_value, image_tokens, self.heads)

    def forward(self, x: Tensor, group: RowGroup) -> Tensor:
        """Rows [rows, width] of texts that meet the group's memories -> the same shape."""
        return self.norm(x + self.dropout(self.out(self._attend(self.query(x), group))))

    def _attend(self, query: Tensor, group: RowGroup) -> Tensor:
        """Queries [rows, width] -> what all heads gather, [rows, width]."""
        if group.flat is not None:
            dropping = self.attention.dropout.p if self.training else 0.0
            return flat_cross_attention(query, group.flat.memories, dropping)

        def attend(query: Tensor, use: TextRows) -> Tensor:
            return attend_images(self.attention, query, use)

        return group.each(query, attend)


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

    def project(self, image_tokens: Tensor) -> Tensor:
        """[pairs, 2, tokens, image width] -> keys and values, [2, pairs, 2, heads, tokens, head_dim].

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
        return torch.stack(projected, dim=2)

    def forward(self, x: Tensor, group: RowGroup) -> Tensor:
        """As in `CrossAttention`."""
        query = torch.cat([layer(x) for layer in self.query], dim=-1)  # [rows, 2 width]

        def attend(query: Tensor, use: TextRows) -> Tensor:
            both = enumerate(query.chunk(2, dim=-1))
            return torch.cat([attend_images(self.attention, one, use, side) for side, one in both], dim=-1)

        gathered = group.each(query, attend).chunk(2, dim=-1)
        left, right = (layer(one) for layer, one in zip(self.out, gathered, strict=True))
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

    def forward(self, x: Tensor, group: RowGroup) -> Tensor:
        """Rows [rows, width] -> the same shape."""
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

    def forward(self, x: Tensor, texts: LayerTexts) -> Tensor:
        """Rows [rows, width] -> the same shape; cross-attention is skipped where the texts have no memory."""
        x = _by_module(self.self_attention, x, texts)
        if texts.meet_images:
            x = _by_module(self.cross_attention, x, texts)
        return _by_module(self.feed_forward, x, texts)


def _by_module(modules: Shareable, x: Tensor, texts: LayerTexts) -> Tensor:
    """Apply to all rows [rows, width] the module that encoder and decoder share, or to those of each side its own."""
    groups = texts.groups("shared" in modules)
    parts = x.split([group.rows for group in groups]) if len(groups) > 1 else [x]
    done = [modules.side(group.side)(part, group) for part, group in zip(parts, groups, strict=True)]
    return torch.cat(done) if len(done) > 1 else done[0]


def shared_parts(sharing: Sharing) -> set[str]:
    """The parts that encoder and decoder share (paper, Table 3)."""
    everything = {"embeddings", "self_attention", "cross_attention", "feed_forward"}
    return {
        "all": everything,
        "all_but_cross_attention": everything - {"cross_attention"},
        "all_but_self_attention": everything - {"self_attention"},
        "nothing": set(),
    }[sharing]
