"""Nucleus sampling, greedy search and beam search over a step function; independent of any model or tokenizer.

Rows of a batch form groups. A group belongs to one image: its rows are that image's samples or beams and are adjacent.
A finished group leaves the batch as a whole. Every image therefore keeps the same number of rows, and its memory is
never copied for them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.config import DecodingConfig
from vlp.generation.settings import check_decoding
from vlp.generation.token_rules import TokenRules, cut_distribution, draw, uniform_numbers
from vlp.transfers import on_its_way, to_device

IMPOSSIBLE = -1e9  # score of a candidate that must not be chosen; finite, so that sums and quotients remain numbers
CHECK_EVERY = 4  # tokens, on a GPU, where the host would wait for the device to learn which texts are finished
LARGEST_ROW = 65_536  # words that the kernel of nucleus sampling keeps in registers
LEAVE_SHARE = 4  # finished groups leave once they are a quarter of the batch, because removing them copies the rest
Kernel = Callable[[Tensor, float, float, Tensor], tuple[Tensor, Tensor]]  # as `draw_from_nucleus`
log = logging.getLogger("vlp")


class Stepper(Protocol):
    """What generation needs of a model and its cache."""

    def step(self, new: Tensor) -> Tensor:
        """New tokens int64 [rows, new] -> logits [rows, vocabulary] of each row's next token.

        The first call passes the prompt, later calls one token per row.
        """
        ...

    def select(self, rows: Tensor, groups: Tensor | None) -> None:
        """Keep, reorder or repeat rows of the cache.

        Args:
            rows: int64 [n], the rows to keep, in their new order.
            groups: int64 [g], the groups that stay; None when all stay.
        """
        ...


@dataclass
class Generated:
    """One generated text.

    Attributes:
        ids: the tokens after the prompt, including the end token if it was reached.
        log_probability: the sum of the tokens' log-probabilities in nats, after the repetition penalty and the rules.
    """

    ids: list[int]
    log_probability: float


def start_generating(
    stepper: Stepper,
    prompt: list[int],
    rules: TokenRules,
    keys: list[str],
    seed: int = 0,
    num_captions: int = 1,
    device: torch.device | str = "cpu",
) -> Callable[[], list[list[Generated]]]:
    """Start to generate texts for `len(keys)` groups: `beams` 0 samples, 1 is greedy search, more is beam search.

    Args:
        stepper: the model, with an empty cache.
        prompt: ids that every text begins with, the [DEC] token first; they count toward the length limits.
        rules: the decoding settings, the end token and banned sequences.
        keys: one per group; a sampled text depends only on its key, `seed` and its number within the group.
        num_captions: texts per group; beam search returns its best beams, so at most as many as it has.
        device: the device of `stepper`.

    Returns:
        A function that waits for the texts of each group and gives them; those of beam search are the best first. Until
        then a GPU may still be at the last tokens of sampled texts, so the host can start other work. Beam search has
        waited already.

    Raises:
        UserError: a decoding setting is out of range.
    """
    check_decoding(rules.config, len(prompt), num_captions)
    if not keys:
        return list
    device = torch.device(device)
    with torch.no_grad():
        if rules.config.beams > 1:
            found = _beam_search(stepper, prompt, rules, len(keys), num_captions, device)
            return lambda: found
        return _start_sampling(stepper, prompt, rules, keys, seed, num_captions, device)


def _start_sampling(
    stepper: Stepper,
    prompt: list[int],
    rules: TokenRules,
    keys: list[str],
    seed: int,
    num_captions: int,
    device: torch.device,
) -> Callable[[], list[list[Generated]]]:
    """Nucleus sampling; greedy search is the special case that always takes the most likely token."""
    config, end_id = rules.config, rules.end_id
    rows = len(keys) * num_captions
    count = config.max_length - len(prompt)
    numbers = [uniform_numbers(seed, key, number, count) for key in keys for number in range(num_captions)]
    uniforms = to_device(torch.tensor(np.stack(numbers), dtype=torch.float32), device).clamp_(max=1 - 2**-24)
    tokens = to_device(torch.tensor(prompt), device).repeat(rows, 1)  # [rows, length]
    totals = torch.zeros(rows, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    here = torch.arange(rows, device=device)  # the number of the text in each row
    texts = torch.full((rows, config.max_length), end_id, device=device)
    sums = torch.zeros(rows, device=device)

    def store() -> None:  # all texts: the host would have to wait to learn which ones are finished
        texts[:, : tokens.shape[1]].index_copy_(0, here, tokens)
        sums.index_copy_(0, here, totals)

    new = tokens
    for position in range(count):
        chosen, log_probability = _next_tokens(stepper.step(new), tokens, rules, uniforms[:, position])
        chosen = chosen.masked_fill(done, end_id)
        totals = totals + log_probability.masked_fill(done, 0)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        done = done | (chosen == end_id)
        new = chosen[:, None]
        if position == count - 1 or (device.type == "cuda" and position % CHECK_EVERY):
            continue
        group_done = done.view(-1, num_captions).all(dim=1)
        leaving = int(group_done.sum())
        if leaving == len(group_done):
            break
        if leaving * LEAVE_SHARE >= len(group_done):
            store()
            groups = (~group_done).nonzero()[:, 0]
            kept = _rows_of(groups, num_captions)
            stepper.select(kept, groups)
            tokens, totals, done, new = tokens[kept], totals[kept], done[kept], new[kept]
            here, uniforms = here[kept], uniforms[kept]
    store()
    coming = on_its_way(texts[:, len(prompt) :]), on_its_way(sums)

    def collect() -> list[list[Generated]]:
        pairs = zip(*(values().tolist() for values in coming), strict=True)
        made = [Generated(_until_end(ids, end_id), total) for ids, total in pairs]
        return [made[i : i + num_captions] for i in range(0, rows, num_captions)]

    return collect


def _next_tokens(logits: Tensor, tokens: Tensor, rules: TokenRules, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability, each [rows]."""
    config = rules.config
    logits = rules.apply(logits.float(), tokens)
    if config.beams == 1:
        chosen = logits.argmax(dim=-1)
    elif (kernel := _kernel_for(logits, config)) is not None:
        return kernel(logits, config.temperature, config.top_p, uniform)
    else:
        chosen = draw(cut_distribution(logits, config.temperature, config.top_k, config.top_p), uniform)
    return chosen, logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]


