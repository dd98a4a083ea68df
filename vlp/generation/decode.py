"""Captions from a step function: nucleus sampling, greedy and beam search. Knows no model and no tokenizer.

Rows come in groups: one group is one image, its rows are its samples or its beams and stand together. A group leaves
the batch when all of its rows are done, so every image keeps the same number of rows and its memory is never copied
for them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.config import DecodingConfig
from vlp.errors import UserError
from vlp.generation.token_rules import TokenRules, cut_distribution, draw, uniform_numbers

IMPOSSIBLE = -1e9  # the score of what must not be chosen; finite, so that sums and quotients of it stay numbers
LEAVE_SHARE = 4  # done groups leave when they are a quarter of the batch: leaving copies what stays


@dataclass
class CaptionStepper:
    """What generation needs of a model and its cache.

    Attributes:
        step: new tokens int64 [rows, new] -> logits [rows, vocabulary] of each row's last position. The first call
            brings the prompt, later calls one token a row.
        select: (rows int64 [n], groups int64 [g] or None). Keep, reorder or repeat the rows of the cache; `groups` are
            those that stay, None when all do.
    """

    step: Callable[[Tensor], Tensor]
    select: Callable[[Tensor, Tensor | None], None]


@dataclass
class Generated:
    """One generated text.

    Attributes:
        ids: the tokens after the prompt, the end token included where it was reached.
        log_probability: the sum of the tokens' log-probabilities after repetition penalty and minimum length, in nats.
    """

    ids: list[int]
    log_probability: float


def generate(
    decoder: CaptionStepper,
    prompt: list[int],
    end_id: int,
    config: DecodingConfig,
    keys: list[str],
    seed: int = 0,
    captions: int = 1,
    device: torch.device | str = "cpu",
    banned: list[list[int]] | None = None,
) -> list[list[Generated]]:
    """Texts for `len(keys)` groups, as `config` says: beams 0 samples, 1 is greedy, more is beam search.

    Args:
        decoder: the model's side, its cache empty.
        prompt: ids that every text begins with, the [DEC] token first; they count in the length limits.
        end_id: the token that ends a text.
        keys: one a group; with `seed` and the caption's number it alone decides what sampling draws.
        captions: texts a group; with beam search the best of its beams, so at most as many.
        device: where `decoder` works.
        banned: sequences of tokens that must not occur.

    Returns:
        For each group its texts, best first where beam search made them.

    Raises:
        UserError: a decoding setting is out of range.
    """
    check_decoding(config, len(prompt), captions)
    if not keys:
        return []
    device = torch.device(device)
    rules = TokenRules(config, end_id, banned or [])
    with torch.no_grad():
        if config.beams > 1:
            return _beam_search(decoder, prompt, rules, len(keys), captions, device)
        return _sample(decoder, prompt, rules, keys, seed, captions, device)


def check_decoding(config: DecodingConfig, prompt_tokens: int = 1, captions: int = 1) -> None:
    """Refuse settings that make no sense, by name.

    Raises:
        UserError: a setting is out of range.
    """
    checks = [
        (config.beams >= 0, "beams must be 0 (sampling) or more"),
        (0 < config.top_p <= 1, "top_p must be above 0 and at most 1"),
        (config.top_k >= 0, "top_k must be 0 (no limit) or more"),
        (config.temperature > 0, "temperature must be above 0"),
        (config.repetition_penalty > 0, "repetition_penalty must be above 0"),
        (config.no_repeat_ngram >= 0, "no_repeat_ngram must be 0 (any may repeat) or more"),
        (config.min_length <= config.max_length, "min_length must not be above max_length"),
        (config.max_length > prompt_tokens, f"max_length must be above the prompt's {prompt_tokens} tokens"),
        (captions >= 1, "the number of captions must be at least 1"),
        (config.beams == 0 or captions <= config.beams, "beam search gives at most as many captions as it has beams"),
    ]
    for holds, sentence in checks:
        if not holds:
            raise UserError(f"decoding: {sentence}.")


def _sample(
    decoder: CaptionStepper,
    prompt: list[int],
    rules: TokenRules,
    keys: list[str],
    seed: int,
    captions: int,
    device: torch.device,
) -> list[list[Generated]]:
    """Sampling, and greedy search as its special case."""
    config, end_id = rules.config, rules.end_id
    rows = len(keys) * captions
    count = config.max_length - len(prompt)
    numbers = [uniform_numbers(seed, key, number, count) for key in keys for number in range(captions)]
    uniforms = torch.tensor(np.stack(numbers), dtype=torch.float32, device=device).clamp_(max=1 - 2**-24)
    tokens = torch.tensor(prompt, device=device).repeat(rows, 1)  # [rows, length]
    totals = torch.zeros(rows, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    here = torch.arange(rows, device=device)  # which text each row of the batch is
    results: list[Generated | None] = [None] * rows

    def collect(finished: Tensor) -> None:
        for text, row, total in zip(
            here[finished].tolist(), tokens[finished].tolist(), totals[finished].tolist(), strict=True
        ):
            results[text] = Generated(_until_end(row[len(prompt) :], end_id), total)

    new = tokens
    for position in range(count):
        chosen, log_probability = _next_tokens(decoder.step(new), tokens, rules, uniforms[:, position])
        chosen = chosen.masked_fill(done, end_id)
        totals = totals + log_probability.masked_fill(done, 0)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        done = done | (chosen == end_id)
        new = chosen[:, None]
        group_done = done.view(-1, captions).all(dim=1)
        leaving = int(group_done.sum())
        if leaving == len(group_done):
            break
        if leaving * LEAVE_SHARE >= len(group_done):
            collect(group_done.repeat_interleave(captions))
            groups = (~group_done).nonzero()[:, 0]
            kept = _rows_of(groups, captions)
            decoder.select(kept, groups)
            tokens, totals, done, new = tokens[kept], totals[kept], done[kept], new[kept]
            here, uniforms = here[kept], uniforms[kept]
    collect(torch.ones_like(done))
    return [results[i : i + captions] for i in range(0, rows, captions)]


def _next_tokens(logits: Tensor, tokens: Tensor, rules: TokenRules, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability, each [rows]."""
    config = rules.config
    logits = rules.apply(logits.float(), tokens)
    if config.beams == 1:
        chosen = logits.argmax(dim=-1)
    else:
        chosen = draw(cut_distribution(logits, config.temperature, config.top_k, config.top_p), uniform)
    return chosen, logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]


