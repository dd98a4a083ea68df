"""Networks of finetuning: copies of the pretrained weights, the same outputs at the start, and a file that loads."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_model import make_images, make_model
from vlp.errors import UserError
from vlp.model import Model, load_model
from vlp.models.blip import Blip
from vlp.models.finetuned import extend

QUESTIONS = ["is it red", "what is above the large circle", "where", "is the small square left of the star"]


def vqa_model(image_width=32, **changes) -> Model:
    """A tiny model extended for VQA, whose image encoder may have another width than its text tower."""
    model = make_model(**changes)
    config = replace(model.config, image_encoder=replace(model.config.image_encoder, width=image_width))
    torch.manual_seed(1)
    blip = model.blip if image_width == 32 else Blip(config)
    extended = extend(blip, "vqa")
    with torch.no_grad():  # the answers must depend on the question
        for layer in extended.text_tower.layers:
            layer.cross_attention["decoder"].key_value.weight.normal_(std=0.5)
            layer.cross_attention["decoder"].out.weight.normal_(std=0.5)
    return Model(extended, model.tokenizer, "fp32", decoding=model.decoding)


@pytest.mark.parametrize("sharing", ["all", "all_but_cross_attention", "all_but_self_attention", "nothing"])
def test_vqa_starts_from_the_pretrained_weights(sharing):
    pretrained = make_model(sharing=sharing).blip.eval()
    before = {name: weight.clone() for name, weight in pretrained.state_dict().items()}
    network = extend(pretrained, "vqa")
    assert network.config.finetuned_for == "vqa" and network.config.text_tower.sharing == "nothing"
    assert not network.training
    ids, mask = torch.randint(5, 60, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    tokens = torch.randn(2, 5, 32)
    for side, use in (("encoder", "match"), ("decoder", "decode")):
        outputs = [
            getattr(one.text_tower, use)(ids, mask, one.text_tower.project_image(tokens, side))
            for one in (pretrained, network)
        ]
        torch.testing.assert_close(*outputs)
    with torch.no_grad():  # copies: training one changes nothing of the other
        for weight in network.parameters():
            weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in pretrained.state_dict().items())


def test_a_finetuned_network_is_extended_no_further():
    network = extend(make_model().blip, "vqa")
    assert extend(network, "vqa") is network
    network.config = replace(network.config, finetuned_for="nlvr2")
    with pytest.raises(UserError, match="was finetuned for nlvr2 and cannot be finetuned for vqa"):
        extend(network, "vqa")


@pytest.mark.parametrize("image_width", [32, 24])
def test_a_vqa_model_answers_after_saving_whatever_the_widths(tmp_path, image_width):
    model = vqa_model(image_width)
    images = make_images(4)
    answers = model.answer(images, QUESTIONS, min_length=0, max_length=8)
    assert len(set(answers)) > 1
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model", device="cpu", precision="fp32")
    assert again.answer(images, QUESTIONS, min_length=0, max_length=8) == answers


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_do_not_depend_on_the_other_questions_of_a_batch(beams):
    """Shorter questions are padded, and the decoder does not read the padding."""
    model = vqa_model()
    images = make_images(4)
    settings = {"beams": beams, "min_length": 0, "max_length": 8}
    alone = [model.answer(images[row], QUESTIONS[row], **settings)[0] for row in range(4)]
    assert model.answer(images, QUESTIONS, **settings) == alone
    assert model.answer(images, QUESTIONS, batch_size=3, **settings) == alone


def test_a_model_that_was_not_finetuned_says_what_to_do():
    with pytest.raises(UserError, match=r"cannot answer questions.*vlp finetune configs/vqa.yaml start_from=MODEL"):
        make_model(sharing="nothing").answer(make_images(1), "is it red")


def test_a_network_of_a_task_does_not_pretend_to_do_what_pretraining_trained():
    model, images = vqa_model(), make_images(1)
    uses = (
        lambda: model.embed_texts("a star"),
        lambda: model.embed_images(images),
        lambda: model.match(images, "a star"),
        lambda: model.caption_texts(images),
    )
    for use in uses:
        with pytest.raises(UserError, match="was finetuned for vqa, so it cannot"):
            use()
