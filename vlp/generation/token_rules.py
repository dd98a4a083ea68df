"""The next token: what rules leave of the model's scores, and how one is drawn from it."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlp.config import DecodingConfig


@dataclass
class TokenRules:
    """What every next token has to keep, beside its probability."""

    config: DecodingConfig
    end_id: int
    banned: list[list[int]]  # sequences of tokens

    def apply(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores [rows, vocabulary] of what may follow int64 [rows, length]; in the order `transformers` has."""
        scores = penalise_repetition(scores, tokens, self.config.repetition_penalty)
        if self.config.no_repeat_ngram > 0:
            scores = forbid_repeated_ngrams(scores, tokens, self.config.no_repeat_ngram)
        for sequence in self.banned:
            scores = forbid_sequence(scores, tokens, sequence)
        if tokens.shape[1] < self.config.min_length:
            scores = forbid_sequence(scores, tokens, [self.end_id])
        return scores


def uniform_numbers(seed: int, key: str, number: int, count: int) -> np.ndarray:
    """The random numbers behind caption `number` of the sample `key`: float64 [count] in [0, 1).

    They are the same on every machine, in every batch and for every `count` (a longer row begins with a shorter one).
    """
    digest = hashlib.blake2b(f"{seed}\0{key}\0{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).random(count)


def penalise_repetition(scores: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make tokens that a row already holds less likely (Keskar et al. 2019).

    Args:
        scores: logits or log-probabilities [rows, vocabulary].
        tokens: int64 [rows, length], the prompt included.
        penalty: above 1 discourages: positive scores are divided by it, negative ones multiplied.
    """
    if penalty == 1.0:
        return scores
    held = scores.gather(1, tokens)
    return scores.scatter(1, tokens, torch.where(held < 0, held * penalty, held / penalty))


def forbid_repeated_ngrams(scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Scores [rows, vocabulary] with -inf for tokens that would complete a sequence of `size` that a row int64
    [rows, length] holds already."""
    length = tokens.shape[1]
    if length < size:
        return scores
    held = tokens.unfold(1, size, 1)  # [rows, length - size + 1, size]
    same = (held[:, :, :-1] == tokens[:, None, length - size + 1 :]).all(dim=2)
    return scores.masked_fill(torch.zeros_like(scores).scatter_add(1, held[:, :, -1], same.to(scores)) > 0, -math.inf)


def forbid_sequence(scores: Tensor, tokens: Tensor, sequence: list[int]) -> Tensor:
    """Scores [rows, vocabulary] with -inf for the last token of `sequence` where a row ends with all before it."""
    *before, last = sequence
    if len(before) > tokens.shape[1]:
        return scores
    ends = tokens[:, tokens.shape[1] - len(before) :]
    matches = (ends == torch.tensor(before, dtype=torch.int64, device=tokens.device)).all(dim=1)
    scores = scores.clone()
    scores[matches, last] = -math.inf
    return scores


def cut_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [rows, vocabulary], zero outside the top-k and the nucleus (Holtzman et al. 2020), not rescaled.

    The nucleus is the smallest set of most likely tokens whose probabilities sum to `top_p`; tokens as likely as the
    last of it belong to it as well.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    ordered = _descending(probabilities)
    if 0 < top_k < ordered.shape[1]:
        least = ordered[:, top_k - 1 : top_k].clone()
        total = ordered[:, :top_k].sum(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0) / total
        ordered = ordered[:, :top_k] / total
    before = ordered.cumsum(dim=-1) - ordered
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1  # its place in the order
    return probabilities.masked_fill(probabilities < ordered.gather(1, last), 0)


def _descending(values: Tensor) -> Tensor:
    """Each row from the largest down. On a CPU numpy sorts thirty times as fast as torch (benchmarks.md)."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)[:, ::-1].copy())
    return values.sort(dim=-1, descending=True).values


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by the inverse of the cumulative distribution: int64 [rows].

    The sum runs in the order of the vocabulary, not of the probabilities: when rounding swaps two tokens of nearly
    equal probability, the draw stays the same.

    Args:
        probabilities: [rows, vocabulary], not negative; any scale.
        uniform: [rows] in [0, 1).
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, uniform[:, None].to(cumulative) * total, right=True)
    last = torch.searchsorted(cumulative, total)  # rounding up to the total must not reach a token of probability 0
    return torch.minimum(chosen, last)[:, 0]
