"""Checkpoints of the original BLIP code: they give the scores of `transformers`, and unused weights are listed."""

import pytest
import torch

from tests.convert.blip_models import TEXTS, ids_of, make_theirs, pictures
from vlp.config import DecodingConfig
from vlp.convert.command import to_ours
from vlp.data.tokenizer import load_tokenizer
from vlp.model import load_model

WIDE = {"width": 128, "layers": 2, "heads": 2, "image_size": 32, "patch": 16}  # the original's heads are 64 wide
ORIGINAL_NAMES = [
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("layer_norm", "norm"),
]


def as_original(state):
    """A state dict of `transformers`' BLIP with the names of the original code."""
    renamed = {}
    for name, weight in state.items():
        for theirs, original in ORIGINAL_NAMES if name.startswith("vision_model") else []:
            name = name.replace(theirs, original)
        renamed[name] = weight
    return renamed


@pytest.fixture
def original(tokenizer_folder, tmp_path):
    """Write a checkpoint as the original code does and convert it; returns the model and the lines of the command."""

    def make(state):
        training = {"temp": torch.tensor(0.04), "image_queue": torch.zeros(4, 5), "ptr_queue": torch.zeros(1)}
        training |= {
            "visual_encoder_m.cls_token": torch.zeros(1),
            "text_encoder.embeddings.position_ids": torch.arange(3),
        }
        torch.save({"model": {**state, **training}, "epoch": 3}, tmp_path / "blip.pth")
        lines = to_ours(str(tmp_path / "blip.pth"), str(tmp_path / "ours"), tokenizer=str(tokenizer_folder))
        model = load_model(tmp_path / "ours", device="cpu", precision="fp32")
        model.blip.image_encoder.tower.apply(_eps_of_transformers)
        assert model.blip.temperature.item() == pytest.approx(0.04)
        return model, lines

    return make


def _eps_of_transformers(module):
    if isinstance(module, torch.nn.LayerNorm):
        module.eps = 1e-5  # the original's is 1e-6


def test_an_original_retrieval_checkpoint(original, tokenizer_folder):
    theirs = make_theirs("retrieval", load_tokenizer(str(tokenizer_folder)), **WIDE)
    ours, lines = original(as_original(theirs.state_dict()))
    images = pictures(ours, len(TEXTS))
    ids, mask = ids_of(ours, TEXTS, "[ENC]")
    with torch.no_grad():
        logits = theirs(pixel_values=images, input_ids=ids, attention_mask=mask, use_itm_head=True)[0]
    torch.testing.assert_close(ours.match(images, TEXTS).itm, logits.softmax(1)[:, 1], atol=1e-4, rtol=1e-4)
    assert not [line for line in lines if line.startswith("not used")], lines


def test_an_original_captioning_checkpoint(original, tokenizer_folder):
    theirs = make_theirs("captioning", load_tokenizer(str(tokenizer_folder)), **WIDE)
    ours, lines = original(as_original(theirs.state_dict()))
    images = pictures(ours, 8)
    expected = theirs.generate(pixel_values=images, num_beams=3, max_length=12)
    texts = [ours.tokenizer.decode(row.tolist()) for row in expected]
    assert ours.caption_texts(images, beams=3, max_length=12, min_length=0, prompt="") == texts
    assert not [line for line in lines if line.startswith("not used")], lines
    assert ours.decoding == DecodingConfig(prompt="a picture of")


def test_an_original_vqa_checkpoint(original, tokenizer_folder):
    theirs = make_theirs("vqa", load_tokenizer(str(tokenizer_folder)), **WIDE)
    ours, _ = original(as_original(theirs.state_dict()))
    assert ours.config.text_tower.sharing == "nothing" and ours.config.finetuned_for == "vqa"
    images = pictures(ours, 4)
    for image in images:
        ids, mask = ours.tokenizer.encode(["is it red"], 30, first="[ENC]", multiple=1)
        made = theirs.generate(input_ids=ids, attention_mask=mask.long(), pixel_values=image[None], max_length=8)
        answer = ours.answer([image], ["is it red"], beams=1, max_length=8, min_length=0)
        assert answer == [ours.tokenizer.decode(made[0].tolist())]


def test_an_original_pretraining_checkpoint_fills_both_sides(original, tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    retrieval = make_theirs("retrieval", tokenizer, **WIDE)
    captioning = make_theirs("captioning", tokenizer, **WIDE)
    captioning.vision_model.load_state_dict(retrieval.vision_model.state_dict())
    encoder = retrieval.text_encoder.state_dict()  # all but self-attention is shared
    shared = {name: weight for name, weight in encoder.items() if ".attention." not in name}
    captioning.text_decoder.bert.load_state_dict(shared, strict=False)
    captioning.tie_weights()
    state = {**as_original(captioning.state_dict()), **as_original(retrieval.state_dict())}
    ours, lines = original(state)
    assert not lines, lines
    assert ours.decoding == DecodingConfig()
    images = pictures(ours, 8)
    expected = captioning.generate(pixel_values=images, num_beams=1, max_length=12, do_sample=False)
    texts = [ours.tokenizer.decode(row.tolist()) for row in expected]
    assert ours.caption_texts(images, beams=1, max_length=12, min_length=0, prompt="") == texts
    with torch.no_grad():
        ids, mask = ids_of(ours, ["a bar"] * 8, "[ENC]")
        logits = retrieval(pixel_values=images, input_ids=ids, attention_mask=mask, use_itm_head=True)[0]
    torch.testing.assert_close(ours.match(images, "a bar").itm, logits.softmax(1)[:, 1], atol=1e-4, rtol=1e-4)