def _kernel_for(logits: Tensor, config: DecodingConfig) -> Kernel | None:
    """The kernel that draws from logits [rows, vocabulary], if there is one."""
    if logits.device.type != "cuda" or config.top_k > 0 or logits.shape[1] > LARGEST_ROW:
        return None
    return find_kernel(logits.device)


@cache
def find_kernel(device: torch.device) -> Kernel | None:
    """`draw_from_nucleus`, or None where there is no Triton or it cannot compile, for which it needs a C compiler."""
    try:
        from vlp.generation.nucleus_kernel import draw_from_nucleus

        draw_from_nucleus(torch.zeros(1, 2, device=device), 1.0, 0.9, torch.zeros(1, device=device))
    except ImportError:
        return None
    except Exception as error:  # Triton, the C compiler and the driver raise many kinds
        log.warning("Nucleus sampling is slower here: Triton cannot compile (%s).", error)
        return None
    return draw_from_nucleus


@dataclass
class _Beams:
    """The state of beam search. Running beams are unfinished texts; finished texts are kept best first."""

    running: Tensor  # [groups, beams, length]
    running_scores: Tensor  # [groups, beams], summed log-probabilities
    finished: Tensor  # [groups, beams, max_length]
    finished_scores: Tensor  # [groups, beams], sums divided by length ** length_penalty; IMPOSSIBLE where empty
    finished_sums: Tensor  # [groups, beams], summed log-probabilities
    finished_lengths: Tensor  # [groups, beams], tokens, the prompt's included

    def keep(self, groups: Tensor) -> "_Beams":
        return _Beams(*(getattr(self, name)[groups] for name in self.__dataclass_fields__))


def _start_beams(prompt: list[int], config: DecodingConfig, groups: int, device: torch.device) -> _Beams:
    beams = config.beams
    scores = torch.zeros(groups, beams, device=device)
    scores[:, 1:] = IMPOSSIBLE  # all beams start with the prompt; only the first may grow, or all would stay equal
    return _Beams(
        running=torch.tensor(prompt, device=device).expand(groups, beams, -1),
        running_scores=scores,
        finished=torch.zeros(groups, beams, config.max_length, dtype=torch.int64, device=device),
        finished_scores=torch.full((groups, beams), IMPOSSIBLE, device=device),
        finished_sums=torch.zeros(groups, beams, device=device),
        finished_lengths=torch.zeros(groups, beams, dtype=torch.int64, device=device),
    )


