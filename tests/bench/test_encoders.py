"""`vlp bench encoders` measures ours and a peer with the same weights, and its small shapes have equal FLOPs."""

import json

import pytest
import torch

from vlp.bench import encoders, timing
from vlp.bench.command import as_table
from vlp.bench.encoder_shapes import SHAPES, count, small_encoder
from vlp.config_model import ImageEncoderConfig
from vlp.models.image_encoders.families import FAMILIES, build_tower, resolve


def test_small_shapes_have_equal_flops():
    assert {name.partition(",")[0] for name in SHAPES} == set(FAMILIES)
    flops = {name: count(small_encoder(name))[1] for name in SHAPES}
    wanted = flops["vit, convolutions"]
    assert {name: one for name, one in flops.items() if abs(one / wanted - 1) > 0.05} == {}


DEEP_STEM = ImageEncoderConfig("hybrid", 64, 32, width=64, layers=1, heads=2, stem=[2, 2, 2, 2])


@pytest.mark.parametrize("config", [*map(small_encoder, ("vit", "hybrid", "pvt", "pvt_v2", "cvt")), DEEP_STEM])
def test_peers_have_our_features(config):
    config = resolve(config)
    ours = build_tower(config).eval()
    peer, forward = encoders.make_peer(config, ours)
    images = torch.randn(2, 3, 64, 64)
    peer.eval()
    with torch.no_grad():
        theirs, tokens = forward(images), ours(images)
    if theirs.ndim == 4:  # timm's grid; ours has the mean before it
        theirs, tokens = theirs.flatten(2).transpose(1, 2), tokens[:, 1:]
    torch.testing.assert_close(tokens, theirs, rtol=1e-4, atol=1e-4)


def test_lines_have_speeds_sizes_and_a_peer_where_there_is_one(monkeypatch):
    monkeypatch.setattr(timing, "SIDE", 512)
    monkeypatch.setattr(timing, "RATE_SECONDS", 0.05)
    monkeypatch.setattr(encoders, "SHAPES", {"cct": SHAPES["cct"], "pvt_v2": SHAPES["pvt_v2"]})
    lines = encoders.bench_encoders("small", "bf16", 1, True, 1)
    assert [line.what for line in lines] == [
        f"{name}, {what}" for name in ("cct", "pvt_v2") for what in ("forward", "training step")
    ]
    assert [line.peer is None for line in lines] == [True, True, False, False]
    forward, step = lines[2:]
    assert forward.parameters == count(small_encoder("pvt_v2"))[0]
    assert forward.flops == pytest.approx(count(small_encoder("pvt_v2"))[1], rel=0.01)
    assert step.flops == forward.flops
    table = as_table(lines, markdown=True).splitlines()
    assert len(table) == 2 + len(lines) and table[1].startswith("| --- |") and "GFLOPs" in table[0]
    json.dumps([vars(line) for line in lines])
