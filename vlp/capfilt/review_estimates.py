"""Precision and recall of every threshold of a score, estimated from a reviewer's labels.

The labels need not be a random sample of the texts, as reviewers look near the threshold. What is assumed is that among
texts with about the same score and the same source, the labeled ones are like the others. So labels count only if their
rows came up at random or by this score (see `counts_for`), and each stands for the texts whose scores are nearest:
post-stratification. A text's weight is the number of texts in its cell over the number of labels in it.

The intervals are Wilson's at 95% with Kish's effective number of labels, (sum w)**2 / sum w**2, which shrinks when few
labels stand for many texts. They cover the chance in which texts were labeled, not errors of the reviewer, nor a range
of scores in which nothing was labeled (`unseen`).
"""

import math
from dataclasses import dataclass, field

import numpy as np

LEAST_LABELS = 30  # for an estimate
LEAST_KEPT = 10  # labels that a suggested threshold keeps
CELL_LABELS = 5  # labels that share a cell, at least
CELLS = 20  # cells per source, at most
Z95 = 1.959963984540054  # the normal quantile of a two-sided interval of 95%


@dataclass
class Stratum:
    """The texts of one source.

    Attributes:
        population: the scores of all of its texts, ascending: float64 [texts].
        scores: those of the labeled ones: float64 [labels].
        accepted: 1 where the label accepts, 0 where it rejects, between where reviewers disagree: float64 [labels].
    """

    population: np.ndarray
    scores: np.ndarray
    accepted: np.ndarray


@dataclass
class Share:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass
class ThresholdEstimate:
    """What keeping the texts from a threshold on gives.

    Attributes:
        threshold: keep scores of at least this; with `lower_is_better`, of at most this.
        precision: the share of acceptable texts among the kept ones.
        recall: the share of the acceptable texts that are kept.
        texts: the number of kept texts.
        labels: the number of labels among them.
        unseen: the share of the kept texts that score beyond the labeled texts.
    """

    threshold: float
    precision: Share
    recall: Share
    texts: int
    labels: int
    unseen: float


@dataclass
class Suggestion:
    """A threshold for a wanted precision, or a sentence that says why there is none.

    Attributes:
        estimate: of the lowest threshold (highest with `lower_is_better`) whose precision is at least the wanted one.
        sure: that of the lowest one whose interval is above the wanted precision; None if there is none.
        notes: sentences about what the estimate leaves out.
    """

    estimate: ThresholdEstimate | None = None
    sure: ThresholdEstimate | None = None
    notes: list[str] = field(default_factory=list)


def counts_for(shown: str, score: str) -> bool:
    """Whether a label counts in estimates for a score, by how its row came up (see `RowOrder.name`)."""
    kind, *columns = shown.split(" ")
    return kind == "sample" or (kind in ("near", "above", "below", "highest", "lowest") and columns == [score])


def wilson(share: float, labels: float) -> Share:
    """Wilson's 95% interval of a share that was seen in an effective number of labels (Wilson 1927)."""
    if labels <= 0:
        return Share(share, 0.0, 1.0)
    square = Z95 * Z95 / labels
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return Share(share, max(0.0, min(share, center - half)), min(1.0, max(share, center + half)))


