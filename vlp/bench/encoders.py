"""`vlp bench encoders`: images per second of every family of image encoders, beside timm's and transformers' models.

    vlp bench encoders --peers --size base --precision fp32 --repeats 7 --markdown

A peer has the same shape and the same weights; it runs in the same process, in turns with ours.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlp.bench.encoder_shapes import SHAPES, small_encoder
from vlp.bench.timing import Measured, Work, compare, device
from vlp.bench.train import optimizer_step
from vlp.config import Precision
from vlp.config_model import ImageEncoderConfig
from vlp.convert.hybrid import hybrid_from_timm
from vlp.convert.pyramids import pyramid_from_timm, pyramid_from_transformers
from vlp.models.constant_weights import constant_weights
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.image_encoders.families import build_tower, resolve
from vlp.models.image_encoders.hybrid import stem_stride

# The smallest variant of each paper that its family has for images of 224 pixels; of the hybrid also one with residual
# blocks.
SMALLEST = (
    "vit:Ti/16",
    "hybrid:Ti/R",
    "hybrid:S/R26",
    "vit_lite:6/16",
    "cvt_compact:7/8",
    "cct:14/7x2",
    "t2t:7",
    "pvt:tiny",
    "pvt_v2:b0",
    "pvt_v2:b2_li",
    "cvt:13",
)
# timm's hybrids, by the residual blocks of the stages of their stems.
TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_384",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
Forward = Callable[[Tensor], Any]


def bench_encoders(size: str, precision: Precision, batch: int, peers: bool, repeats: int) -> list[Measured]:
    """Run a forward pass and a training step of each family on random images.

    In the training step the loss is the mean absolute value of all tokens, and fused AdamW updates the weights. In bf16
    the forward pass has bf16 weights, and the training step runs under autocast. FLOPs are those of a forward pass.

    Args:
        size: "base": the papers' smallest variants at 224 pixels; "small": `SHAPES` at 64 pixels.
    """
    if size == "base":
        configs = {name: resolve(ImageEncoderConfig(name, 224)) for name in SMALLEST}
    else:
        configs = {name: small_encoder(name) for name in SHAPES}
    return [
        line
        for name, config in configs.items()
        for line in encoder_lines(name, config, precision, batch, peers, repeats)
    ]


def encoder_lines(
    name: str, config: ImageEncoderConfig, precision: Precision, batch: int, peers: bool, repeats: int
) -> list[Measured]:
    """The lines of one encoder: forward pass and training step, as in `bench_encoders`."""
    torch.manual_seed(0)
    ours = build_tower(config)
    peer = make_peer(config, ours) if peers else None
    optimise_for_cpu(ours.to(device()))
    images = torch.randn(batch, 3, config.image_size, config.image_size, device=device())
    parameters = sum(weight.numel() for weight in ours.parameters())
    lines = []
    for what, make in (("forward", _forward), ("training step", _training_step)):
        dtype = torch.bfloat16 if precision == "bf16" and make is _forward else torch.float32
        work = make(ours.to(dtype), ours, images.to(dtype), precision)
        make_work = None
        if peer:
            make_work = partial(make, peer[0].to(device=device(), dtype=dtype), peer[1], images.to(dtype), precision)
        # As over the batches of an evaluation, packed weights last.
        with constant_weights() if make is _forward else nullcontext():
            line = compare(f"{name}, {what}", "images/s", batch, precision, work, make_work, repeats)
        if lines:
            # A step costs three forward passes. FlopCounterMode counts more: the gradient of a depthwise kernel like
            # that of a dense one.
            share = line.share_of_matmul_rate * 3 * lines[0].flops / line.flops
            line = replace(line, share_of_matmul_rate=share, flops=lines[0].flops)
        lines.append(replace(line, parameters=parameters))
    return lines


def _forward(network: nn.Module, forward: Forward, images: Tensor, _: Precision) -> Work:
    network.eval()

    def work() -> None:
        network.eval()
        with torch.no_grad():
            forward(images)

    return work


def _training_step(network: nn.Module, forward: Forward, images: Tensor, precision: Precision) -> Work:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    return optimizer_step(lambda: forward(images).float().abs().mean(), optimizer, precision)


def make_peer(config: ImageEncoderConfig, ours: nn.Module) -> tuple[nn.Module, Forward] | None:
    """A model of timm or transformers with the same shape and weights as our tower.

    Returns:
        The model, and its features [batch, tokens, width or the like] of images; None where no library has one.
    """
    if config.name == "vit" and not config.convolutions:
        return _timm_vit(config, ours)
    if config.name == "hybrid" and tuple(config.stem) in TIMM_HYBRIDS:
        return _timm_hybrid(config, ours)
    if config.name in ("pvt", "cvt"):
        return _of_transformers(config, ours)
    return _timm_pvt_v2(config, ours) if config.name == "pvt_v2" else None


def _timm_vit(config: ImageEncoderConfig, ours: nn.Module) -> tuple[nn.Module, Forward]:
    from timm.models.vision_transformer import VisionTransformer

    peer = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        mlp_ratio=(config.feed_forward or 4 * config.width) / config.width,
        num_classes=0,
    )
    peer.load_state_dict(ours.state_dict())
    return peer, peer.forward_features


def _timm_hybrid(config: ImageEncoderConfig, ours: nn.Module) -> tuple[nn.Module, Forward]:
    import timm

    peer: Any = timm.create_model(
        TIMM_HYBRIDS[tuple(config.stem)],
        img_size=config.image_size,
        patch_size=config.patch_size // stem_stride(len(config.stem)),
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        num_classes=0,
    )
    found = hybrid_from_timm(peer.state_dict())
    assert found is not None
    ours.load_state_dict(found[1])
    return peer, peer.forward_features


def _timm_pvt_v2(config: ImageEncoderConfig, ours: nn.Module) -> tuple[nn.Module, Forward]:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    stages = config.stages
    peer = PyramidVisionTransformerV2(
        num_classes=0,
        depths=tuple(stage.layers for stage in stages),
        embed_dims=tuple(stage.width for stage in stages),
        num_heads=tuple(stage.heads for stage in stages),
        sr_ratios=tuple(stage.reduction for stage in stages),
        mlp_ratios=tuple((stage.feed_forward or 4 * stage.width) / stage.width for stage in stages),
        linear=config.linear_reduction,
    )
    ours.load_state_dict(pyramid_from_timm(peer, peer.state_dict())[1])
    return peer, peer.forward_features


def _of_transformers(config: ImageEncoderConfig, ours: nn.Module) -> tuple[nn.Module, Forward]:
    """PVT with its patches as wide as ours; CvT as a classifier, because only that has the last norm."""
    from transformers import CvtConfig, CvtForImageClassification, PvtConfig, PvtModel

    stages = config.stages
    ratios = [(stage.feed_forward or 4 * stage.width) // stage.width for stage in stages]
    depths, widths, heads = ([getattr(stage, one) for stage in stages] for one in ("layers", "width", "heads"))
    if config.name == "pvt":
        steps = [config.patch_size, *[2] * (len(stages) - 1)]
        settings = PvtConfig(
            image_size=config.image_size,
            num_encoder_blocks=len(stages),
            depths=depths,
            sequence_reduction_ratios=[stage.reduction for stage in stages],
            hidden_sizes=widths,
            patch_sizes=steps,
            strides=steps,
            num_attention_heads=heads,
            mlp_ratios=ratios,
        )
        peer: Any = PvtModel(settings)

        def forward(images: Tensor) -> Tensor:
            return peer(images).last_hidden_state
    else:
        settings = CvtConfig(
            depth=depths,
            embed_dim=widths,
            num_heads=heads,
            mlp_ratio=[float(ratio) for ratio in ratios],
            stride_kv=[stage.reduction for stage in stages],
            drop_path_rate=[0.0] * len(stages),
        )
        settings.num_labels = 0
        peer = CvtForImageClassification(settings)

        def forward(images: Tensor) -> Tensor:
            return peer.layernorm(_cvt_tokens(peer.cvt(images)))

    ours.load_state_dict(pyramid_from_transformers(settings.to_dict(), peer.state_dict())[1])
    return peer, forward


def _cvt_tokens(output: Any) -> Tensor:
    tokens = output.last_hidden_state.flatten(2).transpose(1, 2)  # [batch, places, width]
    return torch.cat([output.cls_token_value, tokens], dim=1)
