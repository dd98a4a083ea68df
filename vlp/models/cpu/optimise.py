"""One call that makes a model fast on a CPU: each module gets a faster class with the same parameters."""

import sys
from typing import Protocol, TypeVar

from torch import nn

from vlp.models.cpu.allocator import keep_freed_memory
from vlp.models.cpu.attention import CpuAttention, CpuDotProduct
from vlp.models.cpu.convolution import CpuStandardizedConv2d
from vlp.models.cpu.dropout import CpuDropout
from vlp.models.cpu.linear import CpuLanguageHead, CpuLinear
from vlp.models.image_encoders.hybrid import StandardizedConv2d
from vlp.models.image_encoders.layers import DotProduct
from vlp.models.language_head import LanguageHead
from vlp.models.padding import UNPADDED
from vlp.models.text_layers import Attention

# Each class is a subclass of the one that it replaces and adds no parameters, buffers or attributes.
FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CpuLinear,
    nn.Dropout: CpuDropout,
    Attention: CpuAttention,
    DotProduct: CpuDotProduct,
    StandardizedConv2d: CpuStandardizedConv2d,
    LanguageHead: CpuLanguageHead,
    **UNPADDED,
}


def faster_classes() -> dict[type[nn.Module], type[nn.Module]]:
    """`FASTER`, and timm's attention once something has imported timm."""
    if "timm.layers.attention" not in sys.modules:
        return FASTER
    from vlp.models.cpu.timm_attention import Attention as TimmAttention
    from vlp.models.cpu.timm_attention import CpuTimmAttention

    return {**FASTER, TimmAttention: CpuTimmAttention}


class HoldsNetwork(Protocol):
    """Anything with a network in `network`, such as `vlp.Model`."""

    @property
    def network(self) -> nn.Module:
        """The network."""
        ...


Optimised = TypeVar("Optimised", bound=nn.Module | HoldsNetwork)


def optimise_for_cpu(model: Optimised) -> Optimised:
    """Make a model fast on a CPU, in place: oneDNN products, cheap dropout, no work on padding, faster attention.

    Modules, parameters and their names stay the same objects, so optimizers, state dicts, copies and anything that
    looks for `nn.Linear` keep working; each module's class becomes a subclass of its own. Only modules of exactly the
    classes of `faster_classes` change. A module that is replaced afterwards, by LoRA for example, is used as it is.
    Results equal those of the plain modules up to rounding, and weights may change at any time: packed copies of them
    live only within one call of `vlp.Model`, or within `constant_weights`.

    The call also sets the allocator of this process to keep freed memory (see `keep_freed_memory`). It does nothing at
    all to a model on another device.

    Args:
        model: a `vlp.Model` or any module.

    Returns:
        The same object.
    """
    network = model if isinstance(model, nn.Module) else model.network
    first = next(network.parameters(), None)
    if first is not None and first.device.type != "cpu":
        return model
    keep_freed_memory()
    classes = faster_classes()
    for module in network.modules():
        faster = classes.get(type(module))
        if faster is not None:
            module.__class__ = faster
    return model
