"""oneDNN's linear layers: products and gradients equal the plain ones, and packed weights never go stale."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlp.config_model import TextTowerConfig
from vlp.models.constant_weights import constant_weights, kept
from vlp.models.cpu.linear import linear, packable
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.language_head import LanguageHead

pytestmark = pytest.mark.skipif(not packable(), reason="this PyTorch has no packed products")


@pytest.fixture
def packings(monkeypatch) -> list[torch.Size]:
    """The shapes of the weights that were packed."""
    shapes, pack = [], torch.ops.mkldnn._reorder_linear_weight
    operators = torch.ops.mkldnn
    monkeypatch.setattr(operators, "_reorder_linear_weight", lambda weight: shapes.append(weight.shape) or pack(weight))
    return shapes


@pytest.mark.parametrize("rows", [(1,), (5, 1), (3, 7)])
@pytest.mark.parametrize("dtype", sorted(packable(), key=str))
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_packed_products_equal_plain_ones(rows, dtype, with_bias, packings):
    plain = nn.Linear(48, 80, bias=with_bias).to(dtype)
    fast = optimise_for_cpu(copy.deepcopy(plain))
    x = torch.randn(*rows, 48, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(fast(x), plain(x), **close)
    assert not packings  # outside the block nothing is kept
    with constant_weights():
        for _ in range(3):
            torch.testing.assert_close(fast(x), plain(x), **close)
        assert packings == [(80, 48)]
        torch.testing.assert_close(fast(x.transpose(0, -2)), plain(x.transpose(0, -2)), **close)  # not contiguous


@pytest.mark.parametrize("constant", [True, False])
@torch.no_grad()
def test_autocast_applies(constant):
    plain, x = nn.Linear(48, 80), torch.randn(4, 48)
    fast = optimise_for_cpu(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        if constant:
            with constant_weights():
                ours = fast(x)
        else:
            ours = fast(x)
        expected = plain(x)
    assert ours.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_weights_may_change_between_blocks_in_every_way(packings):
    layer, x = optimise_for_cpu(nn.Linear(16, 24)), torch.randn(2, 16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def step() -> None:
        layer.weight.grad = torch.randn(24, 16)
        optimizer.step()  # fused: PyTorch does not count this change

    changes = [
        lambda: layer.weight.data.copy_(torch.randn(24, 16)),  # nor this one
        lambda: layer.weight.detach().numpy().fill(2),
        lambda: layer.weight.mul_(3),
        lambda: setattr(layer.weight, "data", torch.randn(24, 16)),
        lambda: setattr(layer, "weight", nn.Parameter(torch.randn(24, 16))),
        lambda: layer.load_state_dict({"weight": torch.randn(24, 16), "bias": torch.randn(24)}),
        step,
    ]
    for number, change in enumerate(changes):
        with constant_weights():
            layer(x)
        change()
        with constant_weights():
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), msg=f"change {number}")
        assert len(packings) == 2 * (number + 1)
    with constant_weights():
        layer.double()
        torch.testing.assert_close(layer(x.double()), F.linear(x.double(), layer.weight, layer.bias))


@torch.no_grad()
def test_changes_that_pytorch_counts_are_seen_inside_a_block_too():
    layer, x = optimise_for_cpu(nn.Linear(16, 24)), torch.randn(2, 16)
    with constant_weights():
        for change in (lambda: layer.weight.mul_(3), lambda: setattr(layer.weight, "data", torch.randn(24, 16))):
            layer(x)
            change()
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@torch.no_grad()
def test_blocks_nest_and_each_thread_has_its_own(packings):
    layer, x = optimise_for_cpu(nn.Linear(16, 24)), torch.randn(2, 16)
    with constant_weights():
        with constant_weights():
            layer(x)
        layer(x)
        assert len(packings) == 1
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.no_grad()(layer), x).result()  # no block there, so nothing is kept
        assert len(packings) == 1
    assert kept() is None
    with pytest.raises(KeyError), constant_weights():
        raise KeyError
    assert kept() is None


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_equal_plain_ones(with_bias):
    plain = nn.Linear(48, 80, bias=with_bias)
    fast = optimise_for_cpu(copy.deepcopy(plain))
    x, weights = torch.randn(3, 7, 48, requires_grad=True), torch.randn(3, 7, 80)
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):  # the second is not contiguous
        ours, expected = (
            torch.autograd.grad((layer(given) * weights).sum(), [x, *layer.parameters()]) for layer in (fast, plain)
        )
        for mine, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    fast.weight.requires_grad_(False)
    (ours,) = torch.autograd.grad((fast(x) * weights).sum(), x)
    torch.testing.assert_close(ours, expected[0], rtol=1e-5, atol=1e-5)


def test_training_in_bf16_takes_the_plain_way(packings):
    layer = optimise_for_cpu(nn.Linear(16, 24))
    with torch.autocast("cpu", torch.bfloat16), constant_weights():
        layer(torch.randn(2, 16)).sum().backward()
    assert layer.weight.grad is not None and not packings


class Tagged(torch.Tensor):
    """A weight that is more than its numbers, such as a quantized one."""

    products = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            cls.products += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@torch.no_grad()
def test_tensor_subclasses_keep_their_own_product():
    weight = torch.randn(24, 16).as_subclass(Tagged)
    with constant_weights():
        linear(torch.randn(2, 16), weight)
    assert Tagged.products == 1


@pytest.mark.parametrize("rows", [0, 5, 23, 1000])
def test_the_language_head_gives_the_plain_loss_and_logits(rows):
    torch.manual_seed(0)
    plain = LanguageHead(TextTowerConfig(37, width=16))
    fast = optimise_for_cpu(copy.deepcopy(plain))
    hidden, words = torch.randn(rows, 16, requires_grad=True), torch.randn(37, 16, requires_grad=True)
    targets = torch.randint(37, (rows,))
    torch.testing.assert_close(fast(hidden, words), plain(hidden, words))
    losses = [head.loss(hidden, words, targets, 0.1) for head in (fast, plain)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    gradients = [
        torch.autograd.grad(loss, [hidden, words, *head.parameters()])
        for loss, head in zip(losses, (fast, plain), strict=True)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
