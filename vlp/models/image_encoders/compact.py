"""What the Compact Transformers share (Hassani et al. 2021): their block, SeqPool, positions, and the tower of them.

Parameters have the names of the published checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.models.activations import ACTIVATIONS
from vlp.models.image_encoders.layers import (
    Attention,
    DropPath,
    drop_path_rates,
    fit_positions,
    run_blocks,
    sine_positions,
)
from vlp.models.initialise import initialise

POSITION_DEVIATION = 0.2  # of new position embeddings, as in the published code


class CompactBlock(nn.Module):
    """The block of the published models: unlike in ViT, the second norm is on the sum, not only on the branch."""

    def __init__(self, config: ImageEncoderConfig, drop_path: float):
        super().__init__()
        width, hidden = config.width, config.feed_forward or 4 * config.width
        self.pre_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.self_attn = Attention(width, config.heads, qkv_bias=False)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.linear1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.linear2 = nn.Linear(hidden, width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        return x + self.drop_path(self.linear2(self.act(self.linear1(x))))


class CompactTower(nn.Module):
    """A tokenizer, positions, blocks, and either a class token or SeqPool (section 3.3)."""

    positional_emb: Tensor | None  # [1, tokens, width]

    def __init__(self, config: ImageEncoderConfig, tokenizer: nn.Module, rows: int, sequence_pool: bool):
        """Build the tower with new weights.

        Args:
            tokenizer: [batch, 3, size, size] -> [batch, rows, width].
            sequence_pool: whether the summary is SeqPool's weighted mean of the tokens instead of a class token.
        """
        super().__init__()
        self.width = config.width
        self.checkpointing = False
        self.tokenizer = tokenizer
        self.class_emb: nn.Parameter | None = None
        self.attention_pool: nn.Linear | None = None
        if sequence_pool:
            self.attention_pool = nn.Linear(config.width, 1)
        else:
            self.class_emb = nn.Parameter(torch.zeros(1, 1, config.width))
        leading = 0 if sequence_pool else 1
        self.positions: dict[str, int] = {}
        if config.positions == "sine":
            self.register_buffer("positional_emb", sine_positions(leading + rows, config.width), persistent=False)
        elif config.positions == "learned":
            start = POSITION_DEVIATION * torch.randn(1, leading + rows, config.width)
            self.positional_emb = nn.Parameter(start)
            self.positions["positional_emb"] = leading
        else:
            self.positional_emb = None
        rates = drop_path_rates(config.drop_path, config.layers)
        self.blocks = nn.ModuleList(CompactBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        initialise(self, config.width)

    def forward(self, images: Tensor) -> Tensor:
        """Float images [batch, 3, size, size] -> [batch, 1 + places, width], the summary first."""
        x = self.tokenizer(images)  # [batch, places, width]
        if self.class_emb is not None:
            x = torch.cat([self.class_emb.expand(len(x), -1, -1), x], dim=1)
        if self.positional_emb is not None:
            positions = self.positional_emb
            if self.positions:
                positions = fit_positions(positions, self.positions["positional_emb"], x.shape[1])
            x = x + positions[:, : x.shape[1]]  # sine positions do not depend on the number of tokens
        x = self.norm(run_blocks(self.blocks, x, self.checkpointing))
        if self.attention_pool is not None:
            x = torch.cat([sequence_pool(x, self.attention_pool), x], dim=1)
        return x

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks in the backward pass."""
        self.checkpointing = enable


def sequence_pool(x: Tensor, score: nn.Linear) -> Tensor:
    """SeqPool (equation 4): the mean of tokens, weighted by the softmax of their scores.

    Args:
        x: [batch, tokens, width].
        score: width -> 1.

    Returns:
        [batch, 1, width].
    """
    return F.softmax(score(x), dim=1).transpose(1, 2) @ x
