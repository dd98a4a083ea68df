"""The hybrid ViT (Dosovitskiy et al. 2021, section 3.1): patches are cut from the feature map of a ResNet."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.layers import fit_positions, make_blocks, run_blocks
from vlp.models.image_encoders.vit import check_sizes
from vlp.models.initialise import initialise

STEM_WIDTH = 64  # of the first convolution
GROUPS = 32  # of every group norm

# Sizes of the paper (B/R50) and of Steiner et al. 2022 (arXiv 2106.10270). `patch_size` counts pixels of the image.
# B/R50 has stage 4's blocks in stage 3 (the paper, section 4.1), hence nine.
VARIANTS: dict[str, dict[str, Any]] = {
    "Ti/R": {"patch_size": 32, "width": 192, "layers": 12, "heads": 3, "stem": []},
    "S/R26": {"patch_size": 32, "width": 384, "layers": 12, "heads": 6, "stem": [2, 2, 2, 2]},
    "B/R50": {"patch_size": 16, "width": 768, "layers": 12, "heads": 12, "stem": [3, 4, 9]},
    "L/R50": {"patch_size": 32, "width": 1024, "layers": 24, "heads": 16, "stem": [3, 4, 6, 3]},
}


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters are standardized at each use (Qiao et al. 2019), with TensorFlow's "same" padding.

    The stem's strides divide the sides of its grids, so the padding depends on kernel and stride alone. Where it is
    odd, the larger part is on the right and at the bottom.
    """

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1):
        before, after = same_padding(side, stride)
        super().__init__(inputs, outputs, side, stride, padding=before if before == after else 0, bias=False)
        self.margin = () if before == after else (before, after, before, after)

    def forward(self, input: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        if self.margin:
            input = F.pad(input, self.margin)
        return F.conv2d(input, standardize(self.weight), None, self.stride, self.padding)


def standardize(weight: Tensor) -> Tensor:
    """Filters [outputs, inputs, side, side] with mean 0 and variance 1 each."""
    return F.layer_norm(weight, weight.shape[1:], eps=1e-8)


def same_padding(side: int, stride: int) -> tuple[int, int]:
    """Padding before and after a grid that `stride` divides, so that the output has 1 / stride of its side."""
    total = max(side - stride, 0)
    return total // 2, total - total // 2


class Downsample(nn.Module):
    """The shortcut of a stage's first block."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = StandardizedConv2d(inputs, outputs, 1, stride)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """A residual block of three convolutions (He et al. 2016) with group norm (Wu and He 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        middle = outputs // 4
        first = stride > 1 or inputs != outputs
        self.downsample = Downsample(inputs, outputs, stride) if first else nn.Identity()
        self.conv1 = StandardizedConv2d(inputs, middle, 1)
        self.norm1 = nn.GroupNorm(GROUPS, middle)
        self.conv2 = StandardizedConv2d(middle, middle, 3, stride)
        self.norm2 = nn.GroupNorm(GROUPS, middle)
        self.conv3 = StandardizedConv2d(middle, outputs, 1)
        self.norm3 = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y))
        return (y + self.downsample(x)).relu_()


class Stem(nn.Module):
    """A convolution and a max pooling, each of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = StandardizedConv2d(3, STEM_WIDTH, 7, 2)
        self.norm = nn.GroupNorm(GROUPS, STEM_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] -> [batch, 64, size / 4, size / 4]."""
        x = self.norm(self.conv(images)).relu_()
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)  # zeros are no larger than what relu leaves


class Stage(nn.Module):
    """Residual blocks of one width; the first one has the stride."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            Bottleneck(outputs if n else inputs, outputs, 1 if n else stride) for n in range(blocks)
        )

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        return run_blocks(self.blocks, x, checkpointing)


class ResNet(nn.Module):
    """A ResNet v2 without its head: the stem, then stages that double the width and, but for the first, halve the grid.

    Attributes:
        width: of its features.
        stride: pixels of the image per place of the feature map.
    """

    def __init__(self, stages: list[int]):
        super().__init__()
        self.stem = Stem()
        self.width = STEM_WIDTH
        self.stages = nn.ModuleList()
        for n, blocks in enumerate(stages):
            outputs = 4 * STEM_WIDTH * 2**n
            self.stages.append(Stage(self.width, outputs, blocks, 2 if n else 1))
            self.width = outputs

    def forward(self, images: Tensor, checkpointing: bool = False) -> Tensor:
        """[batch, 3, size, size] -> [batch, width, size / stride, size / stride]."""
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x, checkpointing)
        return x


def stem_stride(stages: int) -> int:
    """Pixels of the image per place of the feature map of so many stages."""
    return 4 * 2 ** max(stages - 1, 0)


class FeaturePatches(nn.Module):
    """Patches of a ResNet's feature map, each mapped linearly to a token."""

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.backbone = ResNet(config.stem)
        side = config.patch_size // stem_stride(len(config.stem))
        self.proj = nn.Conv2d(self.backbone.width, config.width, side, side)

    def forward(self, images: Tensor, checkpointing: bool = False) -> Tensor:
        """[batch, 3, size, size] -> [batch, patches, width]."""
        return self.proj(self.backbone(images, checkpointing)).flatten(2).transpose(1, 2)


class Hybrid(nn.Module):
    """A ViT whose patches come from a ResNet. Drop path applies to the transformer's blocks."""

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.width = config.width
        self.checkpointing = False
        self.patch_embed = FeaturePatches(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        patches = (config.image_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, config.width))
        self.positions = {"pos_embed": 1}
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Float images [batch, 3, size, size] -> [batch, 1 + patches, width], the class token first."""
        x = self.patch_embed(images, self.checkpointing)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + fit_positions(self.pos_embed, 1, x.shape[1])
        return self.norm(run_blocks(self.blocks, x, self.checkpointing))

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute residual and transformer blocks in the backward pass."""
        self.checkpointing = enable


def build_hybrid(config: ImageEncoderConfig) -> Hybrid:
    """A hybrid ViT with new weights.

    Raises:
        UserError: the sizes do not fit each other.
    """
    stride = stem_stride(len(config.stem))
    if 0 in config.stem:
        raise UserError(f"model.image_encoder.stem ({config.stem}) must have at least one block in each stage.")
    if config.patch_size % stride:
        raise UserError(
            f"model.image_encoder.patch_size ({config.patch_size}) must be a multiple of {stride}, the stride "
            f"of a stem of {len(config.stem)} stages."
        )
    check_sizes(config, config.patch_size)
    tower = Hybrid(config)
    initialise(tower, config.width)
    for module in tower.modules():
        if isinstance(module, Bottleneck):  # each block starts as its shortcut (Goyal et al. 2017, section 5.1)
            nn.init.zeros_(module.norm3.weight)
    return tower
