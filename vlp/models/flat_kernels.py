"""The GPU kernels of `flat_attention.py`, in Triton: attention over rows and its gradients (Dao 2023).

A program of the first kernel gathers for some rows of a text in one head. A program of the second one has all texts of
an image in one head, or one text that attends to itself: it alone reads and writes their gradients.
"""
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportIndexIssue=false
# (a kernel is Triton's language, and its launch takes options of its own)

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """What a program computes at once: rows of a text and at most so many keys, by how many warps.

    `stages` of the loop over keys load at the same time. The tiles below were the fastest of those tried on an H200.
    """

    rows: int
    keys: int
    warps: int
    stages: int


# For attention to images and of texts to themselves.
GATHER = {False: Tile(16, 32, 1, 3), True: Tile(16, 16, 1, 2)}
GRADIENTS = {False: Tile(16, 128, 4, 1), True: Tile(16, 32, 1, 1)}
LEAST = 16  # rows or keys that a product of a kernel takes
LOG2_E = math.log2(math.e)


class Places(NamedTuple):
    """Where queries, keys and values lie: numbers of elements behind the start of the tensors that hold them.

    Attributes:
        tokens: keys of an image; of texts that attend to themselves, all rows.
        query: from a row of queries to the next one.
        keys, values: the first key and the first value.
        owner, head, token: from an image (a row, where texts attend to themselves), head or token of the keys, and of
            the values, to the next one.
    """

    tokens: int
    heads: int
    depth: int
    query: int
    keys: int
    values: int
    owner: int
    head: int
    token: int

    @staticmethod
    def within(qkv: Tensor, heads: int) -> "Places":
        """Those of texts that attend to themselves: queries, keys and values are one tensor [rows, 3 width]."""
        rows, columns = qkv.shape
        width, row = columns // 3, qkv.stride(0)
        return Places(rows, heads, width // heads, row, width, 2 * width, row, width // heads, row)

    @staticmethod
    def to_images(query: Tensor, both: Tensor) -> "Places":
        """Those of queries [rows, width] to keys and values [2, images, heads, tokens, head_dim]."""
        _, _, heads, tokens, depth = both.shape
        values, owner, head, token, _ = both.stride()
        return Places(tokens, heads, depth, query.stride(0), 0, values, owner, head, token)


def attend(
    query: Tensor,
    memory: Tensor,
    places: Places,
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
        query, memory: what has the queries, and what has the keys and values; the same tensor where texts attend to
            themselves. `places` says where.
        starts, lengths: int32 [texts], the rows of each text.
        owners: int32 [texts], the image of each text; `starts` where texts attend to themselves.
        causal: int32 [texts], as in `FlatTexts`; None: the keys are those of images.
        seed: int64 [], of dropout.
        longest: at least the rows of the longest text.
        dropping: the probability of dropping an attention weight.

    Returns:
        The gathered rows [rows, heads x head_dim], zero in rows that belong to no text; float32 [rows, heads], the
        base-2 logarithm of each softmax's sum, anything in rows that belong to no text.
    """
    rows, heads = len(query), places.heads
    gathered = query.new_zeros(rows, heads * places.depth)
    sums = torch.empty(rows, heads, dtype=torch.float32, device=query.device)
    tile = _tile(GATHER, causal, places, longest)
    grid = (len(starts), heads, triton.cdiv(longest, tile.rows))
    with _on(query):
        _gather[grid](
            query,
            memory,
            gathered,
            sums,
            starts,
            lengths,
            owners,
            *_numbers(places, causal, seed, dropping),
            **_shape(tile, causal, dropping, places.depth),
        )
    return gathered, sums


def attend_backward(
    given: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
    wanted: tuple[Tensor, Tensor],
    places: Places,
    settings: tuple[Tensor, Tensor, Tensor | None, Tensor, int, float],
    texts_of: tuple[Tensor, Tensor] | None,
) -> None:
    """Write the gradients of query, keys and values.

    Args:
        given: the gradient of what was gathered, contiguous; what was gathered; and its sums, from `attend`.
        inputs: query and memory of `attend`.
        wanted: their gradients, in the same strides; that of the query is zero.
        settings: starts, lengths, causal, seed, longest and dropping of `attend`.
        texts_of: `ends` and `order` of `FlatMemory`; None where texts attend to themselves.
    """
    starts, lengths, causal, seed, longest, dropping = settings
    assert all(one.stride() == two.stride() for one, two in zip(inputs, wanted, strict=True))
    ends, order = texts_of or (starts, starts)
    owners = len(starts) if texts_of is None else len(ends) - 1
    tile = _tile(GRADIENTS, causal, places, longest)
    with _on(starts):
        _gradients[(owners, places.heads)](
            *inputs,
            *given,
            *wanted,
            starts,
            lengths,
            ends,
            order,
            *_numbers(places, causal, seed, dropping),
            **_shape(tile, causal, dropping, places.depth),
        )


def _on(x: Tensor) -> Any:
    return torch.cuda.device_of(x)  # not always the current one


def _numbers(places: Places, causal: Tensor | None, seed: Tensor, dropping: float) -> tuple:
    """Arguments that both kernels have."""
    tokens, heads, depth, *strides = places
    causal = seed if causal is None else causal  # not read
    return causal, seed, LOG2_E / math.sqrt(depth), float(dropping), tokens, heads, *strides


def _tile(tiles: dict[bool, Tile], causal: Tensor | None, places: Places, longest: int) -> Tile:
    """The tile of a kernel, with no more keys than there are."""
    tile = tiles[causal is not None]
    keys = places.tokens if causal is None else longest
    return tile._replace(keys=min(tile.keys, max(LEAST, triton.next_power_of_2(keys))))


def _shape(tile: Tile, causal: Tensor | None, dropping: float, depth: int) -> dict[str, Any]:
    """Constants of a kernel."""
    sizes = {"ROWS": tile.rows, "KEYS": tile.keys, "DEPTH": depth, "num_warps": tile.warps, "num_stages": tile.stages}
    return {"SELF": causal is not None, "DROPS": dropping > 0, **sizes}


@triton.jit
def _allowed(rows, columns, length, count, is_causal):
    """Which keys each row sees; rows [1, rows] and columns [keys, 1], or the other way round."""
    return (rows < length) & (columns < count) & ((is_causal == 0) | (columns <= rows))


@triton.jit
def _kept(seed, head, heads, start, rows, columns, tokens, dropping, SELF: tl.constexpr):
    """Which weights dropout keeps, the same in every kernel; rows and columns as in `_allowed`.

    Two rounds of a 32-bit mixing function (Wellons 2018, "lowbias32"), each with another half of the seed. Triton's own
    generator takes several times as many instructions, which are most of such a kernel.
    """
    number = start.to(tl.int32) * heads + head + rows * heads
    places = number * tokens + columns  # may wrap around
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
    query, memory, gathered, sums, starts, lengths, owners,
    causal, seeds, scale, dropping, tokens, heads, query_row, first_key, first_value, key_owner, key_head, key_token,
    SELF: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + text)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(2) * ROWS < length:
        start = tl.load(starts + text).to(tl.int64)
        base = tl.load(owners + text).to(tl.int64) * key_owner + head * key_head
        depth = tl.arange(0, DEPTH)[None, :]
        count, is_causal = tokens, 0
        if SELF:
            count, is_causal = length, tl.load(causal + text)
        seed = tl.load(seeds)
        inside = (rows < length)[:, None]
        asked = tl.load(query + start * query_row + head * DEPTH + rows[:, None] * query_row + depth, inside, 0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        result = tl.zeros([ROWS, DEPTH], tl.float32)
        for first in range(0, count, KEYS):
            columns = first + tl.arange(0, KEYS)
            places = columns[:, None] * key_token + depth
            keys = tl.load(memory + first_key + base + places, (columns < count)[:, None], 0.0)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            allowed = _allowed(rows[:, None], columns[None, :], length, count, is_causal)
            scores = tl.where(allowed, scores, float("-inf"))
            larger = tl.maximum(highest, tl.max(scores, 1))
            larger = tl.where(larger == float("-inf"), 0.0, larger)  # rows behind the text see nothing
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(highest - larger)
            total = total * shrink + tl.sum(weights, 1)
            if DROPS:
                kept = _kept(seed, head, heads, start, rows[:, None], columns[None, :], tokens, dropping, SELF)
                weights = tl.where(kept, weights / (1 - dropping), 0.0)
            values = tl.load(memory + first_value + base + places, (columns < count)[:, None], 0.0)
            result = result * shrink[:, None]
            result += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            highest = larger
        total = tl.where(rows < length, total, 1.0)
        result = result / total[:, None]
        width = heads * DEPTH
        tl.store(gathered + start * width + head * DEPTH + rows[:, None] * width + depth, result, inside)
        tl.store(sums + start * heads + head + rows * heads, highest + tl.log2(total), rows < length)


@triton.jit
def _gradients(
    query, memory, gradient, gathered, sums, to_query, to_memory, starts, lengths, ends, order,
    causal, seeds, scale, dropping, tokens, heads, query_row, first_key, first_value, key_owner, key_head, key_token,
    SELF: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    owner, head = tl.program_id(0), tl.program_id(1)
    depth = tl.arange(0, DEPTH)[None, :]
    seed, width = tl.load(seeds), heads * DEPTH
    if SELF:
        base = tl.load(starts + owner).to(tl.int64) * key_owner + head * key_head
        count, is_causal = tl.load(lengths + owner), tl.load(causal + owner)
        first_text, last_text = owner, owner + 1
    else:
        base = owner.to(tl.int64) * key_owner + head * key_head
        count, is_causal = tokens, 0
        first_text, last_text = tl.load(ends + owner), tl.load(ends + owner + 1)
    for first_column in range(0, count, KEYS):
        columns = first_column + tl.arange(0, KEYS)
        inside = (columns < count)[:, None]
        places = columns[:, None] * key_token + depth
        keys = tl.load(memory + first_key + base + places, inside, 0.0)
        values = tl.load(memory + first_value + base + places, inside, 0.0)
        key_sum, value_sum = tl.zeros([KEYS, DEPTH], tl.float32), tl.zeros([KEYS, DEPTH], tl.float32)
        for number in range(first_text, last_text):
            text = number
            if not SELF:
                text = tl.load(order + number)
            length, start = tl.load(lengths + text), tl.load(starts + text).to(tl.int64)
            here, there = start * query_row + head * DEPTH, start * width + head * DEPTH
            for first in range(0, length, ROWS):
                rows = first + tl.arange(0, ROWS)
                real = (rows < length)[:, None]
                asked = tl.load(query + here + rows[:, None] * query_row + depth, real, 0.0)
                slope = tl.load(gradient + there + rows[:, None] * width + depth, real, 0.0)
                done = tl.load(gathered + there + rows[:, None] * width + depth, real, 0.0)
                log_sum = tl.load(sums + start * heads + head + rows * heads, rows < length, 0.0)
                delta = tl.sum(slope.to(tl.float32) * done.to(tl.float32), 1)
                # Keys stand before rows: the products that sum their gradients take what was computed as it is.
                scores = tl.dot(keys, tl.trans(asked), input_precision="ieee") * scale  # [keys, rows]
                allowed = _allowed(rows[None, :], columns[:, None], length, count, is_causal)
                weights = tl.where(allowed, tl.exp2(scores - log_sum[None, :]), 0.0)
                to_weights = tl.dot(values, tl.trans(slope), input_precision="ieee")
                used = weights
                if DROPS:
                    kept = _kept(seed, head, heads, start, rows[None, :], columns[:, None], tokens, dropping, SELF)
                    used = tl.where(kept, weights / (1 - dropping), 0.0)
                    to_weights = tl.where(kept, to_weights / (1 - dropping), 0.0)
                value_sum += tl.dot(used.to(slope.dtype), slope, input_precision="ieee")
                to_scores = (weights * (to_weights - delta[None, :])).to(asked.dtype)
                key_sum += tl.dot(to_scores, asked, input_precision="ieee")
                result = tl.dot(tl.trans(to_scores), keys, input_precision="ieee") * (scale / 1.4426950408889634)
                target = to_query + here + rows[:, None] * query_row + depth
                if first_column > 0:  # no other program writes to these rows in this head
                    result += tl.load(target, real, 0.0).to(tl.float32)
                tl.store(target, result, real)
        tl.store(to_memory + first_key + base + places, key_sum * (scale / 1.4426950408889634), inside)
        tl.store(to_memory + first_value + base + places, value_sum, inside)
        tl.debug_barrier()  # the next keys add to gradients of queries that other threads may have stored
