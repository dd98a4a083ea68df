"""Choosing the next token: rules that change the model's scores, and the draw from what they leave."""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlp.config import DecodingConfig


@dataclass
class TokenRules:
    """The rules that every generated token must satisfy.

    Attributes:
        config: the decoding settings.
        end_id: the token that ends a text.
        banned: sequences of tokens that must not occur.
    """

    config: DecodingConfig
    end_id: int
    banned: list[list[int]] = field(default_factory=list)

    def apply(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Apply the rules in the order of `transformers`.

        Args:
            scores: logits or log-probabilities [rows, vocabulary] of the next token.
            tokens: int64 [rows, length], the tokens so far.
        """
        scores = penalize_repetition(scores, tokens, self.config.repetition_penalty)
        if self.config.no_repeat_ngram > 0:
            scores = forbid_repeated_ngrams(scores, tokens, self.config.no_repeat_ngram)
        for sequence in self.banned:
            scores = forbid_sequence(scores, tokens, sequence)
        if tokens.shape[1] < self.config.min_length:
            scores = forbid_sequence(scores, tokens, [self.end_id])
        return scores


def uniform_numbers(seed: int, key: str, number: int, count: int) -> np.ndarray:
    """The random numbers that caption `number` of the sample `key` is drawn with: float64 [count] in [0, 1).

    They are the same on every machine and in every batch. A larger `count` extends the same sequence.
    """
    digest = hashlib.blake2b(f"{seed}\0{key}\0{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).random(count)


def penalize_repetition(scores: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make tokens that a row already contains less likely (Keskar et al. 2019, section 4.1).

    Args:
        scores: logits or log-probabilities [rows, vocabulary].
        tokens: int64 [rows, length], the prompt included.
        penalty: positive scores are divided by it, negative ones multiplied; above 1 discourages repetition.
    """
    if penalty == 1.0:
        return scores
    seen = scores.gather(1, tokens)
    return scores.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def forbid_repeated_ngrams(scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Set scores [rows, vocabulary] of tokens that would repeat an n-gram of int64 [rows, length] to -inf."""
    length = tokens.shape[1]
    if length < size:
        return scores
    seen = tokens.unfold(1, size, 1)  # [rows, length - size + 1, size]
    same = (seen[:, :, :-1] == tokens[:, None, length - size + 1 :]).all(dim=2)
    return scores.masked_fill(torch.zeros_like(scores).scatter_add(1, seen[:, :, -1], same.to(scores)) > 0, -math.inf)


def forbid_sequence(scores: Tensor, tokens: Tensor, sequence: list[int]) -> Tensor:
    """Set the score of the last token of `sequence` to -inf in every row that ends with the tokens before it."""
    *before, last = sequence
    if len(before) > tokens.shape[1]:
        return scores
    scores = scores.clone()
    if not before:
        scores[:, last] = -math.inf
        return scores
    ends = tokens[:, tokens.shape[1] - len(before) :].unbind(1)
    matches = torch.stack([end == token for end, token in zip(ends, before, strict=True)]).all(dim=0)  # [rows]
    scores[:, last] = scores[:, last].masked_fill(matches, -math.inf)  # a mask as index would let the host wait
    return scores


def cut_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [rows, vocabulary] that are zero outside the top-k and the nucleus (Holtzman et al. 2020).

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least `top_p`. Tokens exactly as
    likely as the least likely one in it belong to it too. The remaining probabilities are not rescaled to sum to 1.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    ordered = _descending(probabilities)
    if 0 < top_k < ordered.shape[1]:
        least = ordered[:, top_k - 1 : top_k].clone()
        total = ordered[:, :top_k].sum(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0) / total
        ordered = ordered[:, :top_k] / total
    before = ordered.cumsum(dim=-1) - ordered
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1  # position of the nucleus's last token
    return probabilities.masked_fill(probabilities < ordered.gather(1, last), 0)


def _descending(values: Tensor) -> Tensor:
    """Sort each row in descending order. On a CPU, NumPy sorts 30 times as fast as torch (docs/benchmarks.md)."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)[:, ::-1].copy())
    return values.sort(dim=-1, descending=True).values


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution: int64 [rows].

    The cumulative sum runs in vocabulary order, not in order of probability: if rounding swaps two tokens of nearly
    equal probability, the draw stays the same.

    Args:
        probabilities: [rows, vocabulary], not negative, of any scale.
        uniform: [rows] in [0, 1).
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, uniform[:, None].to(cumulative) * total, right=True)
    last = torch.searchsorted(cumulative, total)  # rounding up to the total must not select a token of probability 0
    return torch.minimum(chosen, last)[:, 0]
