"""NLVR2's network: it starts from one pretrained network, and its fast paths give what the plain one gives."""

import copy

import pytest
import torch

from tests.tiny_model import attend, make_images, make_model
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.finetuned import extend
from vlp.models.text_layers import PairAttention

# torch.compile reads .grad of tensors that have none; it hides the warning, which pytest turns into an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SENTENCES = ["a red circle", "a small blue square left of the large green star and a red circle", "white shape"]
PAIRS = make_images(6).view(3, 2, 3, 32, 32)
TEXTS = make_model().text_ids(SENTENCES, "[ENC]")


def make_pairs(**settings) -> Blip:
    """The tiny model's network, extended for pairs, with larger new weights."""
    torch.manual_seed(3)
    blip = extend(make_model(dropout=0.0, **settings).blip, "nlvr2")
    with torch.no_grad():
        for name, weight in blip.named_parameters():
            if ".merge." in name or name.startswith("pair_head"):
                weight.mul_(4)
    return blip


def logits_and_gradients(blip: Blip) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    blip.zero_grad()
    logits = blip.pair_logits(*TEXTS, blip.pair_memory(PAIRS))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in blip.named_parameters() if p.grad is not None}


def assert_same(one: Blip, other: Blip) -> None:
    (ours, gradients), (expected, wanted) = logits_and_gradients(one), logits_and_gradients(other)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        near = 1e-4 * wanted[name].abs().max().item() + 1e-7
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=near, msg=name)


@pytest.mark.parametrize("sharing", ["all", "all_but_cross_attention", "all_but_self_attention", "nothing"])
def test_both_cross_attentions_start_from_the_pretrained_one(sharing):
    pretrained = make_model(sharing=sharing).blip
    blip = extend(pretrained, "nlvr2")
    assert (pretrained.config.finetuned_for, blip.config.finetuned_for) == ("", "nlvr2")
    assert extend(blip, "nlvr2") is blip
    for layer, old in zip(blip.text_tower.layers, pretrained.text_tower.layers, strict=True):
        pair, one = layer.cross_attention.side("encoder"), old.cross_attention.side("encoder")
        for part in ("query", "key_value", "out"):
            for side in (0, 1):
                assert torch.equal(getattr(pair, part)[side].weight, getattr(one, part).weight)
                assert torch.equal(getattr(pair, part)[side].bias, getattr(one, part).bias)
        assert torch.equal(pair.norm.weight, one.norm.weight)
        decoder, old_decoder = layer.cross_attention.side("decoder"), old.cross_attention.side("decoder")
        assert torch.equal(decoder.query.weight, old_decoder.query.weight)
    with pytest.raises(UserError, match="finetuned for nlvr2 and cannot be finetuned for vqa"):
        extend(blip, "vqa")


def test_a_pair_of_equal_images_starts_as_the_pretrained_match():
    """Before training, the averaging layers see equal images as the pretrained network sees one."""
    model = make_model()
    blip = extend(model.blip, "nlvr2").eval()
    images = make_images(3)
    one, pair = model.blip.text_tower.layers[0], blip.text_tower.layers[0]
    tokens = model.blip.eval().encode_images(images)
    x = torch.randn(3, 5, 32)
    expected = attend(one.cross_attention.side("encoder"), x, tokens)
    found = attend(pair.cross_attention.side("encoder"), x, torch.stack([tokens, tokens], dim=1))
    torch.testing.assert_close(found, expected)


def test_the_order_of_the_two_images_counts():
    blip = make_pairs().eval()
    given = blip.pair_logits(*TEXTS, blip.pair_memory(PAIRS))
    swapped = blip.pair_logits(*TEXTS, blip.pair_memory(PAIRS.flip(1)))
    first = blip.text_tower.layers[-1].cross_attention.side("encoder")
    assert isinstance(first, PairAttention) and first.merge is not None
    assert (given - swapped).abs().max() > 1e-3


def test_several_sentences_of_a_pair_and_any_order():
    blip = make_pairs().eval()
    ids, mask = TEXTS
    memory = blip.pair_memory(PAIRS)
    index = torch.tensor([2, 0, 2])
    expected = blip.pair_logits(ids, mask, memory.select(index))
    torch.testing.assert_close(blip.pair_logits(ids, mask, memory, index), expected, rtol=1e-4, atol=1e-5)
    one = memory.select(torch.tensor([1]))
    expected = blip.pair_logits(ids, mask, memory, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(blip.pair_logits(ids, mask, one), expected, rtol=1e-4, atol=1e-5)


def test_the_network_for_cpus_gives_equal_logits_and_gradients():
    plain = make_pairs()
    assert_same(optimise_for_cpu(copy.deepcopy(plain)), plain)


def test_recomputed_activations_give_equal_gradients():
    plain = make_pairs()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpoint_activations()
    assert_same(recomputing, plain)


def test_compiled_layers_give_equal_gradients():
    plain = make_pairs()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, backend="eager")
    assert_same(compiled, plain)


def test_single_images_are_refused_where_pairs_are_needed():
    model = make_model()
    model.network = extend(model.blip, "nlvr2")
    with pytest.raises(UserError, match="takes pairs of images"):
        model.match(make_images(2), "a red circle")
    assert len(model.caption_texts(make_images(2))) == 2  # the decoder still reads single images
