"""`optimise_for_cpu`: models are plain before it, keep their names, copies and results after it, and follow changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.tiny_model import make_images, make_model
from vlp import load_model, optimise_for_cpu
from vlp.config import DecodingConfig
from vlp.model import Model
from vlp.models.cpu.linear import packable
from vlp.models.cpu.optimise import FASTER
from vlp.models.image_encoders.layers import DotProduct
from vlp.models.text_tower import TextTower

TEXTS = ["a red circle", "a small blue square left of the large green star", "white shape"]
GREEDY = DecodingConfig(beams=1, min_length=1, max_length=12)


def results_of(model: Model) -> list[torch.Tensor]:
    """What a model computes by each of its parts."""
    images = make_images(3)
    captions = model.caption_tokens(model.encode_images(images), GREEDY, ["0", "1", "2"])
    match = model.match(images, TEXTS)
    likelihoods = torch.tensor([one.log_probability for (one,) in captions])
    return [model.embed_images(images), model.embed_texts(TEXTS), match.itm, match.itc, likelihoods]


def test_a_loaded_model_is_made_of_plain_modules(tmp_path):
    make_model().save(tmp_path / "model")
    network = load_model(tmp_path / "model", device="cpu").blip
    kinds = {type(module) for module in network.modules()}
    assert not kinds & set(FASTER.values())
    assert {nn.Linear, nn.Dropout, DotProduct, TextTower} <= kinds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_keeps_its_names_objects_and_results(precision):
    plain = make_model(precision)
    fast = copy.deepcopy(plain)
    modules, parameters, names = list(fast.blip.modules()), list(fast.blip.parameters()), list(fast.blip.state_dict())
    assert optimise_for_cpu(fast) is fast
    assert not {type(module) for module in fast.blip.modules()} & set(FASTER)
    for before, after in ((modules, fast.blip.modules()), (parameters, fast.blip.parameters())):
        assert all(one is other for one, other in zip(before, after, strict=True))
    assert list(fast.blip.state_dict()) == names
    linears = sum(isinstance(module, nn.Linear) for module in plain.blip.modules())
    assert sum(isinstance(module, nn.Linear) for module in fast.blip.modules()) == linears > 20
    near, compared = (1e-4, 5) if precision == "fp32" else (0.1, 4)  # rounding to bf16 may change a caption
    copied = copy.deepcopy(fast)
    copied.network = pickle.loads(pickle.dumps(fast.blip))
    for model in (fast, copy.deepcopy(fast), copied):
        for ours, expected in list(zip(results_of(model), results_of(plain), strict=True))[:compared]:
            torch.testing.assert_close(ours, expected, rtol=near, atol=near)


def assert_up_to_date(fast: Model, before: list[torch.Tensor]) -> None:
    """Results are those of a plain model with the same weights, and not the ones before."""
    plain = make_model()
    plain.blip.load_state_dict(fast.blip.state_dict())
    now = results_of(fast)
    for ours, expected in zip(now, results_of(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert all(not torch.allclose(one, other) for one, other in zip(now, before, strict=True))


def change_data(blip: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in blip.named_parameters():
        parameter.data.copy_(values[name])


def replace_data(blip: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in blip.named_parameters():
        parameter.data = values[name].clone()


@torch.no_grad()
def change_in_place(blip: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in blip.named_parameters():
        parameter.copy_(values[name])


def load(blip: nn.Module, values: dict[str, torch.Tensor]) -> None:
    blip.load_state_dict(values)


@pytest.mark.parametrize("change", [change_data, replace_data, change_in_place, load])
def test_results_follow_every_change_of_the_weights(change):
    fast = optimise_for_cpu(make_model())
    before = results_of(fast)
    change(fast.blip, make_model(seed=1).blip.state_dict())
    assert_up_to_date(fast, before)


def test_results_follow_a_fused_optimizer():
    """PyTorch does not count the changes of fused AdamW, so a validation after each hundred steps could go stale."""
    fast = optimise_for_cpu(make_model())
    optimizer = torch.optim.AdamW(fast.blip.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        before = results_of(fast)
        for parameter in fast.blip.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert_up_to_date(fast, before)


class LowRank(nn.Module):
    """A linear layer with a low-rank update, as LoRA wraps one."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.up(self.down(x))


def add_low_rank(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LowRank(child))
        else:
            add_low_rank(child)


def test_wrapped_linear_layers_are_used_and_trained():
    fast, plain = optimise_for_cpu(make_model(dropout=0.0)), make_model(dropout=0.0)
    before = results_of(fast)
    for model in (fast, plain):
        torch.manual_seed(3)
        add_low_rank(model.blip)
    now = results_of(fast)
    for ours, expected in zip(now, results_of(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(now[0], before[0]) and not torch.allclose(now[1], before[1])
    ids, mask = fast.text_ids(TEXTS, "[ENC]")
    for model in (fast, plain):
        memory = model.blip.text_tower.project_image(model.blip.encode_images(make_images(3)))
        model.blip.match_logits(ids, mask, memory).square().sum().backward()
    for (name, one), other in zip(fast.blip.named_parameters(), plain.blip.parameters(), strict=True):
        if other.grad is not None:
            assert (one.grad - other.grad).norm() < 1e-3 * other.grad.norm(), name


def test_another_dtype_is_followed():
    fast, plain = optimise_for_cpu(make_model()), make_model()
    results_of(fast)
    for model in (fast, plain):
        model.blip.double()
    for ours, expected in zip(results_of(fast), results_of(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not packable(), reason="this PyTorch has no packed products")
def test_captions_pack_each_weight_once(monkeypatch):
    fast, packed = optimise_for_cpu(make_model()), []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda one: packed.append(one.data_ptr()) or pack(one)
    )
    fast.caption(make_images(4), GREEDY, batch_size=2)  # two batches of many steps
    assert len(packed) == len(set(packed)) > 15
