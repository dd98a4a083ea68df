"""Matching: how well a model separates matching from non-matching texts on labeled image-text pairs."""

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
    """Score a model on labeled image-text pairs.

    Args:
        images: folder of the images.
        pairs: a tab-separated file with a header line and the columns image, caption and label (`match` or `no-match`).
        batch_size: images at once, each with all of its texts.

    Returns:
        `itm_auc` and `itc_auc`, the areas under the ROC curves of the ITM probability and of the cosine; `itm_accuracy`
        at a threshold of 0.5; `pairs`.

    Raises:
        UserError: a file is missing or unreadable, or `pairs` does not have this format.
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
    """The texts and labels of each image."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    for number, line in enumerate(lines[1:], start=2):
        image, *rest = line.split("\t")
        if len(rest) != 2 or rest[1] not in ("match", "no-match"):
            raise UserError(f"{path}, line {number} must be: image, caption, match or no-match, separated by tabs.")
        texts[image].append(rest[0])
        labels[image].append(rest[1] == "match")
    if not texts:
        raise UserError(f"{path} contains no pairs.")
    return texts, labels
