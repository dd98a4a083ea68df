"""Converted PVT, PVT v2 and CvT give the features of timm's and transformers' models, and take the authors' names."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import transformers
from timm.models.pvt_v2 import PyramidVisionTransformerV2

from vlp.config_model import ImageEncoderConfig
from vlp.convert import towers
from vlp.convert.towers import IMAGENET, image_tower, with_colors
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower, resolve

SHAPE = {"hidden_sizes": [16, 32, 80, 64], "depths": [1, 2, 1, 1], "image_size": 64}


def redrawn(network):
    """The network with random weights everywhere, norms and their running statistics included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                around = 1.0 if "norm" in name and name.endswith(("weight", "var")) else 0.0
                tensor.copy_(around + 0.1 * torch.randn_like(tensor))
    return network.eval()


def tower_of(source):
    config, state = image_tower(str(source))
    tower = build_tower(config).eval()
    tower.load_state_dict(state)
    return config, tower


def saved(theirs, folder):
    theirs.save_pretrained(folder)
    return folder


def images_of(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("with_head", [False, True])
def test_pvt_equals_transformers(tmp_path, with_head):
    config = transformers.PvtConfig(**SHAPE)
    theirs = redrawn((transformers.PvtForImageClassification if with_head else transformers.PvtModel)(config))
    found, tower = tower_of(saved(theirs, tmp_path))
    assert found.name == "pvt" and [stage.reduction for stage in found.stages] == [8, 4, 2, 1]
    assert [stage.layers for stage in found.stages] == SHAPE["depths"] and found.image_size == 64
    body = theirs.pvt if with_head else theirs
    with torch.no_grad():
        expected = body(images_of()).last_hidden_state
        torch.testing.assert_close(tower(images_of()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("linear", [False, True])
def test_pvt_v2_equals_transformers(tmp_path, linear):
    config = transformers.PvtV2Config(**SHAPE, linear_attention=linear)
    theirs = redrawn(transformers.PvtV2Model(config))
    found, tower = tower_of(saved(theirs, tmp_path))
    assert found.name == "pvt_v2" and found.linear_reduction is linear
    with torch.no_grad():
        expected = theirs(images_of()).last_hidden_state.flatten(2).transpose(1, 2)
        expected = torch.cat([expected.mean(dim=1, keepdim=True), expected], dim=1)
        torch.testing.assert_close(tower(images_of()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("linear", [False, True])
def test_pvt_v2_equals_timms(monkeypatch, linear):
    theirs = redrawn(
        PyramidVisionTransformerV2(
            depths=(1, 2, 1, 1), embed_dims=(16, 32, 80, 64), num_heads=(1, 2, 5, 8), linear=linear, num_classes=0
        )
    )
    theirs.pretrained_cfg = timm.get_pretrained_cfg("pvt_v2_b0").to_dict()  # as `timm.create_model` sets it
    monkeypatch.setattr(towers, "create_trunk", lambda *_, **__: theirs)
    found, tower = tower_of("timm:pvt_v2_b0")
    assert tuple(found.mean) == theirs.pretrained_cfg["mean"]
    assert found.name == "pvt_v2" and [stage.heads for stage in found.stages] == [1, 2, 5, 8]
    with torch.no_grad():
        expected = theirs.forward_features(images_of()).flatten(2).transpose(1, 2)
        tokens = tower(images_of()) if found.image_size == 64 else resized(found, tower)(images_of())
        torch.testing.assert_close(tokens[:, 1:], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tokens[:, 0], expected.mean(dim=1), rtol=1e-4, atol=1e-4)


def resized(config, tower, size=64):
    """The tower for another image size; only for families without positions."""
    other = build_tower(replace(config, image_size=size)).eval()
    other.load_state_dict(tower.state_dict())
    return other


@pytest.mark.parametrize("size", [64, 80])
def test_cvt_equals_transformers(tmp_path, size):
    config = transformers.CvtConfig(embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3])
    theirs = redrawn(transformers.CvtForImageClassification(config))
    found, tower = tower_of(saved(theirs, tmp_path))
    assert found.name == "cvt" and found.activation == "gelu" and found.norm_eps == 1e-5
    tower = resized(found, tower, size)
    with torch.no_grad():
        output = theirs.cvt(images_of(size))
        tokens = torch.cat([output.cls_token_value, output.last_hidden_state.flatten(2).transpose(1, 2)], dim=1)
        expected = theirs.layernorm(tokens)
        torch.testing.assert_close(tower(images_of(size)), expected, rtol=1e-4, atol=1e-4)
        kernels = tower.stages[2].blocks[0].attn.conv_proj_k
        folded, grid = kernels(torch.ones(1, 48, 4, 4)), torch.ones(1, 48, 4, 4)
        plain = kernels.bn(kernels.conv(grid)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(folded, plain, rtol=1e-5, atol=1e-5)


def test_cvt_trains_like_transformers(tmp_path):
    """In training, batch statistics normalize: same features, same gradients, same running statistics."""
    config = transformers.CvtConfig(
        embed_dim=[16, 32], num_heads=[1, 2], depth=[1, 2], **two_stages(), drop_path_rate=[0.0, 0.0]
    )
    theirs = redrawn(transformers.CvtForImageClassification(config)).train()
    found, tower = tower_of(saved(theirs, tmp_path))
    tower = resized(found, tower).train()
    output = theirs.cvt(images_of())
    tokens = torch.cat([output.cls_token_value, output.last_hidden_state.flatten(2).transpose(1, 2)], dim=1)
    expected, ours = theirs.layernorm(tokens), tower(images_of())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(ours.shape)
    for features in (expected, ours):
        (features * weights).sum().backward()
    normalization = theirs.cvt.encoder.stages[1].layers[1].attention.attention.convolution_projection_value
    mine = tower.stages[1].blocks[1].attn.conv_proj_v
    torch.testing.assert_close(mine.bn.running_var, normalization.convolution_projection.normalization.running_var)
    first = theirs.cvt.encoder.stages[0].embedding.convolution_embeddings.projection.weight.grad
    torch.testing.assert_close(tower.stages[0].embed.proj.weight.grad, first, rtol=1e-3, atol=1e-4)


def two_stages():
    """The settings of a CvT of transformers that it has for each of its stages."""
    default = transformers.CvtConfig()
    names = ("mlp_ratio", "attention_drop_rate", "drop_rate", "qkv_bias", "kernel_qkv", "padding_kv", "stride_kv")
    names += ("padding_q", "stride_q", "qkv_projection_method", "patch_sizes", "patch_stride", "patch_padding")
    return {**{name: list(getattr(default, name))[:2] for name in names}, "cls_token": [False, True]}


def published_names(name: str) -> dict[str, torch.Size]:
    """Names and shapes of an authors' checkpoint, as their code makes them, from our tower of the same variant."""
    shapes = {}
    with torch.device("meta"):
        tower = build_tower(resolve(ImageEncoderConfig(name)))
    for ours, tensor in tower.state_dict().items():
        if name.startswith("cvt"):
            theirs = ours.replace("stages.", "stage", 1).replace(".embed.", ".patch_embed.")
            theirs = "norm" + theirs.removeprefix("stage2.norm") if theirs.startswith("stage2.norm.") else theirs
        else:
            number, rest = int(ours.split(".")[1]) + 1, ours.split(".", 2)[2]
            rest = rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
            part, _, end = rest.partition(".")
            theirs = {"embed": f"patch_embed{number}", "blocks": f"block{number}", "pos_embed": f"pos_embed{number}"}
            theirs["norm"] = "norm" if name.startswith("pvt:") else f"norm{number}"
            theirs = theirs.get(part, part) + (f".{end}" if end else "")
        shapes[theirs] = tensor.shape
    head = "head.weight", "head.bias"
    return {**shapes, head[0]: torch.Size([1000, tower.width]), head[1]: torch.Size([1000])}


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("pvt:tiny", ("pos_embed4", "cls_token", "block1.1.attn.sr.weight", "patch_embed2.norm.bias", "norm.weight")),
        ("pvt_v2:b0", ("block3.0.mlp.dwconv.dwconv.weight", "norm1.weight", "patch_embed1.proj.weight")),
        ("pvt_v2:b2_li", ("block4.2.attn.sr.weight", "norm4.bias")),
        ("cvt:13", ("stage2.cls_token", "stage0.blocks.0.attn.conv_proj_k.bn.running_mean", "norm.bias")),
    ],
)
def test_the_authors_checkpoints_are_read(tmp_path, name, sample):
    weights = {one: torch.randn(shape) for one, shape in published_names(name).items()}
    assert set(sample) <= set(weights)
    torch.save({"model": weights}, tmp_path / "published.pth")
    found, tower = tower_of(tmp_path / "published.pth")
    wanted = with_colors(resolve(ImageEncoderConfig(name)), *IMAGENET)
    if found.linear_reduction:  # its ratios are not used
        wanted.stages = [replace(stage, reduction=1) for stage in wanted.stages]
    if name.startswith("cvt"):
        wanted = replace(wanted, activation="quick_gelu")
        scaled = tower.stages[2].blocks[0].attn.proj_q.weight
        torch.testing.assert_close(scaled, weights["stage2.blocks.0.attn.proj_q.weight"] / 6**0.5)
    assert found == wanted


def test_incomplete_weights_are_refused(tmp_path):
    theirs = transformers.PvtV2Model(transformers.PvtV2Config(**SHAPE))
    folder = saved(theirs, tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "num_attention_heads": [1, 2, 5, 8, 8]}))
    with pytest.raises(UserError, match=r"not complete: stages.4.embed.norm.weight is missing"):
        image_tower(str(folder))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth holds no image encoder that"):
        image_tower(str(tmp_path / "other.pth"))
