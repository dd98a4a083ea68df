"""Converted BLIP models: the same scores and captions as before, and the same weights after a round trip."""

import io
import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipConfig, BlipTextModel

from vlp.config import DecodingConfig
from vlp.config_model import ModelConfig
from vlp.convert.blip import from_config, transformers_table
from vlp.convert.command import from_ours, to_ours
from vlp.convert.decoding import captioner_decoding
from vlp.convert.tables import to_our_names
from vlp.data.shard_writer import ShardWriter
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model, load_model
from vlp.models.blip import Blip
from vlp.training.loop import train

CLASSES = {
    "captioning": transformers.BlipForConditionalGeneration,
    "retrieval": transformers.BlipForImageTextRetrieval,
    "vqa": transformers.BlipForQuestionAnswering,
    "features": transformers.BlipModel,
}
SIZES = [
    {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "patch": 16},
    {"width": 48, "layers": 3, "heads": 4, "image_size": 48, "patch": 8},
]
WORDS = ("small", "large"), ("red", "blue", "green", "white"), ("circle", "box", "star", "bar", "ring")
TEXTS = ["a small red circle", "there is a large blue star above a green box", "a bar", "we see a white ring"]


def redraw(network, deviation=0.15):
    """Redraw the weights: those of a new vision model are so small (1e-10) that the image would have no effect."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(around + deviation * torch.randn_like(parameter))
    return network.eval()


def make_theirs(kind, tokenizer, width, layers, heads, image_size, patch):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "encoder_hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 40,
        "bos_token_id": tokenizer.dec_id,
        "pad_token_id": tokenizer.pad_id,
        "sep_token_id": tokenizer.sep_id,
        "eos_token_id": tokenizer.sep_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch,
    }
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24)
    theirs = redraw(CLASSES[kind](config))
    theirs.tie_weights()
    return theirs


@pytest.fixture
def both(tokenizer_folder, tmp_path):
    """A `transformers` BLIP, the same model converted by `vlp convert`, and the lines that the command prints."""
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(kind, size=SIZES[0]):
        theirs = make_theirs(kind, tokenizer, **size)
        theirs.save_pretrained(tmp_path / kind)
        tokenizer.write_files(tmp_path / kind)
        lines = to_ours(str(tmp_path / kind), str(tmp_path / f"{kind}-ours"))
        return theirs, load_model(tmp_path / f"{kind}-ours", device="cpu", precision="fp32"), lines

    return make


def pictures(model: Model, count):
    torch.manual_seed(1)
    return torch.randn(count, 3, model.image_size, model.image_size)


def ids_of(model: Model, texts, first):
    ids, mask = model.tokenizer.encode(texts, 30, first=first)
    return ids, mask.long()


@pytest.mark.parametrize("size", SIZES)
def test_captioning_gives_their_image_tokens_and_logits(both, size):
    theirs, ours, _ = both("captioning", size)
    images = pictures(ours, len(TEXTS))
    ids, mask = ids_of(ours, TEXTS, "[DEC]")
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids, attention_mask=mask)
        tokens = ours.blip.encode_images(images)
        logits = ours.blip.caption_logits(ids, mask.bool(), ours.blip.text_tower.project_image(tokens, "decoder"))
    assert tokens.std() > 0.1 and logits.std() > 0.1
    torch.testing.assert_close(tokens, expected.image_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[mask.bool()], expected.logits[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_retrieval_gives_their_similarities_and_matching_logits(both, size):
    theirs, ours, _ = both("retrieval", size)
    images = pictures(ours, len(TEXTS))
    words, mask = ids_of(ours, TEXTS, "[CLS]")
    pairs, _ = ids_of(ours, TEXTS, "[ENC]")  # transformers feeds [CLS] here, BLIP [ENC]
    with torch.no_grad():
        cosines = theirs(pixel_values=images, input_ids=words, attention_mask=mask, use_itm_head=False)[0]
        logits = theirs(pixel_values=images, input_ids=pairs, attention_mask=mask, use_itm_head=True)[0]
        memory = ours.blip.text_tower.project_image(ours.blip.encode_images(images))
        mine = ours.blip.match_logits(pairs, mask.bool(), memory)
    torch.testing.assert_close(ours.embed_images(images) @ ours.embed_texts(TEXTS).T, cosines, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine, logits, atol=1e-4, rtol=1e-4)
    match = ours.match(images, TEXTS)
    torch.testing.assert_close(match.itm, logits.softmax(dim=1)[:, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(match.itc, cosines.diagonal(), atol=1e-4, rtol=1e-4)


def test_a_retrieval_evaluation_equals_a_plain_script_with_their_model(both, tmp_path):
    theirs, ours, _ = both("retrieval")
    torch.manual_seed(3)
    images = torch.randint(0, 256, (20, 3, ours.image_size, ours.image_size), dtype=torch.uint8)
    texts = [" ".join(words) for words in itertools.product(*WORDS)]
    with ShardWriter(tmp_path / "shards") as writer:
        for number, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
            captions = texts[2 * number : 2 * number + 2]
            writer.write(f"{number:02d}", png.getvalue(), "png", None, {"captions": captions})
    found = evaluate_retrieval(ours, f"{tmp_path}/shards/*.tar", rerank=8, settings=EvaluationSettings(6))

    processor = transformers.BlipImageProcessor(size={"height": ours.image_size, "width": ours.image_size})
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    (words, mask), (pairs, _) = ids_of(ours, texts, "[CLS]"), ids_of(ours, texts, "[ENC]")
    with torch.no_grad():
        cosines = theirs(pixel_values=pixels, input_ids=words, attention_mask=mask, use_itm_head=False)[0]
        logits = torch.stack(  # [images, texts]
            [
                theirs(pixel_values=one.expand(40, -1, -1, -1), input_ids=pairs, attention_mask=mask)[0][:, 1]
                for one in pixels
            ]
        )
    for way, scores, itm, own in (
        ("image", cosines, logits, torch.eye(20).repeat_interleave(2, dim=1)),
        ("text", cosines.T, logits.T, torch.eye(20).repeat_interleave(2, dim=0)),
    ):
        best = scores.topk(8, dim=1)
        total = scores - 100  # as in BLIP's script, what is not among the best comes last
        total.scatter_(1, best.indices, best.values + itm.gather(1, best.indices))
        order = total.argsort(dim=1, descending=True)
        ranks = own.bool().gather(1, order).int().argmax(dim=1) + 1
        rows = [row for row in found.predictions if row["query"] == way]
        assert [row["rank"] for row in rows] == ranks.tolist()
        for row, expected in zip(rows, total.sort(dim=1, descending=True).values[:, :8], strict=True):
            assert [one["score"] for one in row["best"][:8]] == pytest.approx(expected.tolist(), abs=2e-4)
        short = {"image": "i2t", "text": "t2i"}[way]
        assert found.metrics[f"{short}_r5"] == pytest.approx((ranks <= 5).float().mean().item())
        assert found.metrics[f"{short}_mean_rank"] == pytest.approx(ranks.float().mean().item())


def test_features_keep_projection_and_temperature_and_list_unused_weights(both):
    theirs, ours, lines = both("features")
    images = pictures(ours, 3)
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=images)
        vectors = theirs.visual_projection(theirs.vision_model(pixel_values=images).last_hidden_state[:, 0])
    assert features is not None
    expected = torch.nn.functional.normalize(vectors, dim=-1)
    torch.testing.assert_close(ours.embed_images(images), expected, atol=1e-4, rtol=1e-4)
    assert ours.blip.temperature.item() == pytest.approx((-theirs.logit_scale).exp().item(), rel=1e-5)
    assert "not used: text_model.pooler.dense" in lines


SEARCHES = [
    {"beams": 1, "min_length": 0, "max_length": 12},
    {"beams": 1, "min_length": 8, "max_length": 14, "repetition_penalty": 1.3, "prompt": "a small"},
    {"beams": 3, "min_length": 0, "max_length": 12},
    {"beams": 3, "min_length": 8, "max_length": 14, "repetition_penalty": 1.3, "prompt": "there is"},
    {"beams": 3, "min_length": 4, "max_length": 16, "no_repeat_ngram": 2, "length_penalty": 0.5},
    {"beams": 1, "min_length": 4, "max_length": 16, "banned_words": ["red", "blue star"], "no_repeat_ngram": 1},
]


@pytest.mark.parametrize("settings", SEARCHES)
def test_greedy_and_beam_captions_equal_theirs_for_32_images(both, settings):
    theirs, ours, _ = both("captioning")
    images = pictures(ours, 32)
    decoding = DecodingConfig(**settings)
    words = torch.tensor([ours.tokenizer.prompt_ids(decoding.prompt)])
    banned = ours.tokenizer.word_ids(decoding.banned_words)
    expected = theirs.generate(
        pixel_values=images,
        input_ids=torch.cat([words, torch.tensor([[ours.tokenizer.sep_id]])], dim=1).repeat(32, 1),  # it cuts the last
        num_beams=decoding.beams,
        do_sample=False,
        min_length=decoding.min_length,
        max_length=decoding.max_length,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        bad_words_ids=banned or None,
    )
    texts = [ours.tokenizer.decode(row[words.shape[1] :].tolist()) for row in expected]
    assert len(set(texts)) > 8, "the images must matter"
    assert ours.caption_texts(images, decoding) == texts


def test_answers_equal_theirs(both):
    theirs, ours, lines = both("vqa")
    questions = ["is it red", "what is above the star", "is it a small ring", "where"] * 8
    images = pictures(ours, 32)
    for beams in (1, 3):
        expected = []
        for image, question in zip(images, questions, strict=True):  # one at a time: theirs reads padding
            ids, mask = ours.tokenizer.encode([question], 30, first="[ENC]", multiple=1)
            made = theirs.generate(
                input_ids=ids, attention_mask=mask.long(), pixel_values=image[None], num_beams=beams, max_length=8
            )
            expected.append(ours.tokenizer.decode(made[0].tolist()))
        assert len(set(expected)) > 8
        assert ours.answer(images, questions, beams=beams, max_length=8, min_length=0) == expected
    assert not [line for line in lines if line.startswith("not used")]


def test_likelihoods_of_answers_equal_theirs(both):
    theirs, ours, _ = both("vqa")
    questions, answers = ["is it red", "what is above the star", "where", "is it"], ["a red star", "no", "below it"]
    images = pictures(ours, 4)
    for image, question, ranked in zip(images, questions, ours.rank_answers(images, questions, answers), strict=True):
        ids, mask = ours.tokenizer.encode([question], 30, first="[ENC]", multiple=1)
        with torch.no_grad():
            tokens = theirs.vision_model(pixel_values=image[None])[0]
            states = theirs.text_encoder(
                input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=tokens, return_dict=False
            )[0]
            for found in ranked:
                answer, _ = ours.tokenizer.encode([found.text], 30, first="[DEC]", multiple=1)
                logits = theirs.text_decoder(input_ids=answer, encoder_hidden_states=states).logits[0, :-1]
                expected = logits.log_softmax(-1).gather(1, answer[0, 1:, None]).sum().item()
                assert found.log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["captioning", "retrieval", "vqa"])
def test_weights_survive_a_round_trip(both, tmp_path, kind):
    theirs, _, _ = both(kind)
    from_ours(str(tmp_path / f"{kind}-ours"), str(tmp_path / "back"), kind)
    again, report = CLASSES[kind].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    processor = transformers.BlipProcessor.from_pretrained(tmp_path / "back")
    ids = processor.tokenizer("a red circle")["input_ids"]
    ours, mask = load_tokenizer(str(tmp_path / "back")).encode(["a red circle"], 30)
    assert ids == ours[mask].tolist()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [CLASSES[kind].__name__]


def test_a_transformers_folder_loads_directly(both, tmp_path):
    _, ours, _ = both("captioning")
    direct = load_model(tmp_path / "captioning", device="cpu", precision="fp32")
    images = pictures(ours, 4)
    assert direct.caption(images, beams=3) == ours.caption(images, beams=3)


@pytest.mark.parametrize(
    ("config", "generation", "changes"),
    [
        ({}, None, {}),
        ({"max_length": 20, "min_length": 0, "num_beams": 1, "top_p": 1.0}, None, {}),  # defaults of older versions
        ({"num_beams": 5, "repetition_penalty": 1.3}, None, {"beams": 5, "repetition_penalty": 1.3}),
        ({"num_beams": 5}, {"num_beams": 1, "max_length": 30}, {"beams": 1, "max_length": 30}),
        (
            {},
            {"do_sample": True, "top_p": 0.8, "no_repeat_ngram_size": 2},
            {"beams": 0, "top_p": 0.8, "no_repeat_ngram": 2},
        ),
    ],
)
def test_captioners_decode_as_published_unless_their_folder_sets_more(both, tmp_path, config, generation, changes):
    _, ours, _ = both("captioning")
    folder = tmp_path / "captioning"
    facts = json.loads((folder / "config.json").read_text())
    facts["text_config"] |= config
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    published = DecodingConfig(prompt="a picture of", beams=3, min_length=5, max_length=20, repetition_penalty=1.0)
    assert ours.decoding == published
    assert captioner_decoding(folder) == replace(published, **changes)
    if generation is None and not config:
        assert load_model(folder, device="cpu").decoding == published
    (folder / "generation_config.json").write_text('{"num_beams": "many"}')
    with pytest.raises(UserError, match="beams must be int"):
        captioner_decoding(folder)


@pytest.mark.parametrize("kind", ["retrieval", "features"])
def test_other_models_keep_the_default_decoding(both, kind):
    assert both(kind)[1].decoding == DecodingConfig()


def test_a_vqa_model_decodes_as_published_and_is_nothing_else(both, tmp_path):
    ours = both("vqa")[1]
    assert ours.config.finetuned_for == "vqa" and ours.decoding == DecodingConfig(beams=3, min_length=1, max_length=10)
    for kind in ("captioning", "retrieval"):
        with pytest.raises(UserError, match="was finetuned for vqa"):
            from_ours(str(tmp_path / "vqa-ours"), str(tmp_path / "other"), kind)
    both("captioning")
    with pytest.raises(UserError, match=r"not finetuned for vqa.*vlp finetune configs/vqa\.yaml"):
        from_ours(str(tmp_path / "captioning-ours"), str(tmp_path / "other"), "vqa")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("beams", [0, 1, 4])
def test_decoding_settings_survive_a_round_trip(both, tmp_path, beams):
    _, ours, _ = both("captioning")
    ours.decoding = DecodingConfig(prompt="A red, big", beams=beams, min_length=3, max_length=17, top_k=5)
    ours.save(tmp_path / "mine")
    from_ours(str(tmp_path / "mine"), str(tmp_path / "theirs"))
    again = CLASSES["captioning"].from_pretrained(tmp_path / "theirs").generation_config
    assert (again.max_length, again.min_length, again.num_beams) == (17, 3, max(beams, 1))
    assert bool(again.do_sample) == (beams == 0)
    to_ours(str(tmp_path / "theirs"), str(tmp_path / "back"))
    assert load_model(tmp_path / "back").decoding == ours.decoding


def test_missing_parts_are_listed_and_initialized(both):
    _, ours, lines = both("captioning")
    assert "missing in the source: text_tower.layers.*.self_attention.encoder.qkv: copied from the decoder" in lines
    assert "missing in the source: itm_head: random weights" in lines
    layer = ours.blip.text_tower.layers[0].self_attention
    assert torch.equal(layer["encoder"].qkv.weight, layer["decoder"].qkv.weight)


USES = {
    "embed": lambda model: model.embed_texts("a red circle"),
    "match": lambda model: model.match(torch.zeros(3, model.image_size, model.image_size), "a red circle"),
    "caption": lambda model: model.caption(torch.zeros(3, model.image_size, model.image_size)),
}


@pytest.mark.parametrize(
    ("kind", "able", "sentence"),
    [
        ("captioning", {"caption"}, "cannot embed .* without image_projection and text_projection.*retrieval.yaml"),
        ("retrieval", {"embed", "match"}, "cannot generate text: .* without language_head.*captioning.yaml"),
        ("features", {"embed"}, "cannot match .* without itm_head.*retrieval.yaml"),
    ],
)
def test_a_model_refuses_what_it_has_only_random_weights_for(both, kind, able, sentence):
    _, ours, _ = both(kind)
    refused = []
    for name, use in USES.items():
        if name in able:
            use(ours)
            continue
        with pytest.raises(UserError) as error:
            use(ours)
        refused.append(str(error.value))
    assert any(re.search(sentence, one) for one in refused), refused


def test_training_a_part_lifts_the_refusal_also_after_saving(both, run_config, tmp_path):
    _, ours, _ = both("captioning")
    assert ours.config.untrained == ["image_projection", "text_projection", "itm_head"]
    for task, left in (("captioning", ours.config.untrained), ("retrieval", [])):
        start = f"start_from={tmp_path / 'captioning-ours'}"
        config = run_config(f"run-{task}", f"task={task}", start, "tokenizer=''", "steps=1", "optim.warmup_steps=0")
        train(replace(config, model=ModelConfig()))
        assert load_model(f"{config.output}/model").config.untrained == left


def test_broken_sources_write_nothing(both, tmp_path):
    theirs, _, _ = both("captioning")
    before = set(tmp_path.iterdir())
    weights = theirs.state_dict()
    torch.save(
        {"model": {name: tensor[:-1] if tensor.ndim else tensor for name, tensor in weights.items()}, "f": redraw},
        tmp_path / "code.pth",
    )
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 half of it")
    for name, sentence in [
        ("code.pth", "would run code"),
        ("other.pth", "not a BLIP checkpoint"),
        ("broken.pth", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            to_ours(str(tmp_path / name), str(tmp_path / "out"))
        (tmp_path / name).unlink()
    assert set(tmp_path.iterdir()) == before
    assert isinstance(theirs.text_decoder.bert, BlipTextModel)


def test_base_size_equals_theirs(tokenizer_folder):
    """ViT-B/16 and BERT-base: image tokens and LM logits, once."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    theirs = make_theirs("captioning", tokenizer, width=768, layers=12, heads=12, image_size=224, patch=16)
    redraw(theirs, 0.03)
    config = from_config(theirs.config)
    state, _ = to_our_names(transformers_table("captioning", config), theirs.state_dict())
    blip = Blip(config).eval()
    blip.load_state_dict(state, strict=False)
    torch.manual_seed(0)
    images, ids = torch.randn(2, 3, 224, 224), torch.randint(5, len(tokenizer), (2, 9))
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids)
        tokens = blip.encode_images(images)
        logits = blip.caption_logits(ids, None, blip.text_tower.project_image(tokens, "decoder"))
    assert logits.std() > 0.05
    torch.testing.assert_close(tokens, expected.image_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
