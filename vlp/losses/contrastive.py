"""ITC: image-text contrast against soft targets."""

from torch import Tensor


def contrastive_targets(twin_similarities: Tensor, positives: Tensor, alpha: float) -> Tensor:
    """Soft targets of ITC (ALBEF, equation 6): part the twin's opinion, part the truth.

    Args:
        twin_similarities: [rows, columns] similarities of the momentum twin, divided by the temperature.
        positives: bool [rows, columns], True where row and column belong together; at least one a row.
        alpha: the twin's share, 0 to 1.

    Returns:
        [rows, columns]; each row sums to one.
    """
    truth = positives / positives.sum(dim=1, keepdim=True)
    return alpha * twin_similarities.softmax(dim=1) + (1 - alpha) * truth


def contrastive_loss(similarities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of [rows, columns] similarities (divided by the temperature) against soft targets; mean over rows.

    Columns at -inf are absent: their targets must be zero.
    """
    log_probabilities = similarities.log_softmax(dim=1)
    return -(targets * log_probabilities.masked_fill(targets == 0, 0.0)).sum(dim=1).mean()
