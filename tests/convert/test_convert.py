"""Converted BLIP models give the same scores, captions and answers as before."""

import io
import itertools

import pytest
import torch
import transformers
from PIL import Image

from tests.convert.blip_models import SIZES, TEXTS, WORDS, ids_of, make_theirs, pictures, redraw
from vlp.config import DecodingConfig
from vlp.convert.blip import from_config, transformers_table
from vlp.convert.tables import to_our_names
from vlp.data.shard_writer import ShardWriter
from vlp.data.tokenizer import load_tokenizer
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.settings import EvaluationSettings
from vlp.models.blip import Blip


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


def test_a_deep_model_equals_theirs(tokenizer_folder):
    """ViT-B/16 and BERT-base at half their width: image tokens and LM logits, once."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    theirs = make_theirs("captioning", tokenizer, width=384, layers=12, heads=12, image_size=224, patch=16)
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
