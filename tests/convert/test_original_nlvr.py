"""Original NLVR checkpoints: both cross-attentions convert, and the network computes what the plain reference does."""

import pytest
import torch

from tests.convert import original_nlvr
from vlp.convert.command import to_ours
from vlp.data.tokenizer import load_tokenizer
from vlp.model import load_model
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.text_layers import PairAttention

SENTENCES = ["a red bar", "the left picture has a small blue square left of the large green star", "we see a ring"]


@pytest.fixture(scope="module")
def state(tokenizer_folder):
    return original_nlvr.random_state(len(load_tokenizer(str(tokenizer_folder))))


@pytest.fixture(scope="module")
def converted(state, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nlvr")
    training = {"text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    torch.save({"model": {**state, **training}, "epoch": 3}, folder / "nlvr.pth")
    return to_ours(str(folder / "nlvr.pth"), str(folder / "ours"), tokenizer=str(tokenizer_folder)), folder / "ours"


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "optimised for CPUs"])
def test_the_converted_network_gives_the_logits_of_the_reference(state, converted, fast):
    model = load_model(converted[1], device="cpu", precision="fp32")
    assert model.config.finetuned_for == "nlvr2"
    model = optimise_for_cpu(model) if fast else model
    size = original_nlvr.SIZE
    images = torch.randn(len(SENTENCES), 2, 3, size, size, generator=torch.Generator().manual_seed(5))
    ids, mask = model.text_ids(SENTENCES, "[ENC]")
    with model.inference():
        ours = model.blip.pair_logits(ids, mask, model.blip.pair_memory(images))
        left, right = (model.blip.encode_images(images[:, side]) for side in (0, 1))
        theirs = original_nlvr.logits(state, left, right, ids, mask)
        swapped = original_nlvr.logits(state, right, left, ids, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - swapped).abs().min() > 1e-3  # the reference tells the two images apart


def test_every_weight_is_used_and_projections_are_in_the_second_half(converted):
    lines, folder = converted
    assert not [line for line in lines if line.startswith("not used")], lines
    model = load_model(folder, device="cpu")
    merges = [one.merge is not None for one in model.blip.modules() if isinstance(one, PairAttention)]
    assert merges == [False] * 6 + [True] * 6
