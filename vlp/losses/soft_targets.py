"""ITC, the image-text contrastive loss against soft targets."""

from torch import Tensor


def contrastive_targets(twin_similarities: Tensor, positives: Tensor, alpha: float) -> Tensor:
    """The soft targets of ITC (ALBEF, equation 6): the twin's softmax mixed with the true pairs.

    Args:
        twin_similarities: [rows, columns] similarities of the momentum twin, divided by the temperature.
        positives: bool [rows, columns], True where row and column match; at least one per row.
        alpha: the weight of the twin, 0 to 1.

    Returns:
        [rows, columns]; each row sums to one.
    """
    truth = positives / positives.sum(dim=1, keepdim=True)
    return alpha * twin_similarities.softmax(dim=1) + (1 - alpha) * truth


def contrastive_loss(similarities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over rows of the cross-entropy between similarities and soft targets, both [rows, columns].

    Similarities are divided by the temperature. Absent columns have similarity -inf and must have target 0. `weights`
    is float32 [rows]; None: each row has weight 1.
    """
    log_probabilities = similarities.log_softmax(dim=1)
    losses = -(targets * log_probabilities.masked_fill(targets == 0, 0.0)).sum(dim=1)
    return losses.mean() if weights is None else (losses * weights).mean()
