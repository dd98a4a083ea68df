"""`Model.compare` and `vlp compare`: probabilities of sentences about pairs, in batches, and clear refusals."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.tiny_model import make_images, make_model
from vlp.cli.main import app
from vlp.errors import UserError
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.finetuned import extend

SENTENCES = ["a red circle", "both have a small blue square left of a star", "a white shape is near", "star"]
IMAGES = make_images(8)
LEFT, RIGHT = list(IMAGES[:4]), list(IMAGES[4:])


@pytest.fixture(scope="module")
def model():
    made = make_model()
    made.network = extend(made.blip, "nlvr2")
    made.config = made.blip.config
    with torch.no_grad():
        for weight in made.blip.pair_head.parameters():
            weight.mul_(5)
    return made


def plain(model, row: int, left=LEFT, right=RIGHT) -> float:
    """The probability of one sentence, from the network itself."""
    ids, mask = model.text_ids([SENTENCES[row]], "[ENC]")
    with model.inference():
        memory = model.blip.pair_memory(torch.stack([left[row], right[row]])[None])
        return model.blip.pair_logits(ids, mask, memory).softmax(-1)[0, 1].item()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_probabilities_do_not_depend_on_batches(model, batch_size):
    expected = torch.tensor([plain(model, row) for row in range(4)])
    found = model.compare(LEFT, RIGHT, SENTENCES, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    swapped = model.compare(RIGHT, LEFT, SENTENCES)
    assert (found - swapped).abs().max() > 1e-3


def test_one_pair_meets_all_sentences_and_one_sentence_all_pairs(model):
    one_pair = model.compare(LEFT[0], RIGHT[0], SENTENCES)
    torch.testing.assert_close(one_pair, model.compare([LEFT[0]] * 4, [RIGHT[0]] * 4, SENTENCES))
    one_sentence = model.compare(LEFT, RIGHT, SENTENCES[1])
    torch.testing.assert_close(one_sentence, model.compare(LEFT, RIGHT, [SENTENCES[1]] * 4))
    assert model.compare([], [], []).shape == (0,)


def test_wrong_numbers_and_other_models_are_refused(model):
    with pytest.raises(UserError, match="as many left as right images, not 4 and 3"):
        model.compare(LEFT, RIGHT[:3], SENTENCES)
    with pytest.raises(UserError, match="a sentence for each pair, or one of either, not 3 and 4"):
        model.compare(LEFT, RIGHT, SENTENCES[:3])
    with pytest.raises(UserError, match="was not finetuned for nlvr2, so it cannot compare images"):
        make_model().compare(LEFT, RIGHT, SENTENCES)


def test_the_command_compares_two_files_with_a_saved_model(model, tmp_path):
    model.save(tmp_path / "model")
    for number in (0, 1):
        Image.fromarray(IMAGES[number].permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    arguments = ["compare", str(tmp_path / "model"), str(tmp_path / "0.png"), str(tmp_path / "1.png"), SENTENCES[0]]
    result = CliRunner().invoke(app, [*arguments, "--json", "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    expected = optimise_for_cpu(model).compare(IMAGES[0], IMAGES[1], SENTENCES[0]).item()
    assert json.loads(result.output)["true"] == pytest.approx(expected, abs=1e-4)
