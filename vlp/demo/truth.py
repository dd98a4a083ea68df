"""Captions and filters against the truth of synthetic scenes."""

import tempfile
from pathlib import Path

import torch

from vlp.capfilt.query import select_rows
from vlp.capfilt.rules import parse_rules
from vlp.data.score_tables import NAME, check_table, read_table, table_path
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import caption_is_exact
from vlp.evaluation.captioning import Captioned
from vlp.evaluation.metrics import area_under_curve


def exact_caption_share(captions: list[Captioned]) -> dict[str, float]:
    """`caption_exact`: the share (0 to 1) of captions that name everything in their scene correctly."""
    exact = [caption_is_exact(one.caption, one.info["truth"]) for one in captions]
    return {"caption_exact": sum(exact) / len(exact)}


def filter_quality(shards: str | list[str], rules: str = "itm >= 0.5", name: str = NAME) -> dict[str, float | str]:
    """Compare the score tables of scenes, SHARD.NAME.parquet, with their truth.

    Returns:
        `rules`, as given; `filter_auc` of the ITM probability over web texts; `web_texts_kept_right` and
        `web_texts_kept_wrong`, the shares of the right and of the wrong web texts that the rules keep;
        `synthetic_kept`, the share of synthetic texts kept; `synthetic_exact` and `synthetic_kept_exact`, the shares
        of all and of the kept synthetic texts that say exactly what the scene shows. A share of no texts is nan.
    """
    scores, right, kept_web, kept, exact = [], [], [], [], []
    paths = expand_shards(shards)
    for shard in paths:
        check_table(shard, name)
    with tempfile.TemporaryDirectory() as spill:
        chosen = select_rows([str(table_path(shard, name)) for shard in paths], parse_rules(rules), {}, Path(spill))
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
                    kept.append(number in stays)
                    exact.append(caption_is_exact(row["text"], truth))
    score, label, believed_web = torch.tensor(scores), torch.tensor(right), torch.tensor(kept_web).float()
    believed, exactly = torch.tensor(kept, dtype=torch.bool), torch.tensor(exact, dtype=torch.float32)
    return {
        "rules": rules,
        "filter_auc": area_under_curve(score, label),
        "web_texts_kept_right": believed_web[label].mean().item(),
        "web_texts_kept_wrong": believed_web[~label].mean().item(),
        "synthetic_kept": believed.float().mean().item(),
        "synthetic_exact": exactly.mean().item(),
        "synthetic_kept_exact": exactly[believed].mean().item(),
    }
