"""Muon equals a plain loop over single matrices, and takes the matrices of blocks alone."""

import pytest
import torch
from torch import nn

from tests.tiny_model import make_model
from vlp.bench.encoder_shapes import SHAPES, small_encoder
from vlp.config import OptimConfig
from vlp.config_model import ImageEncoderConfig
from vlp.models.image_encoders.families import build_tower
from vlp.training.muon import MOMENTUM, newton_schulz, orthogonal
from vlp.training.optim import build_optimizer, set_learning_rate
from vlp.training.parameter_groups import layer_rates, parameter_groups

RATE, DECAY = 0.01, 0.05
MUON = OptimConfig(name="muon")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)
        self.up = nn.Linear(6, 24)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(6, 6)


def plain_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz on one matrix, by the formula."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        change = -4.7750 * gram + 2.0315 * gram @ gram
        x = 3.4445 * x + (change @ x if x.shape[0] <= x.shape[1] else x @ change)
    return x


def test_every_matrix_moves_as_in_a_plain_loop():
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(OptimConfig(name="muon", learning_rate=RATE, weight_decay=DECAY), net)
    expected = {name: one.detach().clone() for name, one in net.named_parameters()}
    momenta = {name: torch.zeros_like(one) for name, one in expected.items()}
    rest = {name: one for name, one in expected.items() if "weight" not in name or "head" in name}
    for one in rest.values():
        one.requires_grad_()
    plain = torch.optim.AdamW(
        [
            {"params": [one for one in rest.values() if one.ndim == 2], "weight_decay": DECAY},
            {"params": [one for one in rest.values() if one.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    for _ in range(3):
        for name, one in net.named_parameters():
            one.grad = torch.randn_like(one)
            if name in rest:
                rest[name].grad = one.grad.clone()
                continue
            momenta[name] = MOMENTUM * momenta[name] + (1 - MOMENTUM) * one.grad
            moved = (1 - MOMENTUM) * one.grad + MOMENTUM * momenta[name]
            expected[name] *= 1 - RATE * DECAY
            number = 3 if "qkv" in name else 1
            for target, part in zip(expected[name].chunk(number), moved.chunk(number), strict=True):
                target -= RATE * 0.2 * max(part.shape) ** 0.5 * plain_orthogonal(part)
        optimizer.step()
        plain.step()
    for name, one in net.named_parameters():
        assert torch.allclose(one, expected[name], atol=1e-6), name


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_singular_values_become_about_one(shape):
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for made in orthogonal(matrices, torch.bfloat16):
        values = torch.linalg.svdvals(made)
        assert made.shape == shape and values.min() > 0.2 and values.max() < 1.3
    assert newton_schulz(torch.zeros(1, 2, 2), torch.float32).isfinite().all()


def test_a_step_whose_gradients_overflow_is_skipped():
    net = Net()
    optimizer = build_optimizer(OptimConfig(name="muon", learning_rate=RATE), net)
    scaler = torch.amp.GradScaler("cpu")
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    for value, changes in ((float("inf"), False), (1.0, True)):
        for one in net.parameters():
            one.grad = torch.full_like(one, value)
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert all((not torch.equal(one, before[name])) == changes for name, one in net.named_parameters())


def test_muon_takes_the_matrices_of_both_towers_blocks():
    blip = make_model().blip
    names = {id(one): name for name, one in blip.named_parameters()}
    groups = parameter_groups(blip, MUON)
    parts = {names[id(one)]: group.get("parts") for group in groups for one in group["params"]}
    assert parts.keys() == dict(blip.named_parameters()).keys()
    taken = {name.partition(".0.")[2]: number for name, number in parts.items() if number and ".0." in name}
    assert taken == {
        "attn.qkv.weight": 3,
        "attn.proj.weight": 1,
        "mlp.fc1.weight": 1,
        "mlp.fc2.weight": 1,
        **{f"self_attention.{side}.qkv.weight": 3 for side in ("encoder", "decoder")},
        **{f"self_attention.{side}.out.weight": 1 for side in ("encoder", "decoder")},
        "cross_attention.shared.query.weight": 1,
        "cross_attention.shared.key_value.weight": 2,
        "cross_attention.shared.out.weight": 1,
        "feed_forward.shared.up.weight": 1,
        "feed_forward.shared.down.weight": 1,
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_takes_every_linear_layer_of_an_image_encoder(shape):
    """Also those between the splits of T2T-ViT: AdamW at Muon's rate makes their outputs hide the positions."""
    with torch.device("meta"):
        tower = build_tower(small_encoder(shape))
    parts = {id(one): group.get("parts") for group in parameter_groups(tower, MUON) for one in group["params"]}
    linear = {name: parts[id(layer.weight)] for name, layer in tower.named_modules() if isinstance(layer, nn.Linear)}
    assert [name for name, number in linear.items() if not number] in ([], ["attention_pool"])  # SeqPool's vector
    assert all(linear[name] == 3 for name in linear if name.endswith(("qkv", "kqv")))


@pytest.mark.parametrize(("name", "width", "said"), [("timm:resnet10t", 512, 1), ("vit", 32, 0)])
def test_an_image_encoder_that_muon_hardly_trains_is_named(caplog, name, width, said):
    model = nn.Module()
    model.image_encoder = build_tower(ImageEncoderConfig(name=name, image_size=32, patch_size=8, width=width, heads=2))
    build_optimizer(MUON, model)
    assert sum("Muon trains only 0% of the image encoder" in line for line in caplog.messages) == said
    build_optimizer(OptimConfig(name="adamw"), model)
    assert len(caplog.messages) == said


def test_lower_layers_have_lower_rates():
    blip = make_model().blip
    rates = layer_rates(blip, 0.5)
    assert rates["text_tower.embeddings.shared.words.weight"] == 0.25  # below two layers
    assert rates["text_tower.layers.0.feed_forward.shared.up.bias"] == 0.5
    assert rates["text_tower.layers.1.cross_attention.shared.query.weight"] == 1.0
    assert rates["image_encoder.tower.pos_embed"] == 0.5 and rates["image_encoder.tower.norm.weight"] == 1.0
    assert "itm_head.weight" not in rates
    optimizer = build_optimizer(OptimConfig(layer_decay=0.5), blip)
    set_learning_rate(optimizer, 0.1)
    found = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    for name, one in blip.named_parameters():
        assert found[id(one)] == pytest.approx(0.1 * rates.get(name, 1.0)), name
    assert len(parameter_groups(blip, OptimConfig())) == 2