def cell_weights(population: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many texts each label stands for; the weights of a source sum to its number of texts.

    Args:
        population: all scores, float64 [texts], ascending.
        scores: float64 [labels], ascending.

    Returns:
        float64 [labels].
    """
    count = len(scores)
    size = max(CELL_LABELS, math.ceil(count / CELLS))
    starts = [0]
    while count - starts[-1] >= 2 * size:
        start = int(np.searchsorted(scores, scores[starts[-1] + size - 1], "right"))  # keep equal scores together
        if count - start < size:
            break
        starts.append(start)
    first = np.searchsorted(population, scores, "left")
    last = np.searchsorted(population, scores, "right")
    borders = [0.0, *((last[start - 1] + first[start]) / 2 for start in starts[1:]), float(len(population))]
    weights = np.empty(count)
    for place, (start, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
        weights[start:end] = (borders[place + 1] - borders[place]) / (end - start)
    return weights


def estimate_thresholds(strata: list[Stratum], lower_is_better: bool = False) -> list[ThresholdEstimate]:
    """Estimates at the score of every label, the loosest threshold first.

    Args:
        strata: one per source; those without labels are left out of the numbers.
        lower_is_better: whether a rule keeps low scores.
    """
    sign = -1.0 if lower_is_better else 1.0
    seen = [_turned(one, sign) for one in strata if len(one.scores) and len(one.population)]
    if not seen:
        return []
    weights = np.concatenate([cell_weights(one.population, one.scores) for one in seen])
    scores = np.concatenate([one.scores for one in seen])
    accepted = np.concatenate([one.accepted for one in seen])
    order = np.argsort(scores, kind="stable")
    scores, accepted, weights = scores[order], accepted[order], weights[order]
    good, right = weights * accepted, (weights * accepted).sum()
    estimates = []
    for threshold in np.unique(scores):
        kept = slice(int(np.searchsorted(scores, threshold, "left")), None)
        own, value = weights[kept], good[kept].sum() / weights[kept].sum()
        texts = [len(one.population) - int(np.searchsorted(one.population, threshold, "left")) for one in seen]
        beyond = [len(one.population) - int(np.searchsorted(one.population, one.scores[-1], "right")) for one in seen]
        unseen = sum(map(min, texts, beyond)) / max(sum(texts), 1)
        recall = good[kept].sum() / right if right else 0.0
        estimates.append(
            ThresholdEstimate(
                sign * float(threshold),
                wilson(float(value), _effective(own)),
                wilson(float(recall), _effective(good[good > 0])),
                sum(texts),
                len(own),
                unseen,
            )
        )
    return estimates


def suggest_threshold(estimates: list[ThresholdEstimate], precision: float) -> Suggestion:
    """The loosest threshold that keeps a wanted precision, among those that keep at least `LEAST_KEPT` labels."""
    supported = [one for one in estimates if one.labels >= LEAST_KEPT]
    found = next((one for one in supported if one.precision.value >= precision), None)
    sure = next((one for one in supported if one.precision.low >= precision), None)
    if found:
        return Suggestion(found, sure)
    best = max(supported, key=lambda one: one.precision.value, default=None)
    most = f"; the highest is {best.precision.value:.3f}, at {best.threshold:.4g}" if best else ""
    return Suggestion(notes=[f"No threshold that keeps {LEAST_KEPT} labels has a precision of {precision:g}{most}."])


def short_number(value: float, stricter_than: float, lower_is_better: bool = False) -> str:
    """The shortest decimal that keeps `value` and drops the next looser score, for a rule to copy.

    Args:
        value: the score to keep.
        stricter_than: the next score to drop, below `value` (above it with `lower_is_better`); may be infinite.
    """
    for digits in range(18):
        scale = 10.0**digits
        rounded = (math.ceil(value * scale) if lower_is_better else math.floor(value * scale)) / scale
        keeps = rounded >= value if lower_is_better else rounded <= value
        drops = rounded < stricter_than if lower_is_better else rounded > stricter_than
        if keeps and drops and abs(rounded - value) <= 0.01 * max(abs(value), 1e-9):
            return f"{rounded:.{digits}f}"
    return repr(value)


def _turned(stratum: Stratum, sign: float) -> Stratum:
    """A stratum with its labels sorted, and with scores where higher is better."""
    order = np.argsort(sign * stratum.scores, kind="stable")
    population = stratum.population if sign > 0 else -stratum.population[::-1]
    return Stratum(population, sign * stratum.scores[order], stratum.accepted[order])


def _effective(weights: np.ndarray) -> float:
    """Kish's effective number of labels."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0
