"""How good a filter was on synthetic scenes, whose web texts are known to be right or wrong."""

import torch

from vlp.data.scenes import caption_is_exact
from vlp.data.score_tables import read_table
from vlp.data.shards import expand_shards, iterate_samples
from vlp.metrics import area_under_curve


def filter_quality(shards: str | list[str], threshold: float = 0.5) -> dict[str, float]:
    """Compare the score tables of scenes with their truth.

    Returns:
        `threshold`, as given; `filter_auc` of the ITM probability over web texts; `web_texts_kept_right` and
        `web_texts_kept_wrong`, the shares of the right and of the wrong web texts at or above the threshold;
        `synthetic_kept`, the share of synthetic texts kept; `synthetic_exact` and `synthetic_kept_exact`, the shares
        of all and of the kept synthetic texts that say exactly what the scene shows. A share of no texts is nan.
    """
    scores, right, kept, exact = [], [], [], []
    for shard in expand_shards(shards):
        truths = {sample.key: sample.info["truth"] for sample in iterate_samples([shard], None)}
        for row in read_table(shard).to_pylist():
            truth = truths[row["key"]]
            if row["source"] == "web":
                scores.append(row["itm"])
                right.append(truth["text_right"])
            else:
                kept.append(row["itm"] >= threshold)
                exact.append(caption_is_exact(row["text"], truth))
    score, label = torch.tensor(scores), torch.tensor(right)
    kept_web = (score >= threshold).float()
    believed, exactly = torch.tensor(kept, dtype=torch.bool), torch.tensor(exact, dtype=torch.float32)
    return {
        "threshold": threshold,
        "filter_auc": area_under_curve(score, label),
        "web_texts_kept_right": kept_web[label].mean().item(),
        "web_texts_kept_wrong": kept_web[~label].mean().item(),
        "synthetic_kept": believed.float().mean().item(),
        "synthetic_exact": exactly.mean().item(),
        "synthetic_kept_exact": exactly[believed].mean().item(),
    }
