"""Every family of image encoders keeps one contract; each equals a plain reference and has the paper's parameters."""

import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.errors import UserError
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.image_encoders.encoder import ImageEncoder, resize_positions
from vlp.models.image_encoders.families import FAMILIES, build_tower, resolve
from vlp.models.image_encoders.layers import DropPath, drop_path_rates, recording

SIZES = {"width": 32, "layers": 2, "heads": 2}
STAGES = [
    StageConfig(width=16, layers=1, heads=1, feed_forward=32, reduction=2),
    StageConfig(width=32, layers=2, heads=2, reduction=1),
]
TWO = {"patch_size": 4, "width": 32, "stages": STAGES}
# A small encoder of each family: its config for images of 32 pixels, the tokens it gives, and another image size.
SMALL: dict[str, tuple[ImageEncoderConfig, int, int]] = {
    "vit": (ImageEncoderConfig("vit", 32, 8, **SIZES), 16, 48),
    "vit, registers": (ImageEncoderConfig("vit", 32, 8, registers=3, **SIZES), 16, 48),
    "vit, mean": (ImageEncoderConfig("vit", 32, 8, registers=2, pooling="mean", **SIZES), 16, 24),
    "vit, convolutions": (ImageEncoderConfig("vit", 32, convolutions=2, kernel=7, **SIZES), 4, 64),
    "hybrid": (ImageEncoderConfig("hybrid", 32, 8, stem=[1, 2], **SIZES), 16, 48),
    "hybrid, patches": (ImageEncoderConfig("hybrid", 32, 8, **SIZES), 16, 24),
    "vit_lite": (ImageEncoderConfig("vit_lite", 32, 8, **SIZES), 16, 48),
    "vit_lite, sine": (ImageEncoderConfig("vit_lite", 32, 8, positions="sine", **SIZES), 16, 24),
    "cvt_compact": (ImageEncoderConfig("cvt_compact", 32, 8, **SIZES), 16, 48),
    "cct": (ImageEncoderConfig("cct", 32, convolutions=2, kernel=3, **SIZES), 64, 40),
    "cct, 7x2": (ImageEncoderConfig("cct", 32, convolutions=2, kernel=7, **SIZES), 4, 64),
    "cct, no positions": (ImageEncoderConfig("cct", 32, convolutions=2, positions="none", **SIZES), 64, 36),
    "t2t": (ImageEncoderConfig("t2t", 32, **SIZES), 4, 64),
    "t2t, performer": (ImageEncoderConfig("t2t", 32, performer=True, **SIZES), 4, 48),
    "pvt": (ImageEncoderConfig("pvt", 32, **TWO), 16, 48),
    "pvt, two stages": (ImageEncoderConfig("pvt", 32, last_stages=2, **TWO), 16 + 64, 48),
    "pvt_v2": (ImageEncoderConfig("pvt_v2", 32, **TWO), 16, 40),
    "pvt_v2, linear": (ImageEncoderConfig("pvt_v2", 32, linear_reduction=True, last_stages=2, **TWO), 80, 48),
    "cvt": (ImageEncoderConfig("cvt", 32, **TWO), 16, 40),
    "cvt, two stages": (ImageEncoderConfig("cvt", 32, last_stages=2, **TWO), 80, 24),
}
# The papers' counts in millions, with the classifier of so many classes, at an image size.
PARAMETERS = [
    ("vit:Ti/16", 224, 1000, 5.72),
    ("vit:S/16", 224, 1000, 22.05),
    ("vit:B/16", 224, 1000, 86.57),
    ("vit:L/16", 224, 1000, 304.33),
    ("vit:H/14", 224, 1000, 632.05),
    ("hybrid:Ti/R", 224, 1000, 6.34),
    ("hybrid:S/R26", 224, 1000, 36.43),
    ("hybrid:B/R50", 384, 1000, 98.95),
    ("hybrid:L/R50", 224, 1000, 328.99),
    ("vit_lite:6/4", 32, 10, 3.19),
    ("vit_lite:7/4", 32, 10, 3.72),
    ("cvt_compact:6/4", 32, 10, 3.19),
    ("cvt_compact:7/4", 32, 10, 3.72),
    ("cct:2/3x2", 32, 10, 0.28),
    ("cct:4/3x2", 32, 10, 0.48),
    ("cct:6/3x1", 32, 10, 3.17 + 0.066),  # the paper's 3.17 leaves out the positions, unlike its other rows
    ("cct:6/3x2", 32, 10, 3.33),
    ("cct:7/3x1", 32, 10, 3.76),
    ("cct:14/7x2", 224, 1000, 22.36),
    ("t2t:7", 224, 1000, 4.3),
    ("t2t:10", 224, 1000, 5.9),
    ("t2t:12", 224, 1000, 6.9),
    ("t2t:14", 224, 1000, 21.5),
    ("t2t:19", 224, 1000, 39.2),
    ("t2t:24", 224, 1000, 64.1),
    ("t2t:t-14", 224, 1000, 21.5),
    ("t2t:t-19", 224, 1000, 39.2),
    ("t2t:t-24", 224, 1000, 64.1),
    ("pvt:tiny", 224, 1000, 13.2),
    ("pvt:small", 224, 1000, 24.5),
    ("pvt:medium", 224, 1000, 44.2),
    ("pvt:large", 224, 1000, 61.4),
    ("pvt_v2:b0", 224, 1000, 3.7),
    ("pvt_v2:b1", 224, 1000, 14.0),
    ("pvt_v2:b2", 224, 1000, 25.4),
    ("pvt_v2:b2_li", 224, 1000, 22.6),
    ("pvt_v2:b3", 224, 1000, 45.2),
    ("pvt_v2:b4", 224, 1000, 62.6),
    ("pvt_v2:b5", 224, 1000, 82.0),
    ("cvt:13", 224, 1000, 20.0),
    ("cvt:21", 224, 1000, 31.6),  # rounded to 32 in the paper's table
    ("cvt:w24", 384, 1000, 277.0),
]


