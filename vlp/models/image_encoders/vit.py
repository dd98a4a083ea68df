"""The vision transformer (Dosovitskiy et al. 2021), BLIP's image encoder; registers and convolutions if wanted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.convolutional_tokenizer import ConvolutionalTokenizer, grid_side
from vlp.models.image_encoders.layers import fit_positions, make_blocks, run_blocks
from vlp.models.initialise import initialise

# Table 1 of the paper; Ti and S from DeiT (Touvron et al. 2021).
VARIANTS: dict[str, dict[str, Any]] = {
    f"{name}/{patch}": {"patch_size": patch, "width": width, "layers": layers, "heads": heads}
    for name, width, layers, heads, patches in (
        ("Ti", 192, 12, 3, (16,)),
        ("S", 384, 12, 6, (16, 32)),
        ("B", 768, 12, 12, (16, 32)),
        ("L", 1024, 24, 16, (16, 32)),
        ("H", 1280, 32, 16, (14,)),
    )
    for patch in patches
}
# Random numbers for so many patches of each image: float32 [images, patches]; the patches with the largest ones stay.
Noise = Callable[[int], Tensor]
REGISTER_DEVIATION = 0.02  # of new registers, which would stay equal to each other if they started equal


class PatchEmbedding(nn.Module):
    """Square patches, each mapped linearly to a token (equation 1)."""

    def __init__(self, patch_size: int, width: int, bias: bool = True):
        super().__init__()
        # A convolution only by its shapes, which are those of published checkpoints.
        self.proj = nn.Conv2d(3, width, patch_size, patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] -> [batch, patches, width]."""
        batch, channels, height, width = images.shape
        side = self.proj.kernel_size[0]
        patches = images.view(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, -1, channels * side * side)
        # As a product of matrices: cuDNN's convolution takes an H100 2.8 ms for 360 images of 224 pixels.
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Patches, positions and pre-norm blocks.

    With `convolutions`, these make the tokens instead of a linear map of patches, as in CCT; small models then learn
    shapes from far fewer images.

    The summary is the class token, or with `pooling: mean` the mean of the image tokens. Registers (Darcet et al. 2024)
    are further learned tokens without a place, which take part in attention and are dropped at the end.
    """

    drops_patches = True

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.width = config.width
        self.checkpointing = False
        if config.convolutions:
            self.patch_embed = ConvolutionalTokenizer(config.kernel, config.convolutions, config.width)
            rows = grid_side(config) ** 2
        else:
            self.patch_embed = PatchEmbedding(config.patch_size, config.width, bias=not config.pre_norm)
            rows = (config.image_size // config.patch_size) ** 2
        self.cls_token: nn.Parameter | None = None
        if config.pooling == "class":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.reg_token: nn.Parameter | None = None
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        leading = int(self.cls_token is not None)
        self.pos_embed = nn.Parameter(torch.zeros(1, leading + rows, config.width))
        self.positions = {"pos_embed": leading}
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, images: Tensor, keep: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Float images [batch, 3, size, size] -> [batch, 1 + patches, width], the summary first.

        Args:
            keep, noise: which patches are encoded, see `keep_patches`.
        """
        x = self.norm(run_blocks(self.blocks, self.norm_pre(self._embed(images, keep, noise)), self.checkpointing))
        if self.reg_token is not None:  # registers stand after the class token
            first = int(self.cls_token is not None)
            x = torch.cat([x[:, :first], x[:, first + self.reg_token.shape[1] :]], dim=1)
        if self.cls_token is None:
            x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        return x

    def _embed(self, images: Tensor, keep: float, noise: Noise | None) -> Tensor:
        """[batch, 3, size, size] -> [batch, class token, registers and patches, width]."""
        x = self.patch_embed(images)  # [batch, patches, width]
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        first = int(self.cls_token is not None)
        x = x + fit_positions(self.pos_embed, first, x.shape[1])
        if keep < 1:
            x = keep_patches(x, keep, first, noise)
        if self.reg_token is not None:
            x = torch.cat([x[:, :first], self.reg_token.expand(len(x), -1, -1), x[:, first:]], dim=1)
        return x

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks in the backward pass."""
        self.checkpointing = enable


def keep_patches(tokens: Tensor, share: float, leading: int, noise: Noise | None = None) -> Tensor:
    """A random subset of each image's patches, with their positions (FLIP, Li et al. 2023, section 3.1).

    Args:
        tokens: [batch, leading + patches, width].
        share: of the patches that stay, rounded, at least one.
        leading: tokens that always stay, such as the class token.
        noise: decides which patches stay, see `Noise`; None: torch's random numbers.

    Returns:
        [batch, leading + kept patches, width]; the patches keep their order.
    """
    batch, patches = len(tokens), tokens.shape[1] - leading
    count = max(1, round(share * patches))
    drawn = torch.rand(batch, patches, device=tokens.device) if noise is None else noise(patches)
    kept = drawn.topk(count, dim=1).indices.sort(dim=1).values + leading  # [batch, count]
    first = torch.arange(leading, device=tokens.device).expand(batch, -1)
    rows = torch.cat([first, kept], dim=1)
    return tokens.gather(1, rows[:, :, None].expand(-1, -1, tokens.shape[2]))


def build_vit(config: ImageEncoderConfig) -> VisionTransformer:
    """A ViT with new weights.

    Raises:
        UserError: the sizes do not fit each other.
    """
    check_sizes(config, 1 if config.convolutions else config.patch_size)
    tower = VisionTransformer(config)
    initialise(tower, config.width)
    if tower.reg_token is not None:
        nn.init.normal_(tower.reg_token, std=REGISTER_DEVIATION)
    return tower


def check_sizes(config: ImageEncoderConfig, multiple: int, of: str = "its patch_size") -> None:
    """Check that the image consists of whole patches, and the width of whole heads.

    Args:
        multiple: what the image size must be a multiple of.
        of: what that number is.

    Raises:
        UserError: it does not.
    """
    if config.image_size % multiple:
        raise UserError(
            f"model.image_encoder.image_size ({config.image_size}) must be a multiple of {of} ({multiple})."
        )
    if config.width % config.heads:
        raise UserError(f"model.image_encoder.width ({config.width}) must be a multiple of heads ({config.heads}).")
