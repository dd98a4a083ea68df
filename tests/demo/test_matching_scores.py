"""Matching scores on scenes, by models whose answers are known."""

import torch

from tests.tiny_model import make_model
from vlp.data.shards import iterate_samples
from vlp.demo.matching_scores import flipped_relation_auc, web_text_scores
from vlp.demo.scene_captions import INVERSE, read_caption
from vlp.model.matching import Match


def test_a_model_that_reads_relations_gets_one_and_a_blind_one_a_half(scenes, monkeypatch):
    model, texts = make_model(), []

    def judge(right):
        def match(_tokens, captions, index):
            texts.append(captions)
            scores = torch.tensor([float(right(number)) for number in range(len(captions))])
            return Match(itc=torch.zeros(len(captions)), itm=scores)

        monkeypatch.setattr(model, "match_tokens", match)
        return flipped_relation_auc(model, f"{scenes}/00000.tar")

    assert judge(lambda number: number % 2 == 0) == {"relation_itm_auc": 1.0, "relation_itc_auc": 0.5}
    assert judge(lambda number: 0)["relation_itm_auc"] == 0.5
    for true, flipped in zip(texts[0][::2], texts[0][1::2], strict=True):
        (objects, relation), (others, inverse) = read_caption(true), read_caption(flipped)
        assert objects == others and INVERSE[relation] == inverse


def test_a_filter_drops_the_wrong_texts_below_a_threshold_that_keeps_most_right_ones(web_scenes, monkeypatch):
    model, texts = (
        make_model(),
        {sample.captions[0]: sample.info["truth"] for sample in iterate_samples(f"{web_scenes}/*.tar")},
    )

    def match(_tokens, captions, index):
        scores = torch.tensor([0.9 if texts[one]["text_right"] else 0.1 for one in captions])
        return Match(itc=scores, itm=scores if sharp else torch.zeros(len(captions)))

    monkeypatch.setattr(model, "match_tokens", match)
    sharp = True
    assert web_text_scores(model, f"{web_scenes}/*.tar") == {"web_itm_auc": 1.0, "web_wrong_dropped": 1.0}
    sharp = False
    assert web_text_scores(model, f"{web_scenes}/*.tar") == {"web_itm_auc": 0.5, "web_wrong_dropped": 0.0}
