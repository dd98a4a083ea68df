"""Scores of retrieval, matching and captioning: arrays in, numbers out."""

import re
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vlp.errors import UserError
from vlp.extras import extra

_NOT_A_WORD = re.compile(r"[^\w\s'-]+")


def best_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """For each query, how many wrong candidates stand before its best right one.

    A wrong candidate with the same score stands before a right one, so a model that scores all alike gets nothing.

    Args:
        scores: float [queries, candidates], higher is better.
        relevant: bool of the same shape, at least one True a row.

    Returns:
        int64 [queries]; 0 means that the first candidate is right.
    """
    best = scores.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~relevant).sum(dim=1)


def recall_at_k(ranks: Tensor, k: int, weights: Tensor | None = None) -> float:
    """The share of queries (0 to 1) whose right answer is among the first k.

    Args:
        ranks: int64 [queries], from `best_ranks`.
        weights: [queries], how often each query counts; all once when None.
    """
    if len(ranks) == 0:
        raise UserError("Recall needs at least one query; the data holds none.")
    hits = (ranks < k).double()
    if weights is None:
        return hits.mean().item()
    return ((hits * weights).sum() / weights.sum()).item()


def area_under_curve(
    scores: Sequence[float] | np.ndarray | Tensor, labels: Sequence[bool] | np.ndarray | Tensor
) -> float:
    """Area under the ROC curve: the chance that a right one scores above a wrong one, ties counted half.

    Args:
        scores: [n], higher should mean right.
        labels: [n], true for right.

    Returns:
        0 to 1; NaN when all labels are alike, for then it is not defined.
    """
    values = np.asarray(scores, dtype=np.float64)
    right = np.asarray(labels).astype(bool)
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return float("nan")
    # Mann-Whitney: the sum of the mean ranks of the right ones; tied values share the mean of their ranks.
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # ranks begin at 1
    rank_sum = mean_rank[inverse][right].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def captioning_scores(candidates: list[str], references: list[list[str]]) -> dict[str, float]:
    """CIDEr and BLEU-4 of captions (Vedantam et al. 2015; Papineni et al. 2002), as `pycocoevalcap` computes them.

    Texts are lower-cased and stripped of punctuation here, in place of the Java tokenizer, so numbers can differ from
    published ones in the third digit.

    Args:
        candidates: one caption an image.
        references: the human captions of each image.

    Returns:
        {"CIDEr": 0 to 10, "BLEU-4": 0 to 1}.

    Raises:
        UserError: `pycocoevalcap` is not installed, or there is nothing to score.
    """
    with extra("metrics"):
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    if not candidates or len(candidates) != len(references):
        raise UserError("Captioning scores need as many captions as reference lists, and at least one.")
    results = {i: [plain_words(text)] for i, text in enumerate(candidates)}
    truths = {i: [plain_words(text) for text in texts] for i, texts in enumerate(references)}
    cider, _ = Cider().compute_score(truths, results)
    bleu, _ = Bleu(4).compute_score(truths, results, verbose=0)
    return {"CIDEr": float(cider), "BLEU-4": float(bleu[3])}


def plain_words(text: str) -> str:
    """Lower-case words with single spaces between them, punctuation gone."""
    return " ".join(_NOT_A_WORD.sub(" ", text.lower()).split())
