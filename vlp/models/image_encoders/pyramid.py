"""What the pyramids (PVT, PVT v2, CvT) share: checks of their stages, stages, reduced attention and the last tokens.

Each stage of a pyramid halves the side of the grid of tokens and widens the tokens. Tokens [batch, places, width] and
the grid [batch, width, side, side] of a convolution are views of the same memory, in the layout channels_last.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.layers import DotProduct, DropPath, drop_path_rates, fit_positions, run_blocks
from vlp.models.initialise import initialise

POOLED_SIDE = 7  # of the grid that linear spatial reduction pools to (PVT v2, section 3.1)


def to_grid(tokens: Tensor) -> Tensor:
    """[batch, side * side, width] -> [batch, width, side, side], a view."""
    side = math.isqrt(tokens.shape[1])
    return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def to_tokens(grid: Tensor) -> Tensor:
    """[batch, width, side, side] -> [batch, side * side, width], a view if the grid is in channels_last."""
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def stage_sides(config: ImageEncoderConfig, exact: bool) -> list[int]:
    """The side of each stage's grid, after a check of all settings that pyramids share.

    Args:
        exact: whether a stage's `reduction` must divide the side of its grid.

    Raises:
        UserError: a setting is missing, or settings do not fit together.
    """
    name = config.name
    if not config.stages:
        raise UserError(f"The image encoder {name} needs model.image_encoder.stages; list them, or choose a variant.")
    strides = [config.patch_size * 2**number for number in range(len(config.stages))]
    units = [strides[-1]]
    if exact:
        units += [stride * stage.reduction for stride, stage in zip(strides, config.stages, strict=True)]
    unit = math.lcm(*units)
    if config.image_size % unit:
        raise UserError(
            f"model.image_encoder.image_size ({config.image_size}) must be a multiple of {unit} for {name} "
            f"with patch_size {config.patch_size} and these stages."
        )
    for number, stage in enumerate(config.stages, 1):
        if stage.width % stage.heads:
            raise UserError(
                f"model.image_encoder.stages: the width of stage {number} ({stage.width}) must be a multiple of its "
                f"heads ({stage.heads})."
            )
    if config.width != config.stages[-1].width:
        raise UserError(
            f"model.image_encoder.width ({config.width}) must be the width of the last stage "
            f"({config.stages[-1].width})."
        )
    if config.last_stages > len(config.stages):
        raise UserError(f"model.image_encoder.last_stages is {config.last_stages}; {name} has one stage.")
    return [config.image_size // stride for stride in strides]


class ReducedAttention(nn.Module):
    """Attention of all places to a smaller grid of keys and values (PVT, equations 1 to 4; PVT v2, section 3.1)."""

    def __init__(self, width: int, heads: int, reduction: int, pool: bool, eps: float):
        """Args:
        reduction: side of the squares of tokens that become one key and value; 1 keeps all tokens, among which a class
            token may then be.
        pool: reduce to 7x7 by average pooling instead, whatever `reduction` is.
        """
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.product = DotProduct()
        self.proj = nn.Linear(width, width)
        self.reduces, self.pools = pool or reduction > 1, pool
        if self.reduces:
            step = 1 if pool else reduction
            self.sr = nn.Conv2d(width, width, kernel_size=step, stride=step)
            self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, head_dim]
        both = self.kv(self.reduce(x) if self.reduces else x).unflatten(2, (2, self.heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # [batch, heads, keys, head_dim]
        return self.proj(self.product(query, key, value).transpose(1, 2).flatten(2))

    def reduce(self, x: Tensor) -> Tensor:
        """The smaller grid that keys and values are made of: [batch, places, width] -> [batch, keys, width]."""
        grid = to_grid(x)
        if not self.pools:
            return self.norm(to_tokens(self.sr(grid)))
        pooled = F.adaptive_avg_pool2d(grid, POOLED_SIDE)
        return F.gelu(self.norm(to_tokens(self.sr(pooled))))


class PyramidBlock(nn.Module):
    """A pre-norm block of any attention and feed-forward, with drop path."""

    def __init__(self, width: int, attention: nn.Module, feed_forward: nn.Module, drop_path: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = feed_forward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Patches of the image or of the grid below, overlapping or not, as normalized tokens."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, padding: int, eps: float):
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, grid: Tensor) -> Tensor:
        """[batch, inputs, side, side] -> [batch, places, width]."""
        return self.norm(to_tokens(self.proj(grid)))


class Stage(nn.Module):
    """One level of the pyramid: patch embedding, positions and class token where the paper has them, blocks, norm."""

    def __init__(self, embed: PatchEmbedding, blocks: list[PyramidBlock], side: int, norm: nn.Module):
        super().__init__()
        self.side, self.width = side, embed.norm.normalized_shape[0]
        self.embed = embed
        self.cls_token: nn.Parameter | None = None
        self.pos_embed: nn.Parameter | None = None
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.checkpointing = False

    def add_class_token(self) -> None:
        """Put a learned token before the others."""
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))

    def add_positions(self) -> None:
        """Add a learned embedding to each token; call it after `add_class_token`."""
        rows = self.side**2 + (self.cls_token is not None)
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, self.width))

    def forward(self, grid: Tensor) -> Tensor:
        """[batch, inputs, side below, side below] -> [batch, tokens, width], the class token first."""
        x = self.embed(grid)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + fit_positions(self.pos_embed, int(self.cls_token is not None), x.shape[1])
        return self.norm(run_blocks(self.blocks, x, self.checkpointing))


class Pyramid(nn.Module):
    """Stages one after the other. The tokens are those of the last stage, or of the last two.

    Attributes:
        width: of a token.
        positions: the position parameters, each with its number of leading rows that belong to no place.
    """

    def __init__(self, stages: list[Stage], config: ImageEncoderConfig):
        super().__init__()
        self.width = config.width
        self.stages: Any = nn.ModuleList(stages)
        self.lateral: nn.Module | None = None
        if config.last_stages == 2:
            below = stages[-2].width
            self.lateral = nn.Sequential(nn.LayerNorm(below, eps=config.norm_eps), nn.Linear(below, config.width))
            initialise(self.lateral, below)
        self.positions = {
            f"stages.{number}.pos_embed": int(stage.cls_token is not None)
            for number, stage in enumerate(stages)
            if stage.pos_embed is not None
        }
        for stage in stages:
            initialise(stage, stage.width)
            if stage.cls_token is not None:
                nn.init.normal_(stage.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """float [batch, 3, size, size] -> [batch, 1 + tokens, width]: summary, last stage, the stage before it."""
        below, tokens, grid = images, images, images
        for stage in self.stages:
            below, tokens = tokens, stage(grid)
            if stage is not self.stages[-1]:
                grid = to_grid(tokens)
        if self.stages[-1].cls_token is None:
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return tokens if self.lateral is None else torch.cat([tokens, self.lateral(below)], dim=1)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks in the backward pass."""
        for stage in self.stages:
            stage.checkpointing = enable


def rates_by_stage(config: ImageEncoderConfig) -> list[list[float]]:
    """The drop path rate of every block, by stage."""
    layers = [stage.layers for stage in config.stages]
    rates = drop_path_rates(config.drop_path, sum(layers))
    return [rates[sum(layers[:number]) : sum(layers[: number + 1])] for number in range(len(layers))]
