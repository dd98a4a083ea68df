"""`torch.compile` applied block by block: the blocks of a stack share their code, so each stack is compiled once."""

from torch import nn

from vlp.errors import UserError
from vlp.models.clip_text import ClipTextTower
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.text_tower import TextTower

VARIANTS = 32  # most programs per block: a layer of the text tower has eight uses, with and without gradients


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Compile the blocks of every image encoder and text tower in `module`, in place; parameters keep their names.

    Image blocks get one program for the first batch size and a second one for all others. Text layers are compiled for
    any text length and any number of cached tokens from the start.

    Args:
        backend: of `torch.compile`; the default needs a C++ compiler on a CPU and Triton on a GPU.

    Raises:
        UserError: an image encoder has no blocks to compile.
    """
    import torch._dynamo  # here, because it takes a second
    import torch.fx.experimental._config

    # An argument of `compile` since PyTorch 2.12; this setting works with all versions.
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # Numbers of rows that are equal by chance in the first step would count as always equal, and a later step compile
    # everything again.
    torch.fx.experimental._config.use_duck_shape = False
    for part in list(module.modules()):
        if isinstance(part, ImageEncoder):
            for block in _image_blocks(part):
                block.compile(backend=backend)
        elif isinstance(part, (TextTower, ClipTextTower)):
            for layer in part.layers:
                layer.compile(dynamic=True, backend=backend)


def _image_blocks(encoder: ImageEncoder) -> list[nn.Module]:
    stacks = [stack for name, stack in encoder.tower.named_modules() if name.rpartition(".")[2] == "blocks"]
    blocks = [block for stack in stacks for block in stack.children()]
    if not blocks:
        raise UserError(f"compile: {type(encoder.tower).__name__} has no blocks to compile; set compile: false.")
    return blocks
