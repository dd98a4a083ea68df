"""The text tower of CLIP: a pre-norm transformer (Radford et al. 2021, section 2.4), causal or not."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.config_model import TextTowerConfig
from vlp.errors import UserError
from vlp.models.activations import ACTIVATIONS
from vlp.models.attention_bias import causal_bias, padding_bias
from vlp.models.initialise import initialise
from vlp.models.precision import product_dtype
from vlp.models.text_layers import Attention


class ClipTextLayer(nn.Module):
    """Self-attention and feed-forward, each with a norm before it."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.up = nn.Linear(config.width, config.feed_forward)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[texts, tokens, width] -> the same shape; `bias` [texts or 1, 1, tokens or 1, tokens]."""
        return self.feed_forward(self.add(x, self.attend(self.project(x), bias)))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values: [..., width] -> [..., 3 width]."""
        return self.qkv(self.norm1(x))

    def attend(self, qkv: Tensor, bias: Tensor | None) -> Tensor:
        """[texts, tokens, 3 width] -> what all heads gather, [texts, tokens, width]."""
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # [texts, tokens, 3, heads, head_dim]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [texts, heads, tokens, head_dim]
        return self.attention(query, key, value, bias).transpose(1, 2).flatten(2)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Project `y` from `attend` and add it to `x`; both [..., width]."""
        return x + self.dropout(self.out(y))

    def feed_forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        return x + self.dropout(self.down(self.activation(self.up(self.norm2(x)))))


class ClipTextTower(nn.Module):
    """Words and positions, the layers, and a last norm. It has `encode` as `TextTower` has."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        if config.width % config.heads:
            raise UserError(f"model.text_tower.width ({config.width}) must be a multiple of heads ({config.heads}).")
        self.config = config
        self.checkpointing = False
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(config.positions, config.width))
        self.layers = nn.ModuleList(ClipTextLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        initialise(self, config.width)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64, mask bool (True: a token that is read) [texts, tokens] -> states [texts, tokens, width].

        Texts whose ids are padded to the right need no mask where attention is causal.
        """
        x = self.embed(ids)
        return self.norm(self.run_layers(x, self.bias(x, mask)))

    def embed(self, ids: Tensor) -> Tensor:
        """ids [texts, tokens] -> [texts, tokens, width]."""
        return self.words(ids) + self.pos_embed[: ids.shape[1]]

    def bias(self, x: Tensor, mask: Tensor) -> Tensor:
        """The bias of attention in the dtype of its products: [1, 1, tokens, tokens] or [texts, 1, 1, tokens]."""
        causal = self.config.causal
        bias = causal_bias(0, mask.shape[1], mask.device) if causal else padding_bias(mask)
        return bias.to(product_dtype(x))

    def run_layers(self, x: Tensor, *arguments: object) -> Tensor:
        """Apply the layers in turn; `arguments` are their further arguments."""
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, *arguments, use_reentrant=False)
            else:
                x = layer(x, *arguments)
        return x
