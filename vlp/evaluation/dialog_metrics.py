"""Metrics of ranked answers in dialogs (VisDial): MRR, recall, mean rank and NDCG; rows in, numbers out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

KS = (1, 5, 10)


def true_rank(scores: Sequence[float], right: int) -> int:
    """The rank of the true option, from 1. Ties, and scores that are not numbers, count against it.

    Args:
        scores: of each option, higher is better.
        right: the number of the true option.
    """
    values = np.asarray(scores, dtype=np.float64)
    return len(values) - int((values < values[right]).sum())


def option_ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each option, from 1: a permutation, in which the first of equal options is the better one."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks.tolist()


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Normalized discounted cumulative gain over the first k options, k = number of options with relevance above 0.

    This is the metric of the VisDial challenge (visualdialog.org/challenge/2019, "Evaluation"). Among options with
    equal scores the least relevant one comes first.

    Args:
        scores, relevance: of each option.

    Returns:
        0 to 1; NaN if no option is relevant, because it is then undefined.
    """
    values, gains = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    k = int((gains > 0).sum())
    if not k:
        return float("nan")
    discounts = np.log2(np.arange(k) + 2)
    order = np.lexsort((gains, -values))  # by score; equal ones by relevance, ascending
    ideal = np.sort(gains)[::-1]
    return float((gains[order][:k] / discounts).sum() / (ideal[:k] / discounts).sum())


def dialog_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of VisDial.

    Args:
        rows: a row a round with `scores`, and `gt_index` and `relevance` where they are known.

    Returns:
        `mrr`, `r1`, `r5`, `r10` (0 to 1) and `mean_rank` over `rounds_with_answer`; `ndcg` over
        `rounds_with_relevance`, those with a relevant option; `rounds`, their number. A metric over no round is absent.
    """
    answered = [row for row in rows if row.get("gt_index") is not None]
    ranks = np.array([true_rank(row["scores"], row["gt_index"]) for row in answered], dtype=np.float64)
    gains = [ndcg(row["scores"], row["relevance"]) for row in rows if row.get("relevance") is not None]
    gains = [gain for gain in gains if not np.isnan(gain)]
    metrics: dict[str, float] = {}
    if len(ranks):
        metrics["mrr"] = float((1 / ranks).mean())
        metrics |= {f"r{k}": float((ranks <= k).mean()) for k in KS}
        metrics["mean_rank"] = float(ranks.mean())
    if gains:
        metrics["ndcg"] = float(np.mean(gains))
    return {**metrics, "rounds": len(rows), "rounds_with_answer": len(ranks), "rounds_with_relevance": len(gains)}