@dataclass
class _Beams:
    """The state of beam search. Running beams are texts still open; finished ones are kept best first."""

    running: Tensor  # [groups, beams, length]
    running_scores: Tensor  # [groups, beams], summed log-probabilities
    finished: Tensor  # [groups, beams, max_length]
    finished_scores: Tensor  # [groups, beams], sums divided by length ** length_penalty; IMPOSSIBLE where empty
    finished_sums: Tensor  # [groups, beams], summed log-probabilities
    finished_lengths: Tensor  # [groups, beams], tokens, those of the prompt counted

    def keep(self, groups: Tensor) -> "_Beams":
        return _Beams(*(getattr(self, name)[groups] for name in self.__dataclass_fields__))


def _start_beams(prompt: list[int], config: DecodingConfig, groups: int, device: torch.device) -> _Beams:
    beams = config.beams
    scores = torch.zeros(groups, beams, device=device)
    scores[:, 1:] = IMPOSSIBLE  # all beams hold the prompt; only the first may grow, or all would stay alike
    return _Beams(
        running=torch.tensor(prompt, device=device).expand(groups, beams, -1),
        running_scores=scores,
        finished=torch.zeros(groups, beams, config.max_length, dtype=torch.int64, device=device),
        finished_scores=torch.full((groups, beams), IMPOSSIBLE, device=device),
        finished_sums=torch.zeros(groups, beams, device=device),
        finished_lengths=torch.zeros(groups, beams, dtype=torch.int64, device=device),
    )


def _beam_search(
    decoder: CaptionStepper,
    prompt: list[int],
    rules: TokenRules,
    groups: int,
    captions: int,
    device: torch.device,
) -> list[list[Generated]]:
    """Beam search with the rules of `transformers` (`early_stopping=False`), so that results can be compared."""
    config = rules.config
    state = _start_beams(prompt, config, groups, device)
    here = torch.arange(groups, device=device)
    results: list[list[Generated]] = [[] for _ in range(groups)]
    new = state.running.flatten(0, 1)  # [groups x beams, prompt]
    while True:
        log_probabilities = decoder.step(new).float().log_softmax(dim=-1)
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
            _collect_beams(state.keep(done), here[done].tolist(), results, len(prompt), captions)
        if leaving == len(done):
            return results
        stay = (~done).nonzero()[:, 0]
        decoder.select(rows[stay].flatten(), stay if leaving else None)
        if leaving:
            state, here = state.keep(stay), here[stay]
        new = state.running[:, :, -1:].flatten(0, 1)


def _extend(state: _Beams, log_probabilities: Tensor, rules: TokenRules, prompt_tokens: int) -> Tensor:
    """Grow every beam by one token, in place; returns the beam that each new beam grew from, int64 [groups, beams]."""
    config, end_id = rules.config, rules.end_id
    groups, beams, length = state.running.shape
    vocabulary = log_probabilities.shape[-1]
    scores = rules.apply(log_probabilities, state.running.flatten(0, 1))
    scores = (scores.view(groups, beams, vocabulary) + state.running_scores[:, :, None]).flatten(1)
    # Twice as many candidates as beams: were the best ones all to end here, enough open ones remain.
    sums, flat = scores.topk(2 * beams, dim=1)  # [groups, 2 beams]
    parents, chosen = flat // vocabulary, flat % vocabulary
    texts = torch.cat([_take(state.running, parents), chosen[:, :, None]], dim=2)  # [groups, 2 beams, length + 1]
    ended = (chosen == end_id) | (length + 1 == config.max_length)

    finished_scores = sums / (length + 1 - prompt_tokens) ** config.length_penalty
    finished_scores = finished_scores + (~ended) * IMPOSSIBLE
    finished_scores[:, beams:] += IMPOSSIBLE  # only candidates that would be beams may end
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
    state: _Beams, groups: list[int], results: list[list[Generated]], prompt_tokens: int, captions: int
) -> None:
    texts, sums, lengths = state.finished.tolist(), state.finished_sums.tolist(), state.finished_lengths.tolist()
    for row, group in enumerate(groups):
        for beam in range(captions):
            ids = texts[row][beam][prompt_tokens : lengths[row][beam]]
            results[group].append(Generated(ids, sums[row][beam]))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [groups, n, ...] at index [groups, m] -> [groups, m, ...]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def _rows_of(groups: Tensor, size: int) -> Tensor:
    """The rows of groups of `size` rows: int64 [groups x size]."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _until_end(ids: list[int], end_id: int) -> list[int]:
    """The ids up to the end token, that included."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
