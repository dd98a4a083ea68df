"""T2T-ViT (Yuan et al. 2021, arXiv 2101.11986): overlapping windows become tokens step by step, then a narrow ViT."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.layers import (
    DotProduct,
    FeedForward,
    fit_positions,
    make_blocks,
    run_blocks,
    sine_positions,
)
from vlp.models.image_encoders.vit import check_sizes
from vlp.models.initialise import initialise
from vlp.models.precision import without_autocast

PATCH = 16  # the strides of the three soft splits: 4 x 2 x 2
TOKEN_WIDTH = 64  # of the tokens between the splits

# Table 1 of the paper, with the feed-forward widths of the published models.
_SIZES: dict[str, dict[str, Any]] = {
    "7": {"width": 256, "layers": 7, "heads": 4, "feed_forward": 512},
    "10": {"width": 256, "layers": 10, "heads": 4, "feed_forward": 512},
    "12": {"width": 256, "layers": 12, "heads": 4, "feed_forward": 512},
    "14": {"width": 384, "layers": 14, "heads": 6, "feed_forward": 1152},
    "19": {"width": 448, "layers": 19, "heads": 7, "feed_forward": 1344},
    "24": {"width": 512, "layers": 24, "heads": 8, "feed_forward": 1536},
}
# t-14, t-19 and t-24 have a transformer between the splits, the others a Performer.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {**sizes, "performer": True, "norm_eps": 1e-5} for name, sizes in _SIZES.items()},
    **{f"t-{name}": {**_SIZES[name], "performer": False, "norm_eps": 1e-5} for name in ("14", "19", "24")},
}


def soft_split(grid: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """Overlapping windows of a grid as tokens (section 3.1, equation 3).

    Args:
        grid: [batch, channels, height, width].
        side: of a window.

    Returns:
        [batch, windows, channels x side x side]; the entries of a channel are neighbors.
    """
    return F.unfold(grid, side, padding=padding, stride=stride).transpose(1, 2)


def as_grid(tokens: Tensor) -> Tensor:
    """Tokens of a square [batch, places, width] at their places: [batch, width, side, side] (equation 2)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class TokenAttention(nn.Module):
    """Attention with one head that also narrows its tokens.

    Its input is too wide for a residual connection, so the values take its place, as in the published models.
    """

    def __init__(self, width: int, narrow: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * narrow, bias=False)
        self.product = DotProduct()
        self.proj = nn.Linear(narrow, narrow)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens, narrow]."""
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # [batch, 1 head, tokens, narrow]
        return (value + self.proj(self.product(query, key, value))).squeeze(1)


class TokenTransformer(nn.Module):
    """The transformer layer between two splits (equation 1), which narrows the tokens."""

    def __init__(self, width: int, narrow: int, norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = TokenAttention(width, narrow)
        self.norm2 = nn.LayerNorm(narrow, eps=norm_eps)
        self.mlp = FeedForward(narrow, narrow)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens, narrow]."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    """The layer between two splits as a Performer (Choromanski et al. 2021), in linear time and memory.

    exp(q k^T) is estimated by positive random features (lemma 1): E[exp(w q - |q|^2 / 2) exp(w k - |k|^2 / 2)] with
    Gaussian w. The projection `w` is drawn once, with orthogonal rows, and never trained. There are no attention maps.

    The features of long vectors are below the smallest float32, so those of all keys are divided by their largest,
    which goes to the queries and cancels. The published code adds 1e-8 to the sums of weights instead; where they are
    less, as in a trained small model, it attends to nothing. `floor` is such a number, for weights trained with it.
    """

    def __init__(self, width: int, narrow: int, norm_eps: float, floor: float = 0.0):
        super().__init__()
        features = narrow // 2
        self.floor = floor
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.kqv = nn.Linear(width, 3 * narrow)  # keys first, as in the published weights
        self.proj = nn.Linear(narrow, narrow)
        self.norm2 = nn.LayerNorm(narrow, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(narrow, narrow), nn.GELU(), nn.Linear(narrow, narrow))
        self.w = nn.Parameter(_orthogonal_rows(features, narrow), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens, narrow]."""
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # [batch, tokens, narrow]
        x = value + self.proj(self._attend(query, key, value))
        return x + self.mlp(self.norm2(x))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, tokens, narrow] each -> the same shape. Its exponentials need float32, whatever autocast says."""
        with without_autocast(query):
            query, key, directions = query.float(), key.float(), self.w.float().T
            exponents = key @ directions - key.square().sum(dim=-1, keepdim=True) / 2  # [batch, tokens, features]
            largest = exponents.detach().amax(dim=1, keepdim=True)  # [batch, 1, features]
            key_features = (exponents - largest).exp()
            exponents = query @ directions + largest  # without |q|^2 / 2, which cancels, too
            query_features = exponents.softmax(dim=-1)  # [batch, tokens, features]
            sums = query_features @ key_features.sum(dim=1).unsqueeze(2)  # [batch, tokens, 1]
            attended = query_features @ (key_features.transpose(1, 2) @ value.float()) / sums
            if self.floor:
                scale = exponents.logsumexp(dim=-1, keepdim=True) - query.square().sum(dim=-1, keepdim=True) / 2
                log_sums = sums.log() + scale - math.log(len(self.w))
                attended = attended * torch.sigmoid(log_sums - math.log(self.floor))  # sums / (sums + floor)
            return attended.to(value.dtype)


def _orthogonal_rows(rows: int, width: int) -> Tensor:
    """Orthogonal rows of the length sqrt(rows), as in the published models: [rows, width]."""
    return nn.init.orthogonal_(torch.empty(rows, width)) * math.sqrt(rows)


class TokensToToken(nn.Module):
    """Three soft splits with a layer between each two (section 3.1)."""

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        layer = partial(TokenPerformer, floor=config.performer_floor) if config.performer else TokenTransformer
        self.attention1 = layer(3 * 7 * 7, TOKEN_WIDTH, config.norm_eps)
        self.attention2 = layer(TOKEN_WIDTH * 3 * 3, TOKEN_WIDTH, config.norm_eps)
        self.project = nn.Linear(TOKEN_WIDTH * 3 * 3, config.width)

    def forward(self, images: Tensor, checkpointing: bool = False) -> Tensor:
        """[batch, 3, size, size] -> [batch, (size / 16)^2, width]."""
        x = run_blocks([self.attention1], soft_split(images, 7, 4, 2), checkpointing)  # [batch, (size / 4)^2, 64]
        x = run_blocks([self.attention2], soft_split(as_grid(x), 3, 2, 1), checkpointing)  # [batch, (size / 8)^2, 64]
        return self.project(soft_split(as_grid(x), 3, 2, 1))


class T2T(nn.Module):
    """Tokens-to-token, then a deep narrow ViT with a class token and fixed positions (section 3.2).

    Nothing trains the positions; a resized model keeps the interpolated ones.
    """

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.width = config.width
        self.checkpointing = False
        self.tokens_to_token = TokensToToken(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        rows = 1 + (config.image_size // PATCH) ** 2
        self.pos_embed = nn.Parameter(sine_positions(rows, config.width), requires_grad=False)
        self.positions = {"pos_embed": 1}
        self.blocks = make_blocks(config, qkv_bias=False)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Float images [batch, 3, size, size] -> [batch, 1 + (size / 16)^2, width], the class token first."""
        x = self.tokens_to_token(images, self.checkpointing)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + fit_positions(self.pos_embed, 1, x.shape[1])
        return self.norm(run_blocks(self.blocks, x, self.checkpointing))

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks and the layers between the splits in the backward pass."""
        self.checkpointing = enable


def build_t2t(config: ImageEncoderConfig) -> T2T:
    """A T2T-ViT with new weights. The published training also dropped 10% inside the Performers; this one does not.

    Raises:
        UserError: the sizes do not fit each other.
    """
    if config.patch_size != PATCH:
        raise UserError(f"model.image_encoder.patch_size ({config.patch_size}) must be {PATCH}, the stride of t2t.")
    check_sizes(config, PATCH, "the stride of t2t's splits")
    tower = T2T(config)
    initialise(tower, config.width)
    for module in tower.tokens_to_token.modules():  # from windows of other widths than the tower's
        if isinstance(module, nn.Linear):
            initialise(module, module.in_features)
    return tower
