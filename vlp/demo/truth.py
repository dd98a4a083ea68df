"""Scores captions and filters against the ground truth of synthetic scenes."""

import tempfile
from pathlib import Path

import torch

from vlp.capfilt.query import select_rows
from vlp.capfilt.rules import parse_rules
from vlp.data.find_tables import open_score_table
from vlp.data.score_tables import NAME, check_table, read_table, table_path
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.demo.matching_scores import wrong_dropped
from vlp.demo.scene_captions import caption_is_exact
from vlp.evaluation.captioning import Captioned
from vlp.evaluation.metrics import area_under_curve


def exact_caption_share(captions: list[Captioned]) -> dict[str, float]:
    """`caption_exact`: the share (0 to 1) of captions that describe their scene exactly."""
    exact = [caption_is_exact(one.caption, one.info["truth"]) for one in captions]
    return {"caption_exact": sum(exact) / len(exact)}


def filter_quality(shards: str | list[str], rules: str = "itm >= 0.5", name: str = NAME) -> dict[str, float | str]:
    """Compare the score tables of scenes, SHARD.NAME.parquet, with the ground truth.

    Returns:
        `rules`: the argument.
        `filter_auc`: AUC of the ITM probability on web texts.
        `web_wrong_dropped`: the share of wrong web texts below the ITM probability that keeps 92% of the right ones.
        `web_texts_kept_right`, `web_texts_kept_wrong`: the shares of correct and of wrong web texts kept by the rules.
        `synthetic_kept`: the share of synthetic texts that the rules keep.
        `synthetic_exact`, `synthetic_kept_exact`: the shares of exact captions among all and among the kept synthetic
            texts.
        A share of zero texts is nan.
    """
    scores, right, kept_web, kept_synthetic, exact = [], [], [], [], []
    paths = expand_shards(shards)
    for shard in paths:
        check_table(shard, name)
    with tempfile.TemporaryDirectory() as spill:
        tables = [open_score_table(table_path(shard, name)) for shard in paths]
        chosen = select_rows(tables, parse_rules(rules), {}, Path(spill))
        for shard, (_, numbers) in zip(paths, chosen, strict=True):
            stays = set(numbers.tolist())
            truths = {sample.key: sample.info["truth"] for sample in iterate_samples([shard], None)}
            for number, row in enumerate(read_table(shard, name).to_pylist()):
                truth = truths[row["key"]]
                if row["source"] == "web":
                    scores.append(row["itm"])
                    right.append(truth["text_right"])
                    kept_web.append(number in stays)
                else:
                    kept_synthetic.append(number in stays)
                    exact.append(caption_is_exact(row["text"], truth))
    score, label, web_kept = torch.tensor(scores), torch.tensor(right), torch.tensor(kept_web).float()
    kept, is_exact = torch.tensor(kept_synthetic, dtype=torch.bool), torch.tensor(exact, dtype=torch.float32)
    return {
        "rules": rules,
        "filter_auc": area_under_curve(score, label),
        "web_wrong_dropped": wrong_dropped(score[label].tolist(), score[~label].tolist()),
        "web_texts_kept_right": web_kept[label].mean().item(),
        "web_texts_kept_wrong": web_kept[~label].mean().item(),
        "synthetic_kept": kept.float().mean().item(),
        "synthetic_exact": is_exact.mean().item(),
        "synthetic_kept_exact": is_exact[kept].mean().item(),
    }
