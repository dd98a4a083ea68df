"""Nucleus sampling as one GPU kernel, in place of a sort of the vocabulary and a dozen other kernels for every token.

This module needs Triton, which comes with PyTorch for GPUs; `vlp.generation.token_rules` has the plain functions.
"""
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# (a kernel is Triton's language, and its launch takes options of its own)

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 16  # of a row


def draw_from_nucleus(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """What `cut_distribution`, `draw` and `log_softmax` of the plain path give together, up to rounding.

    Args:
        logits: float32 [rows, vocabulary], on a GPU.
        temperature, top_p: as in `cut_distribution`, whose `top_k` is 0 here.
        uniform: float32 [rows] in [0, 1), in any strides.

    Returns:
        chosen: int64 [rows], a token of each row's nucleus.
        log_probability: float32 [rows], that of the token by the logits alone, without the temperature.
    """
    rows, vocabulary = logits.shape
    logits, uniform = logits.contiguous(), uniform.contiguous()  # the kernel reads neighbors in memory
    chosen = torch.empty(rows, dtype=torch.int64, device=logits.device)
    log_probability = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(vocabulary)
    numbers = (vocabulary, float(temperature), float(top_p))
    with torch.cuda.device_of(logits):  # not always the current one
        _draw[(rows,)](logits, uniform, chosen, log_probability, *numbers, BLOCK=block, num_warps=WARPS)
    return chosen, log_probability


@triton.jit
def _draw(logits, uniform, chosen, log_probability, vocabulary, temperature, top_p, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    places = tl.arange(0, BLOCK)
    scores = tl.load(logits + row.to(tl.int64) * vocabulary + places, mask=places < vocabulary, other=float("-inf"))
    highest = tl.max(scores, 0)
    whole = tl.sum(tl.exp(scores - highest), 0)
    weights = tl.exp((scores - highest) / temperature)
    probabilities = weights / tl.sum(weights, 0)

    # The least probability of the nucleus is the largest one that leaves `top_p` of the mass at or above it. The order
    # of positive floats is that of their bits, so the bits of the least one are found from the highest to the lowest.
    bits = probabilities.to(tl.int32, bitcast=True)
    least, bit = 0, 1 << 29  # the highest bit of 1.0
    for _ in range(30):
        mass = tl.sum(tl.where(bits >= (least | bit), probabilities, 0.0), 0)
        least = tl.where(mass >= top_p, least | bit, least)
        bit = bit >> 1

    kept = (bits >= least) & (bits > 0)
    cumulative = tl.cumsum(tl.where(kept, probabilities, 0.0), 0)  # in the order of the vocabulary
    wanted = tl.load(uniform + row) * tl.max(cumulative, 0)
    # Only tokens of the nucleus: a scan in parallel may round up behind a token, or exceed all of them.
    last = tl.max(tl.where(kept, places, 0), 0)
    token = tl.min(tl.where(kept & (cumulative > wanted), places, last), 0)
    score = tl.sum(tl.where(places == token, scores, 0.0), 0)
    tl.store(chosen + row, token.to(tl.int64))
    tl.store(log_probability + row, score - highest - tl.log(whole))