def make(kind: str, **changes) -> ImageEncoder:
    torch.manual_seed(0)
    config = SMALL[kind][0]
    return ImageEncoder(ImageEncoderConfig(**{**vars(config), **changes})).eval()


def images_of(size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", SMALL)
def test_a_lower_resolution_equals_a_resized_encoder_on_smaller_images(kind):
    low, high = sorted((32, SMALL[kind][2]))
    encoder, images = make(kind, image_size=high), images_of(high)
    encoder.check_size(low)
    assert "meta" not in {str(one.device) for one in encoder.parameters()}
    small = F.interpolate(encoder.normalize(images), size=(low, low), mode="area")
    expected = resize_positions(encoder, replace(encoder.config, image_size=low)).eval()(small)
    torch.testing.assert_close(encoder(images, size=low), expected)
    encoder.train()(images, size=low).sum().backward()
    for name in encoder.tower.positions:  # t2t's are fixed
        weight = encoder.tower.get_parameter(name)
        assert not weight.requires_grad or weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("config", "size", "sentence"),
    [
        (SMALL["vit"][0], 32, r"objective\.first_image_size \(32\) must be below the model's image size \(32\)"),
        (SMALL["vit"][0], 20, r"objective\.first_image_size \(20\) must be a multiple of its patch_size \(8\)"),
        (ImageEncoderConfig("timm:resnet10t", 32, width=512), 16, "timm:resnet10t takes one image size; set 0 or use"),
    ],
)
def test_a_lower_resolution_that_does_not_fit_is_refused(config, size, sentence):
    with pytest.raises(UserError, match=sentence):
        ImageEncoder(config).check_size(size)


