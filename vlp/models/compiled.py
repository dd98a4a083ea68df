"""`torch.compile` of the blocks of encoders and text towers: one program for a stack of image blocks, or per layer."""

from torch import nn

from vlp.errors import UserError
from vlp.models.clip_text import ClipTextTower
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.image_encoders.layers import BlockStack
from vlp.models.text_tower import TextTower

VARIANTS = 32  # most programs per block: a layer of the text tower has eight uses, with and without gradients


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Compile the blocks of every image encoder and text tower in `module`, in place; parameters keep their names.

    A stack of image blocks is one program, which costs the host one call; for activation checkpointing each block is
    one. Images get a program for the first batch size and a second one for all others. Text layers are compiled one by
    one for any text length and any number of cached tokens: a program of a dozen of them takes minutes to compile.

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
            for stack in _image_stacks(part):
                for block in stack.children():
                    block.compile(backend=backend)
                if isinstance(stack, BlockStack):
                    stack.compile(backend=backend)
        elif isinstance(part, (TextTower, ClipTextTower)):
            for layer in part.layers:
                layer.compile(dynamic=True, backend=backend)


def _image_stacks(encoder: ImageEncoder) -> list[nn.Module]:
    stacks = [stack for name, stack in encoder.tower.named_modules() if name.rpartition(".")[2] == "blocks"]
    if not any(list(stack.children()) for stack in stacks):
        raise UserError(f"compile: {type(encoder.tower).__name__} has no blocks to compile; set compile: false.")
    return stacks
