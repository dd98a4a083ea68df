"""The GPU kernels of `flat_attention.py`, in Triton: attention over rows and its gradients (Dao 2023).

A program of the first two kernels gathers for some rows of a text in one head. A program of the last one sums the
gradients of some keys and values of an image, or of a text, over all texts that read them.
"""
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportIndexIssue=false
# (a kernel is Triton's language, and its launch takes options of its own)

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # of a text in a program
# Keys at once and warps of a program, for attention to images and of texts to themselves.
GATHER = {False: (32, 1), True: (32, 2)}
QUERY_GRADIENT = {False: (32, 2), True: (32, 2)}
KEY_GRADIENT = {False: (32, 2), True: (32, 2)}
LOG2_E = math.log2(math.e)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    lengths: Tensor,
    owners: Tensor,
    causal: Tensor | None,
    seed: Tensor,
    longest: int,
    dropping: float,
) -> tuple[Tensor, Tensor]:
    """Attention of texts to their own keys, or to those of images.

    Args:
        query: [rows, heads, head_dim].
        key, value: [images, tokens, heads, head_dim] with equal strides; of texts to themselves [1, rows, heads,
            head_dim].
        starts, lengths: int32 [texts], the rows of each text.
        owners: int32 [texts], the image of each text; `starts` where texts attend to themselves.
        causal: int32 [texts], as in `FlatTexts`; None: the keys are those of images.
        seed: int64 [], of dropout.
        longest: at least the rows of the longest text.
        dropping: the probability of dropping an attention weight.

    Returns:
        The gathered rows [rows, heads x head_dim], zero in rows that belong to no text; float32 [rows, heads], the
        base-2 logarithm of each softmax's sum.
    """
    rows, heads, depth = query.shape
    gathered = query.new_zeros(rows, heads * depth)
    sums = torch.zeros(rows, heads, dtype=torch.float32, device=query.device)
    grid = (len(starts), heads, triton.cdiv(longest, ROWS))
    with _on(query):
        _gather[grid](
            query,
            key,
            value,
            gathered,
            sums,
            starts,
            lengths,
            owners,
            *_numbers(query, key, causal, seed, dropping),
            **_shape(GATHER, causal, dropping, depth),
        )
    return gathered, sums


def attend_backward(
    given: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[Tensor, Tensor, Tensor],
    settings: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, int, float],
    texts_of: tuple[Tensor, Tensor] | None,
) -> None:
    """Write the gradients of query, key and value.

    Args:
        given: the gradient of what was gathered, contiguous; what was gathered; and its sums, from `attend`.
        inputs: query, key and value of `attend`.
        wanted: the gradients, in the shapes and strides of the inputs; that of the query is zero.
        settings: starts, lengths, owners, causal, seed, longest and dropping of `attend`.
        texts_of: `ends` and `order` of `FlatMemory`; None where texts attend to themselves.
    """
    (gradient, gathered, sums), (query, key, value), (to_query, to_key, to_value) = given, inputs, wanted
    starts, lengths, owners, causal, seed, longest, dropping = settings
    assert (
        to_query.stride() == query.stride() and to_key.stride() == key.stride() == value.stride() == to_value.stride()
    )
    _, heads, depth = query.shape
    deltas = torch.empty_like(sums)
    numbers = _numbers(query, key, causal, seed, dropping)
    shape = _shape(QUERY_GRADIENT, causal, dropping, depth)
    ends, order = texts_of or (starts, starts)
    images, tokens = (len(starts), longest) if texts_of is None else key.shape[:2]
    with _on(query):
        grid = (len(starts), heads, triton.cdiv(longest, ROWS))
        places = (starts, lengths, owners)
        _query_gradient[grid](query, key, value, gradient, gathered, sums, deltas, to_query, *places, *numbers, **shape)
        shape = _shape(KEY_GRADIENT, causal, dropping, depth)
        grid = (images, heads, triton.cdiv(tokens, shape["KEYS"]))
        places = (starts, lengths, ends, order)
        _key_gradient[grid](query, key, value, gradient, sums, deltas, to_key, to_value, *places, *numbers, **shape)


def _on(x: Tensor) -> Any:
    return torch.cuda.device_of(x)  # not always the current one


def _numbers(query: Tensor, key: Tensor, causal: Tensor | None, seed: Tensor, dropping: float) -> tuple:
    """Arguments that all kernels have."""
    depth = query.shape[2]
    strides = (query.stride(0), key.stride(0 if causal is None else 1), key.stride(2), key.stride(1))
    causal = seed if causal is None else causal  # not read
    return causal, seed, LOG2_E / math.sqrt(depth), float(dropping), key.shape[1], query.shape[1], *strides


