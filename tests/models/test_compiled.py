"""Compiled blocks: losses, gradients and captions equal those of plain blocks, with few programs."""

import pytest
import torch
from torch import nn

from tests.models.test_finetuned import QUESTIONS, vqa_model
from tests.tiny_model import make_images, make_model
from vlp.config import DecodingConfig, ObjectiveConfig, RunConfig
from vlp.data.batch import Batch
from vlp.errors import UserError
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.tasks.pretrain import PretrainTask

# torch.compile reads .grad of tensors that have none; it hides the warning, which pytest turns into an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in PyTorch itself, before 2.12
]
CAPTIONS = ["a red circle", "a small blue square left of the large green star", "white shape", "a star on the right"]


def pretraining_task() -> tuple[PretrainTask, Batch]:
    model = optimise_for_cpu(make_model(dropout=0.0))
    task = PretrainTask(RunConfig(objective=ObjectiveConfig(queue_size=8)), model.blip, model.tokenizer)
    ids, mask = model.tokenizer.encode(CAPTIONS, 16)
    numbers = torch.arange(len(CAPTIONS))
    return task, Batch(make_images(len(CAPTIONS)), CAPTIONS, ids, mask, numbers, numbers, CAPTIONS)


def losses_and_gradients(task: PretrainTask, batch: Batch) -> tuple[dict, dict]:
    for step in range(2):  # in the second step the twin has moved and the queue has entries
        task.zero_grad()
        task.start_step(step, 1.0)
        losses, metrics = task(batch)
        sum(losses.values()).backward()
    gradients = {name: one.grad for name, one in task.named_parameters() if one.grad is not None}
    return {name: value.detach() for name, value in {**losses, **metrics}.items()}, gradients


@pytest.mark.parametrize(
    ("checkpointing", "backend"),
    # "eager" only captures programs. "aot_eager" does everything except generating code, which takes a minute.
    [(False, "eager"), (True, "aot_eager")],
)
def test_a_compiled_step_is_the_plain_one(checkpointing, backend):
    plain, batch = pretraining_task()
    compiled, _ = pretraining_task()
    if checkpointing:
        compiled.model.checkpoint_activations()
    compile_blocks(compiled, backend=backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses, gradients = losses_and_gradients(compiled, batch)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 5  # the uses of the image block and of the text layer
    assert not torch._dynamo.utils.counters["graph_break"]
    expected_losses, expected_gradients = losses_and_gradients(plain, batch)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 60
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_generated_code_for_an_image_block_is_correct():
    encoder = make_model().blip.image_encoder
    images = make_images(3)
    expected = encoder(images)
    compile_blocks(encoder)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_a_tower_without_blocks_is_rejected():
    encoder = make_model().blip.image_encoder
    encoder.tower = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="compile: Sequential has no blocks"):
        compile_blocks(encoder)


@pytest.mark.parametrize("beams", [0, 3])
def test_captions_of_compiled_blocks_are_the_same_with_few_programs(beams):
    plain, compiled = make_model(), make_model()
    compile_blocks(compiled.blip, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    decoding = DecodingConfig(beams=beams, max_length=16)
    for images in (5, 3, 4, 2):  # removed rows and longer captions need no programs of their own
        texts = compiled.caption_texts(make_images(images), decoding)
        assert texts == plain.caption_texts(make_images(images), decoding)
        programs = torch._dynamo.utils.counters["frames"]["ok"]
        assert programs <= 10
    assert compiled.caption(make_images(7), decoding) and torch._dynamo.utils.counters["frames"]["ok"] == programs


def test_answers_of_compiled_blocks_are_the_same():
    """Their decoder reads a memory with padding."""
    plain, compiled = vqa_model(), vqa_model()
    compile_blocks(compiled.blip, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"beams": 2, "min_length": 0, "max_length": 6}
    assert compiled.answer(make_images(4), QUESTIONS, **settings) == plain.answer(make_images(4), QUESTIONS, **settings)
    assert not torch._dynamo.utils.counters["graph_break"]
