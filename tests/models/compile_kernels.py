"""Compile the GPU kernels as for an H100, without one. A script: within pytest, kernels are interpreted instead."""

from vlp.generation import nucleus_kernel
from vlp.models import flat_kernels
from vlp.models.flat_kernels import triton  # PyTorch for GPUs brings it; tests have no such dependency

HOPPER = triton.backends.compiler.GPUTarget("cuda", 90, 32)
NUMBERS = (
    "tokens",
    "heads",
    "query_row",
    "first_key",
    "first_value",
    "key_owner",
    "key_head",
    "key_token",
    "vocabulary",
)
FRACTIONS = ("scale", "dropping", "temperature", "top_p")
INTEGERS = ("starts", "lengths", "owners", "ends", "order", "causal")
FLOATS = ("sums", "logits", "uniform", "log_probability")


def kind(name: str) -> str:
    """The type of a kernel's argument."""
    if name in NUMBERS or name in FRACTIONS:
        return "i32" if name in NUMBERS else "fp32"
    for names, what in ((INTEGERS, "*i32"), (FLOATS, "*fp32"), (("seeds", "chosen"), "*i64")):
        if name in names:
            return what
    return "*bf16"


def compile_kernel(kernel: triton.JITFunction, constants: dict[str, object], **options: int) -> None:
    """Compile one kernel down to machine code."""
    types = {name: "constexpr" if name in constants else kind(name) for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, types, constexprs=places)
    triton.compile(source, target=HOPPER, options=options)


for own in (True, False):
    for kernel, tiles in (
        (flat_kernels._gather, flat_kernels.GATHER),
        (flat_kernels._gradients, flat_kernels.GRADIENTS),
    ):
        tile = tiles[own]
        sizes = {"ROWS": tile.rows, "KEYS": tile.keys, "DEPTH": 64}
        compile_kernel(kernel, {"SELF": own, "DROPS": True, **sizes}, num_warps=tile.warps, num_stages=tile.stages)
compile_kernel(nucleus_kernel._draw, {"BLOCK": 32_768}, num_warps=nucleus_kernel.WARPS)
print("compiled")