def _shape(tiles: dict[bool, tuple[int, int]], causal: Tensor | None, dropping: float, depth: int) -> dict[str, Any]:
    """Constants of a kernel."""
    keys, warps = tiles[causal is not None]
    sizes = {"ROWS": ROWS, "KEYS": keys, "DEPTH": depth, "num_warps": warps}
    return {"SELF": causal is not None, "DROPS": dropping > 0, **sizes}


@triton.jit
def _allowed(rows, columns, length, count, is_causal):
    """Which keys each row sees, [rows, keys]."""
    inside = (rows < length)[:, None] & (columns < count)[None, :]
    return inside & ((is_causal == 0) | (columns[None, :] <= rows[:, None]))


@triton.jit
def _kept(seed, head, heads, start, rows, columns, tokens, dropping, SELF: tl.constexpr):
    """Which weights dropout keeps, [rows, keys]; the same in every kernel.

    Two rounds of a 32-bit mixing function (Wellons 2018, "lowbias32"), each with another half of the seed. Triton's own
    generator takes several times as many instructions, which are most of such a kernel.
    """
    number = ((start + rows) * heads + head).to(tl.int32)
    places = number[:, None] * tokens + columns[None, :]  # may wrap around
    bits = _mixed(places.to(tl.uint32, bitcast=True) ^ (seed * 2 + SELF).to(tl.uint32))
    bits = _mixed(bits ^ (seed >> 32).to(tl.uint32))
    return (bits >> 8).to(tl.int32).to(tl.float32) >= dropping * 16777216.0  # 24 bits are exact in float32


