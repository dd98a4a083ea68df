"""Multinomial logistic regression on features by L-BFGS, and the choice of its L2 penalty (CLIP, appendix A.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 1000  # of L-BFGS, as in CLIP
SEARCH_TOLERANCE = 1e-4  # while the penalty is searched: scikit-learn's default, which CLIP used
STEPS_PER_DECADE = 8  # of the penalties that are tried
DECADES = 6  # they reach from 1e-6 to 1e6
FIRST_STRIDE = 2 * STEPS_PER_DECADE  # the first ones are two decades apart


@dataclass
class LinearClassifier:
    """Class scores of features: `weight` float64 [features, classes] and `bias` float64 [classes]."""

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Features [images, features] -> scores float64 [images, classes]."""
        return features.to(self.weight) @ self.weight + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    start: LinearClassifier | None = None,
    tolerance: float = 1e-7,
) -> LinearClassifier:
    """Minimize the summed cross-entropy + penalty / 2 * |weight|²; the bias is not penalized.

    This is the objective of scikit-learn's `LogisticRegression(C=1 / penalty)`.

    Args:
        features: [images, features].
        labels: int64 [images], from 0 to `classes` - 1.
        start: where to start; None: at zero. The result does not depend on it, up to the tolerance.
        tolerance: of the largest entry of the gradient of the objective / images.
    """
    x = features.double()
    size = (x.shape[1], classes)
    weight = (start.weight.clone() if start else x.new_zeros(size)).requires_grad_()
    bias = (start.bias.clone() if start else x.new_zeros(classes)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + penalty / (2 * len(x)) * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType] (the stub asks for a float)
    return LinearClassifier(weight.detach(), bias.detach())


def split_held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide images into a part to fit and a part to validate, class by class.

    Args:
        labels: int64 [images].
        share: of each class that is held out, rounded down, but at least one of two images.

    Returns:
        The numbers of the images of both parts, int64 [images], sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    fit, held_out = [], []
    for label in labels.unique().tolist():
        rows = torch.where(labels == label)[0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = max(int(share * len(rows)), len(rows) > 1)
        held_out.append(rows[:count])
        fit.append(rows[count:])
    return torch.cat(fit).sort().values, torch.cat(held_out).sort().values


def choose_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """The numbers of `shots` random images of each class, int64, sorted; all images of a class that has fewer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        rows = torch.where(labels == label)[0]
        chosen.append(rows[torch.randperm(len(rows), generator=generator)][:shots])
    return torch.cat(chosen).sort().values


def search_penalty(accuracy: Callable[[float], float]) -> float:
    """The penalty with the best accuracy among 97 from 1e-6 to 1e6, by CLIP's search.

    It tries every second decade, and then halves the interval around the best one until neighbors are an eighth of a
    decade apart. Of equal ones it takes the median.

    Args:
        accuracy: of the classifier that is fitted with a penalty, on held-out images.
    """
    last = DECADES * STEPS_PER_DECADE
    tried = {step: accuracy(_penalty(step)) for step in range(last, -last - 1, -FIRST_STRIDE)}
    stride = FIRST_STRIDE // 2
    while stride:
        best = _best(tried)
        for step in (best + stride, best - stride):
            if step not in tried and abs(step) <= last:
                tried[step] = accuracy(_penalty(step))
        stride //= 2
    return _penalty(_best(tried))


def _best(tried: dict[int, float]) -> int:
    """The median of the steps with the highest accuracy."""
    equal = sorted(step for step, accuracy in tried.items() if accuracy == max(tried.values()))
    return equal[len(equal) // 2]


def _penalty(step: int) -> float:
    return 10 ** (step / STEPS_PER_DECADE)
