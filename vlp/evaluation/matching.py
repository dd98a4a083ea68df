"""Matching: how well a model tells right texts from wrong ones on labelled pairs."""

from collections import defaultdict
from pathlib import Path

import torch

from vlp.errors import UserError
from vlp.evaluation.metrics import area_under_curve
from vlp.log import ReportProgress, no_progress
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@constant_weights()
def evaluate_matching(
    model: Model, images: str, pairs: str, batch_size: int = 32, progress: ReportProgress = no_progress
) -> dict[str, float]:
    """How well the model tells right texts from wrong ones on labelled pairs.

    Args:
        images: folder of the images.
        pairs: a tab-separated file `image caption label` with a heading; the label is `match` or `no-match`.

    Returns:
        `itm_auc` and `itc_auc`, areas under the ROC curves of ITM's probability and of the cosine; `itm_accuracy` at
        0.5; `pairs`.

    Raises:
        UserError: a file is missing or not of this form.
    """
    texts, labels = _read_pairs(Path(pairs))
    names = list(texts)
    itm, itc, truth = [], [], []
    for start in range(0, len(names), batch_size):
        here = names[start : start + batch_size]
        tokens = model.encode_images(model.load_images([Path(images) / name for name in here]))
        index = torch.tensor([row for row, name in enumerate(here) for _ in texts[name]])
        match = model.match_tokens(tokens, [text for name in here for text in texts[name]], index)
        itm.append(match.itm)
        itc.append(match.itc)
        truth += [label for name in here for label in labels[name]]
        progress("match", len(index))
    scores, right = torch.cat(itm), torch.tensor(truth)
    return {
        "itm_auc": area_under_curve(scores, right),
        "itc_auc": area_under_curve(torch.cat(itc), right),
        "itm_accuracy": ((scores >= 0.5) == right).float().mean().item(),
        "pairs": len(right),
    }


def _read_pairs(path: Path) -> tuple[dict[str, list[str]], dict[str, list[bool]]]:
    """Texts and labels of each image."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    for number, line in enumerate(lines[1:], start=2):
        image, *rest = line.split("\t")
        if len(rest) != 2 or rest[1] not in ("match", "no-match"):
            raise UserError(f"{path}, line {number}: write image, caption and match or no-match, separated by tabs.")
        texts[image].append(rest[0])
        labels[image].append(rest[1] == "match")
    if not texts:
        raise UserError(f"{path} holds no pairs.")
    return texts, labels
