"""ITM: image-text matching over true pairs and hard negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_hard_negatives(
    similarities: Tensor, forbidden: Tensor, noise: Tensor, count: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw negatives for each row from the softmax of its similarities to the allowed columns (ALBEF, section 3.2).

    All rows are drawn at once on the device by the Gumbel-max trick: the argmax of similarity plus Gumbel noise has the
    distribution of the softmax, and the largest values are draws without replacement.

    Args:
        similarities: [rows, columns], divided by the temperature.
        forbidden: bool [rows, columns], True at the row's own pair and its duplicates.
        noise: uniform in [0, 1), [rows, columns].
        count: negatives of a row, at most the number of columns.

    Returns:
        The drawn columns, int64 [rows, count], distinct in each row; bool [rows, count], False where no allowed column
        is left.
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
    scores = (similarities.detach().float() + gumbel).masked_fill(forbidden, float("-inf"))
    if count == 1:
        return scores.argmax(dim=1, keepdim=True), ~forbidden.all(dim=1, keepdim=True)
    allowed = (~forbidden).sum(dim=1, keepdim=True)
    return scores.topk(count, dim=1).indices, torch.arange(count, device=scores.device) < allowed


def uniform_noise(seed: int, rows: Tensor, columns: int) -> Tensor:
    """Pseudorandom numbers in [0, 1), float32 [rows, columns], each a function of seed, row and column only.

    A pair gets the same number however the rows are split among processes or calls. The numbers come from the mixing
    function of splitmix64 (Steele et al. 2014).

    Args:
        rows: int64 [rows], the row numbers.
    """
    pairs = rows[:, None] * columns + torch.arange(columns, device=rows.device)
    x = pairs + (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) % 2**63  # int64 wraps around, as intended
    # These shifts extend the sign bit, unlike those of splitmix64. They mix as well.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * (factor - 2**64)
    return ((x ^ (x >> 31)) & (2**24 - 1)) / 2**24


def matching_loss(logits: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ITM loss over image-text pairs.

    Args:
        logits: [pairs, 2], class 1 is "match".
        labels: int64 [pairs].
        counted: bool [pairs], False for pairs that are left out.

    Returns:
        The summed cross-entropy, the number of correct answers and the number of counted pairs; float32 scalars.
    """
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none") * counted
    right = ((logits.argmax(dim=1) == labels) & counted).sum()
    return losses.sum(), right.float(), counted.sum().float()
