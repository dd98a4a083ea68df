"""The layers that image encoders share: attention whose maps can be recorded, feed-forward, and pre-norm blocks."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlp.config_model import ImageEncoderConfig
from vlp.models.activations import ACTIVATIONS
from vlp.models.batch_norm import checkpoint_contexts


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a branch is zero for a random share of the batch.

    The branches that stay are scaled, so that their mean does not change.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> the same shape."""
        if not self.training or self.share == 0:
            return x
        kept = x.new_empty([len(x), *[1] * (x.ndim - 1)]).bernoulli_(1 - self.share)
        return x * (kept / (1 - self.share))


class DotProduct(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1). Every attention of an image encoder holds one.

    Attributes:
        recorded: the attention map of the last call, [batch, heads, queries, keys], while `recording` is on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_recording = False
        self.recorded: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, heads, queries or keys, head_dim] -> [batch, heads, queries, head_dim]."""
        if self.is_recording:
            return self._record(query, key, value)
        return F.scaled_dot_product_attention(query, key, value)

    def _record(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        self.recorded = scores.softmax(dim=-1)  # [batch, heads, queries, keys]
        return self.recorded.to(value.dtype) @ value


@contextmanager
def recording(tower: nn.Module) -> Iterator[list[DotProduct]]:
    """Make every attention of a tower keep the map of its last call in `recorded`, in float32 and with its graph.

    Yields:
        The attentions in the order of the tower's layers.
    """
    products = [module for module in tower.modules() if isinstance(module, DotProduct)]
    for product in products:
        product.is_recording = True
    try:
        yield products
    finally:
        for product in products:
            product.is_recording, product.recorded = False, None


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.product = DotProduct()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [batch, tokens, 3, heads, head_dim]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [batch, heads, tokens, head_dim]
        return self.proj(self.product(query, key, value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021, equations 2 and 3) with drop path."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: Callable[[], nn.Module] = nn.GELU,
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = FeedForward(width, hidden, activation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def make_blocks(config: ImageEncoderConfig, qkv_bias: bool = True) -> nn.ModuleList:
    """The stack of a config's `layers` blocks, whose drop path grows from zero in the first to the last."""
    return nn.ModuleList(
        Block(
            config.width,
            config.heads,
            config.feed_forward or 4 * config.width,
            rate,
            config.norm_eps,
            ACTIVATIONS[config.activation],
            qkv_bias,
        )
        for rate in drop_path_rates(config.drop_path, config.layers)
    )


def drop_path_rates(largest: float, layers: int) -> list[float]:
    """The rate of each layer, from zero in the first one to `largest` in the last (Huang et al. 2016)."""
    return [largest * layer / max(layers - 1, 1) for layer in range(layers)]


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    """Apply blocks in turn; with `checkpointing`, each is computed again in the backward pass."""
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(checkpoint_contexts, block))
        else:
            x = block(x)
    return x


def fit_positions(positions: Tensor, leading: int, tokens: int) -> Tensor:
    """Position embeddings [1, leading + side squared, width] for so many tokens, interpolated if these are others.

    Images of another size than the tower's have other numbers of tokens. Bicubic, as in timm.

    Args:
        leading: rows without a place, such as the class token's.
        tokens: leading ones included.
    """
    if positions.shape[1] == tokens:
        return positions
    first, places = positions[:, :leading].float(), positions[:, leading:].float()
    before, side = math.isqrt(places.shape[1]), math.isqrt(tokens - leading)
    grid = places.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # [1, width, old side, old side]
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


def sine_positions(rows: int, width: int) -> Tensor:
    """Fixed position embeddings float32 [1, rows, width] (Vaswani et al. 2017, section 3.5)."""
    wave = torch.arange(width // 2 + width % 2, dtype=torch.float64)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / 10_000 ** (2 * wave / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None, :, :width].float()