def _beam_search(
    stepper: Stepper,
    prompt: list[int],
    rules: TokenRules,
    groups: int,
    num_captions: int,
    device: torch.device,
) -> list[list[Generated]]:
    """Beam search with the stopping rule of `transformers` (`early_stopping=False`), so that results are comparable."""
    config = rules.config
    state = _start_beams(prompt, config, groups, device)
    here = torch.arange(groups, device=device)
    results: list[list[Generated]] = [[] for _ in range(groups)]
    new = state.running.flatten(0, 1)  # [groups x beams, prompt]
    while True:
        log_probabilities = stepper.step(new).float().log_softmax(dim=-1)
        parents = _extend(state, log_probabilities, rules, len(prompt))
        generated = state.running.shape[2] - len(prompt)
        best_open = state.running_scores[:, 0] / generated**config.length_penalty
        done = best_open <= state.finished_scores.min(dim=1).values
        if state.running.shape[2] == config.max_length:
            done = torch.ones_like(done)
        offsets = torch.arange(len(done), device=device)[:, None] * config.beams
        rows = parents + offsets  # [groups, beams]
        leaving = int(done.sum())
        if leaving:
            _collect_beams(state.keep(done), here[done].tolist(), results, len(prompt), num_captions)
        if leaving == len(done):
            return results
        stay = (~done).nonzero()[:, 0]
        stepper.select(rows[stay].flatten(), stay if leaving else None)
        if leaving:
            state, here = state.keep(stay), here[stay]
        new = state.running[:, :, -1:].flatten(0, 1)


def _extend(state: _Beams, log_probabilities: Tensor, rules: TokenRules, prompt_tokens: int) -> Tensor:
    """Extend every beam by one token, in place; returns the parent of each new beam, int64 [groups, beams]."""
    config, end_id = rules.config, rules.end_id
    groups, beams, length = state.running.shape
    vocabulary = log_probabilities.shape[-1]
    scores = rules.apply(log_probabilities, state.running.flatten(0, 1))
    scores = (scores.view(groups, beams, vocabulary) + state.running_scores[:, :, None]).flatten(1)
    # Twice as many candidates as beams: even if the best ones all end here, enough unfinished ones remain.
    sums, flat = scores.topk(2 * beams, dim=1)  # [groups, 2 beams]
    parents, chosen = flat // vocabulary, flat % vocabulary
    texts = torch.cat([_take(state.running, parents), chosen[:, :, None]], dim=2)  # [groups, 2 beams, length + 1]
    ended = (chosen == end_id) | (length + 1 == config.max_length)

    finished_scores = sums / (length + 1 - prompt_tokens) ** config.length_penalty
    finished_scores = finished_scores + (~ended) * IMPOSSIBLE
    finished_scores[:, beams:] += IMPOSSIBLE  # only candidates that would become beams may finish
    merged = torch.cat([state.finished_scores, finished_scores], dim=1)
    state.finished_scores, best = merged.topk(beams, dim=1)
    padded = F.pad(texts, (0, state.finished.shape[2] - texts.shape[2]))
    lengths = torch.full_like(parents, length + 1)
    state.finished = _take(torch.cat([state.finished, padded], dim=1), best)
    state.finished_sums = _take(torch.cat([state.finished_sums, sums], dim=1), best)
    state.finished_lengths = _take(torch.cat([state.finished_lengths, lengths], dim=1), best)

    state.running_scores, best = (sums + ended * IMPOSSIBLE).topk(beams, dim=1)
    state.running = _take(texts, best)
    return _take(parents, best)


def _collect_beams(
    state: _Beams, groups: list[int], results: list[list[Generated]], prompt_tokens: int, num_captions: int
) -> None:
    texts, sums, lengths = state.finished.tolist(), state.finished_sums.tolist(), state.finished_lengths.tolist()
    for row, group in enumerate(groups):
        for beam in range(num_captions):
            ids = texts[row][beam][prompt_tokens : lengths[row][beam]]
            results[group].append(Generated(ids, sums[row][beam]))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [groups, n, ...] at index [groups, m] -> [groups, m, ...]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def _rows_of(groups: Tensor, size: int) -> Tensor:
    """The row numbers of groups that have `size` rows each: int64 [groups x size]."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _until_end(ids: list[int], end_id: int) -> list[int]:
    """The ids up to and including the end token."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
