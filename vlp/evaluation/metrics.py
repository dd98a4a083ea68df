"""Metrics of retrieval, matching and captioning: arrays in, numbers out."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vlp.errors import UserError


def best_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """The rank of each query's best relevant candidate: the number of irrelevant candidates at or above its score.

    Ties count against the relevant candidate, so a model that gives all candidates the same score gets no credit. So
    do scores that are not numbers (NaN), and a query whose relevant candidate has one ranks it last.

    Args:
        scores: float [queries, candidates], higher is better.
        relevant: bool of the same shape, with at least one True per row.

    Returns:
        int64 [queries]; 0 means that the first candidate is relevant.
    """
    best = scores.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    return (~(scores < best) & ~relevant).sum(dim=1)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """The share of queries (0 to 1) with a relevant candidate among the first k.

    Args:
        ranks: int64 [queries], from `best_ranks`.

    Raises:
        UserError: there are no queries.
    """
    if len(ranks) == 0:
        raise UserError("Recall needs at least one query; the data contains none.")
    return (ranks < k).double().mean().item()


def area_under_curve(
    scores: Sequence[float] | np.ndarray | Tensor, labels: Sequence[bool] | np.ndarray | Tensor
) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count half.

    Args:
        scores: [n], higher for positives.
        labels: [n], true for positives.

    Returns:
        0 to 1, or NaN if all labels are equal or a score is NaN, because it is then undefined.
    """
    values = np.asarray(scores, dtype=np.float64)
    right = np.asarray(labels).astype(bool)
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives or np.isnan(values).any():
        return float("nan")
    # Mann-Whitney U: the sum of the ranks of the positives; tied values share the mean of their ranks.
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # ranks start at 1
    rank_sum = mean_rank[inverse][right].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))