@triton.jit
def _mixed(bits):
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _gather(
    query, key, value, gathered, sums, starts, lengths, owners,
    causal, seeds, scale, dropping, tokens, heads, query_row, key_owner, key_head, key_token,
    SELF: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + text)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(2) * ROWS < length:
        start = tl.load(starts + text).to(tl.int64)
        base = tl.load(owners + text).to(tl.int64) * key_owner + head * key_head
        depth = tl.arange(0, DEPTH)
        count, is_causal = tokens, 0
        if SELF:
            count, is_causal = length, tl.load(causal + text)
        seed = tl.load(seeds)
        inside = (rows < length)[:, None]
        asked = tl.load(query + (start + rows)[:, None] * query_row + head * DEPTH + depth[None, :], inside, 0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        result = tl.zeros([ROWS, DEPTH], tl.float32)
        for first in range(0, count, KEYS):
            columns = first + tl.arange(0, KEYS)
            places = base + columns[:, None] * key_token + depth[None, :]
            keys = tl.load(key + places, (columns < count)[:, None], 0.0)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            scores = tl.where(_allowed(rows, columns, length, count, is_causal), scores, float("-inf"))
            larger = tl.maximum(highest, tl.max(scores, 1))
            larger = tl.where(larger == float("-inf"), 0.0, larger)  # rows behind the text see nothing
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(highest - larger)
            total = total * shrink + tl.sum(weights, 1)
            if DROPS:
                kept = _kept(seed, head, heads, start, rows, columns, tokens, dropping, SELF)
                weights = tl.where(kept, weights / (1 - dropping), 0.0)
            values = tl.load(value + places, (columns < count)[:, None], 0.0)
            result = result * shrink[:, None]
            result += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            highest = larger
        total = tl.where(rows < length, total, 1.0)
        result = result / total[:, None]
        tl.store(gathered + (start + rows)[:, None] * (heads * DEPTH) + head * DEPTH + depth[None, :], result, inside)
        tl.store(sums + (start + rows) * heads + head, highest + tl.log2(total), rows < length)


@triton.jit
def _query_gradient(
    query, key, value, gradient, gathered, sums, deltas, to_query, starts, lengths, owners,
    causal, seeds, scale, dropping, tokens, heads, query_row, key_owner, key_head, key_token,
    SELF: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + text)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(2) * ROWS < length:
        start = tl.load(starts + text).to(tl.int64)
        base = tl.load(owners + text).to(tl.int64) * key_owner + head * key_head
        depth = tl.arange(0, DEPTH)
        count, is_causal = tokens, 0
        if SELF:
            count, is_causal = length, tl.load(causal + text)
        seed = tl.load(seeds)
        inside = (rows < length)[:, None]
        asked = tl.load(query + (start + rows)[:, None] * query_row + head * DEPTH + depth[None, :], inside, 0.0)
        row_places = (start + rows)[:, None] * (heads * DEPTH) + head * DEPTH + depth[None, :]
        slope = tl.load(gradient + row_places, inside, 0.0)
        delta = tl.sum(slope.to(tl.float32) * tl.load(gathered + row_places, inside, 0.0).to(tl.float32), 1)
        numbers = (start + rows) * heads + head
        tl.store(deltas + numbers, delta, rows < length)
        log_sum = tl.load(sums + numbers, rows < length, 0.0)
        result = tl.zeros([ROWS, DEPTH], tl.float32)
        for first in range(0, count, KEYS):
            columns = first + tl.arange(0, KEYS)
            places = base + columns[:, None] * key_token + depth[None, :]
            keys = tl.load(key + places, (columns < count)[:, None], 0.0)
            values = tl.load(value + places, (columns < count)[:, None], 0.0)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            allowed = _allowed(rows, columns, length, count, is_causal)
            weights = tl.where(allowed, tl.exp2(scores - log_sum[:, None]), 0.0)
            to_weights = tl.dot(slope, tl.trans(values), input_precision="ieee")
            if DROPS:
                kept = _kept(seed, head, heads, start, rows, columns, tokens, dropping, SELF)
                to_weights = tl.where(kept, to_weights / (1 - dropping), 0.0)
            to_scores = weights * (to_weights - delta[:, None])
            result += tl.dot(to_scores.to(keys.dtype), keys, input_precision="ieee")
        result = result * (scale / 1.4426950408889634)
        tl.store(to_query + (start + rows)[:, None] * query_row + head * DEPTH + depth[None, :], result, inside)


@triton.jit
def _key_gradient(
    query, key, value, gradient, sums, deltas, to_key, to_value, starts, lengths, ends, order,
    causal, seeds, scale, dropping, tokens, heads, query_row, key_owner, key_head, key_token,
    SELF: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    depth = tl.arange(0, DEPTH)
    seed = tl.load(seeds)
    if SELF:
        base = tl.load(starts + image).to(tl.int64) * key_owner + head * key_head
        count, is_causal = tl.load(lengths + image), tl.load(causal + image)
        first_text, last_text = image, image + 1
    else:
        base = image.to(tl.int64) * key_owner + head * key_head
        count, is_causal = tokens, 0
        first_text, last_text = tl.load(ends + image), tl.load(ends + image + 1)
    if tl.program_id(2) * KEYS < count:
        inside = (columns < count)[:, None]
        places = base + columns[:, None] * key_token + depth[None, :]
        keys, values = tl.load(key + places, inside, 0.0), tl.load(value + places, inside, 0.0)
        key_sum, value_sum = tl.zeros([KEYS, DEPTH], tl.float32), tl.zeros([KEYS, DEPTH], tl.float32)
        for number in range(first_text, last_text):
            text = number
            if not SELF:
                text = tl.load(order + number)
            length, start = tl.load(lengths + text), tl.load(starts + text).to(tl.int64)
            for first in range(0, length, ROWS):
                rows = first + tl.arange(0, ROWS)
                here = (rows < length)[:, None]
                asked = tl.load(query + (start + rows)[:, None] * query_row + head * DEPTH + depth[None, :], here, 0.0)
                row_places = (start + rows)[:, None] * (heads * DEPTH) + head * DEPTH + depth[None, :]
                slope = tl.load(gradient + row_places, here, 0.0)
                numbers = (start + rows) * heads + head
                log_sum = tl.load(sums + numbers, rows < length, 0.0)
                delta = tl.load(deltas + numbers, rows < length, 0.0)
                scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
                allowed = _allowed(rows, columns, length, count, is_causal)
                weights = tl.where(allowed, tl.exp2(scores - log_sum[:, None]), 0.0)
                to_weights = tl.dot(slope, tl.trans(values), input_precision="ieee")
                used = weights
                if DROPS:
                    kept = _kept(seed, head, heads, start, rows, columns, tokens, dropping, SELF)
                    used = tl.where(kept, weights / (1 - dropping), 0.0)
                    to_weights = tl.where(kept, to_weights / (1 - dropping), 0.0)
                value_sum += tl.dot(tl.trans(used.to(slope.dtype)), slope, input_precision="ieee")
                to_scores = weights * (to_weights - delta[:, None])
                key_sum += tl.dot(tl.trans(to_scores.to(asked.dtype)), asked, input_precision="ieee")
        tl.store(to_key + places, key_sum * (scale / 1.4426950408889634), inside)
        tl.store(to_value + places, value_sum, inside)
