"""AUC on flipped relations: both texts of a scene have the same words but for the relation."""

import torch

from tests.tiny_model import make_model
from vlp.demo.relations import flipped_relation_auc
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
