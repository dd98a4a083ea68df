"""Recorded decoding steps give the captions of plain ones, batch after batch; on a GPU, as CUDA graphs."""

from functools import partial

import pytest
import torch

from tests.tiny_model import make_images, make_model
from vlp.config import DecodingConfig
from vlp.generation.caption_step import CaptionStepper
from vlp.generation.decode import start_generating
from vlp.generation.graph_step import GraphStepper, caption_stepper, record_graph
from vlp.generation.token_rules import TokenRules
from vlp.models.constant_weights import constant_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOW = [({"beams": 0, "top_p": 0.95}, 1), ({"beams": 0, "top_p": 0.95}, 3), ({"beams": 1}, 1), ({"beams": 4}, 2)]


class Recorder:
    """Records as on a GPU where there is one, else keeps the work itself; counts how often it recorded."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, work):
        self.recorded += 1
        return record_graph(work) if DEVICE == "cuda" else work


def start(model, images, decoding, number, make_stepper):
    """What waits for the captions, and the stepper."""
    with model.inference():
        memory = model.blip.text_tower.project_image(model.blip.encode_images(images.to(DEVICE)), "decoder")
        stepper = make_stepper(model.blip, memory, decoding.max_length)
        rules = TokenRules(decoding, model.tokenizer.sep_id)
        prompt = model.tokenizer.prompt_ids("a red")
        keys = [str(row) for row in range(len(images))]
        return start_generating(stepper, prompt, rules, keys, 0, number, DEVICE), stepper


def decode(*how):
    captions, stepper = start(*how)
    return captions(), stepper


@pytest.mark.parametrize(("how", "number"), HOW)
def test_recorded_steps_give_the_captions_of_plain_ones(how, number):
    model, record = make_model(), Recorder()
    model.network.to(DEVICE)
    decoding = DecodingConfig(**{"repetition_penalty": 1.1, "min_length": 0, "max_length": 14, **how})
    with constant_weights():
        for images in (make_images(12), make_images(12).flip(2, 3)):
            expected, _ = decode(model, images, decoding, number, CaptionStepper)
            found, stepper = decode(model, images, decoding, number, partial(GraphStepper, record=record))
            lengths = {len(one.ids) for group in expected for one in group}
            assert len(lengths) > 3 and stepper.places is not None  # groups left while others went on
            assert [[one.ids for one in group] for group in found] == [[one.ids for one in group] for group in expected]
            for ours, theirs in zip(found, expected, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
    assert record.recorded == 1  # for both batches


@pytest.mark.parametrize(("how", "number"), HOW)
def test_captions_may_be_asked_for_when_the_next_batch_has_started(how, number):
    model, record = make_model(), Recorder()
    model.network.to(DEVICE)
    decoding = DecodingConfig(**{"min_length": 0, "max_length": 14, **how})
    batches = [make_images(12), make_images(12).flip(2, 3), make_images(12).flip(0)]
    with constant_weights():
        expected = [decode(model, images, decoding, number, CaptionStepper)[0] for images in batches]
        make = partial(GraphStepper, record=record)  # one recorded step, and so one image memory, for all batches
        waiting = [start(model, images, decoding, number, make)[0] for images in batches]
        found = [captions() for captions in waiting]
    assert record.recorded == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert [[one.ids for one in group] for group in ours] == [[one.ids for one in group] for group in theirs]


def test_an_image_that_is_not_a_number_does_not_spoil_later_batches():
    model, record = make_model(), Recorder()
    model.network.to(DEVICE)
    decoding = DecodingConfig(beams=1, min_length=0, max_length=8)
    make = partial(GraphStepper, record=record)
    broken = make_images(4).float() / 255
    broken[2] = float("nan")
    with constant_weights():
        expected, _ = decode(model, make_images(4), decoding, 1, CaptionStepper)
        decode(model, broken, decoding, 1, make)
        found, _ = decode(model, make_images(4), decoding, 1, make)
    assert [one[0].ids for one in found] == [one[0].ids for one in expected]


def test_a_smaller_batch_gets_its_own_recording_and_few_are_kept():
    model, record = make_model(), Recorder()
    model.network.to(DEVICE)
    decoding = DecodingConfig(beams=1, min_length=0, max_length=8)
    make = partial(GraphStepper, record=record)
    with constant_weights():
        for count in (6, 5, 4, 3, 2, 6, 2):
            expected, _ = decode(model, make_images(count), decoding, 1, CaptionStepper)
            found, _ = decode(model, make_images(count), decoding, 1, make)
            assert [one[0].ids for one in found] == [one[0].ids for one in expected]
    assert record.recorded == 6  # that of 6 was dropped for that of 2; 2 is still there
    decode(model, make_images(2), decoding, 1, make)
    assert record.recorded == 7  # nothing is kept outside of a block


def test_steps_are_recorded_on_gpus_alone():
    model = make_model()
    with constant_weights(), model.inference():
        memory = model.blip.text_tower.project_image(model.blip.encode_images(make_images(2)), "decoder")
        assert isinstance(caption_stepper(model.blip, memory, 8), CaptionStepper)