def test_every_family_is_tested():
    assert {config.name for config, _, _ in SMALL.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", SMALL)
def test_images_become_a_summary_and_tokens_and_every_weight_learns(name):
    encoder = make(name).train()
    tokens = encoder(images_of(32))
    assert tokens.shape == (3, 1 + SMALL[name][1], encoder.width)
    (tokens * torch.randn(tokens.shape)).sum().backward()
    lacking = [one for one, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not lacking


@pytest.mark.parametrize("name", SMALL)
def test_images_do_not_depend_on_the_others_of_a_batch(name):
    encoder = make(name)
    with torch.no_grad():
        together = encoder(images_of(32))
        alone = torch.cat([encoder(one[None]) for one in images_of(32)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_cpu_path_equals_the_plain_one(name):
    plain, fast = make(name), optimise_for_cpu(make(name))
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        with torch.no_grad():
            ours, expected = (one.to(dtype)(images_of(32)) for one in (fast, plain))
        torch.testing.assert_close(ours, expected, rtol=near, atol=near)


@pytest.mark.parametrize("name", SMALL)
def test_recomputed_activations_give_the_same_gradients(name):
    plain, saving = make(name), make(name)
    saving.checkpoint_activations()
    gradients, kept = [], []  # kept: how many numbers the forward pass keeps
    for encoder in (plain, saving):
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept[-1].append(one.numel()) or one, lambda one: one):
            kept.append([])
            loss = encoder(images_of(32)).square().sum()
        loss.backward()
        gradients.append({one: weight.grad for one, weight in encoder.named_parameters() if weight.requires_grad})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert sum(kept[1]) < 0.9 * sum(kept[0])  # convolutions before the blocks keep theirs


@pytest.mark.parametrize("name", SMALL)
def test_drop_path_drops_whole_branches_in_training_only(name):
    encoder = make(name, drop_path=0.5)
    with torch.no_grad():
        still = [encoder(images_of(32)) for _ in range(2)]
        torch.testing.assert_close(still[0], make(name)(images_of(32)), rtol=1e-5, atol=1e-5)
        encoder.train()
        moving = [encoder(images_of(32)) for _ in range(2)]
    assert torch.equal(*still) and not torch.allclose(*moving)
    shares = [module.share for module in encoder.modules() if isinstance(module, DropPath)]
    assert shares == sorted(shares) and shares[-1] == 0.5  # it grows to the last block


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    rows = DropPath(0.25).train()(torch.ones(4000, 2, 3)).flatten(1)
    dropped, kept = (rows == 0).all(dim=1), (rows == 1 / 0.75).all(dim=1)
    assert (dropped | kept).all() and dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3]) and drop_path_rates(0.3, 1) == [0]


@pytest.mark.parametrize("name", [*FAMILIES, "t2t, performer", "pvt_v2, linear"])  # all kinds of blocks
def test_blocks_compile(name):
    plain, compiled = make(name), make(name)
    compile_blocks(compiled, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images_of(32)), plain(images_of(32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_image_size_changes_and_positions_follow(name):
    encoder, size = make(name), SMALL[name][2]
    resized = resize_positions(encoder, ImageEncoderConfig(**{**vars(encoder.config), "image_size": size})).eval()
    with torch.no_grad():
        assert resized(images_of(size)).shape[0] == 3
    for one, leading in encoder.tower.positions.items():
        old, new = (tower.get_parameter(one) for tower in (encoder.tower, resized.tower))
        assert torch.equal(old[:, :leading], new[:, :leading]) and old.shape != new.shape
        before, after = (
            places[:, leading:].unflatten(1, (math.isqrt(places.shape[1] - leading), -1)).mean(dim=(1, 2))
            for places in (old, new)
        )
        torch.testing.assert_close(after, before, rtol=0.2, atol=0.15)  # the same picture at another size
    back = resize_positions(encoder, encoder.config).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(images_of(32)), encoder(images_of(32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_attention_maps_are_recorded_on_request(name):
    encoder = optimise_for_cpu(make(name))
    expected = encoder(images_of(32)).detach()
    with recording(encoder) as products:
        tokens = encoder(images_of(32))
        assert len(products) >= 2
        for product in products:
            assert product.recorded is not None and product.recorded.ndim == 4
            torch.testing.assert_close(product.recorded.sum(dim=-1), torch.ones(product.recorded.shape[:-1]))
        torch.testing.assert_close(tokens.detach(), expected, rtol=1e-4, atol=1e-4)
        torch.autograd.grad(tokens.sum(), [products[0].recorded])
    assert all(product.recorded is None and not product.is_recording for product in products)


@pytest.mark.parametrize(("name", "size", "classes", "millions"), PARAMETERS)
def test_variants_have_the_papers_parameters(name, size, classes, millions):
    config = resolve(ImageEncoderConfig(name, size))
    assert ":" not in config.name
    with torch.device("meta"):
        tower = build_tower(config)
    count = sum(weight.numel() for weight in tower.parameters()) + (tower.width + 1) * classes
    assert count / 1e6 == pytest.approx(millions, rel=0.01, abs=0.005)  # two digits in the papers


@pytest.mark.parametrize("pre_norm", [False, True])
def test_vit_equals_timms(pre_norm):
    encoder = make("vit", pre_norm=pre_norm)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        pre_norm=pre_norm,
    ).eval()
    theirs.load_state_dict(encoder.tower.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.tower(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)


def test_registers_take_part_in_attention_and_leave():
    encoder = make("vit, registers")
    with torch.no_grad():
        before = encoder(images_of(32))
        with recording(encoder) as products:
            encoder(images_of(32))
            assert products[0].recorded.shape[-1] == 1 + 3 + 16
        encoder.tower.reg_token.mul_(100)
        assert not torch.allclose(encoder(images_of(32)), before)


def test_mean_pooling_is_the_mean_of_the_tokens():
    with torch.no_grad():
        tokens = make("vit, mean")(images_of(32))
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1))


def test_cct_equals_a_plain_reference():
    """Convolution, ReLU and max pooling; blocks; and SeqPool written as sums over tokens."""
    encoder = make("cct")
    tower, images = encoder.tower, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for weight in tower.parameters():  # new norms are no more than normalizations
            weight.add_(0.1 * torch.randn_like(weight))
        x = images
        for convolution in (module for module in tower.tokenizer.modules() if isinstance(module, nn.Conv2d)):
            x = F.max_pool2d(F.conv2d(x, convolution.weight, padding=1).relu(), 3, 2, 1)
        x = torch.stack([x[:, :, row, column] for row in range(8) for column in range(8)], dim=1) + tower.positional_emb
        for block in tower.blocks:
            x = block.norm1(x + plain_attention(block.self_attn, block.pre_norm(x), heads=2))
            x = x + block.linear2(F.gelu(block.linear1(x)))
        x = tower.norm(x)
        scores = [
            (x[:, place] @ tower.attention_pool.weight[0] + tower.attention_pool.bias).exp() for place in range(64)
        ]
        summary = sum(score[:, None] * x[:, place] for place, score in enumerate(scores)) / sum(scores)[:, None]
        torch.testing.assert_close(tower(images), torch.cat([summary[:, None], x], dim=1), rtol=1e-4, atol=1e-5)


def plain_attention(module: nn.Module, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention head by head."""
    width = x.shape[-1]
    query, key, value = module.qkv(x).split(width, dim=-1)
    parts = []
    for one in torch.arange(width).chunk(heads):
        scores = query[..., one] @ key[..., one].transpose(1, 2) / math.sqrt(len(one))
        parts.append(scores.softmax(dim=-1) @ value[..., one])
    return module.proj(torch.cat(parts, dim=-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vti"}, r"no image encoder 'vti' \(did you mean vit\?\)"),
        ({"name": "vit:l/16"}, r"vit has no variant 'l/16' \(did you mean L/16\?\)"),
        ({"name": "pvt_v2:b9"}, r"pvt_v2 has no variant 'b9' \(did you mean b\d\?\)"),
        ({"name": "cct:7/3x"}, r"cct has no variant '7/3x' \(did you mean 7/3x\d\?\)"),
        (
            {"name": "vit:B/16", "width": 768, "heads": 12, "patch_size": 16, "layers": 3},
            r"layers is 3, but vit:B/16 has 12; remove it, or write name: vit",
        ),
        (
            {"name": "timm:convnext_tny"},
            r"no timm model convnext_tny \(did you mean convnext_tiny\?\); `timm\.list_models",
        ),
        ({"name": "timm:nosuch"}, r"There is no timm model nosuch; `timm\.list_models\(\)` lists them\.$"),
        ({"name": "timm:dla46_c", "drop_path": 0.1}, "dla46_c has no drop path; leave"),
        ({"image_size": 30}, r"image_size \(30\) must be a multiple of its patch_size \(8\)"),
        ({"name": "cct"}, "convolutions is 0; cct needs at least one"),
        ({"width": 33}, r"width \(33\) must be a multiple of heads"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make("vit", **changes)


def test_models_of_timm_without_drop_path_or_checkpointing():
    tower = ImageEncoder(ImageEncoderConfig("timm:dla46_c", 32, width=256)).eval()
    assert tower(images_of(32)).shape == (3, 2, 256)
    with pytest.raises(UserError, match="timm's DLA cannot recompute activations; set false"):
        tower.checkpoint_activations()
