"""The Python API: model folders, captions, embeddings and matches from paths, PIL images and tensors."""

import json
import pickle

import pytest
import torch
from PIL import Image
from tiny_model import SIZE, make_images, make_model

from vlp.config import DecodingConfig
from vlp.errors import UserError, WorkError
from vlp.generation.caption_step import CaptionStepper
from vlp.generation.decode import start_generating
from vlp.generation.token_rules import TokenRules
from vlp.model import Model, load_model
from vlp.model_folder import save_model

SAMPLING = DecodingConfig(beams=0, top_p=0.95, repetition_penalty=1.1, min_length=4, max_length=14)


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


def test_a_saved_model_is_the_same_model(model, tmp_path):
    folder = tmp_path / "runs" / "model"
    model.save(folder, "# A card\n")
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in folder.iterdir()}
    assert (folder / "README.md").read_text().startswith("# A card\n")
    loaded = load_model(folder, device="cpu", precision="fp32")
    assert loaded.config == model.config
    for name, value in model.blip.state_dict().items():
        assert torch.equal(value, loaded.blip.state_dict()[name])
    images = make_images(3)
    assert loaded.caption_texts(images, SAMPLING) == model.caption_texts(images, SAMPLING)
    torch.testing.assert_close(loaded.embed_images(images), model.embed_images(images))  # not to the bit: packed
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing temporary is left
    with pytest.raises(UserError, match="exists already"):
        model.save(folder)


def test_the_package_exports_load_model():
    import vlp

    assert vlp.load_model is load_model
    with pytest.raises(AttributeError):
        vlp.load_modle  # noqa: B018


def test_transformers_reads_the_tokenizer(model, tmp_path):
    from transformers import AutoTokenizer

    model.save(tmp_path / "model")
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("a red circle")["input_ids"]
    ours, mask = model.tokenizer.encode(["a red circle"], 30)
    assert ids == ours[mask].tolist()


def test_a_half_written_folder_never_appears(model, tmp_path):
    class Broken:
        def write_files(self, folder):
            raise Exception("No space left on device (os error 28)")  # as the tokenizers library reports it

    with pytest.raises(WorkError, match="model cannot be written: no space left on device"):
        save_model(model.blip, Broken(), tmp_path / "model", "")
    assert list(tmp_path.iterdir()) == []


def test_broken_model_folders_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="not a model folder"):
        load_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(tmp_path / "empty")
    folder = tmp_path / "model"
    model.save(folder)
    weights = (folder / "model.safetensors").read_bytes()

    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"is damaged \(.*\); copy or convert the model again"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"is damaged \(.*\); copy or convert the model again"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(weights)

    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "model": {**config["model"], "embed_dim": 8}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="does not fit"):
        load_model(folder)
    for text, sentence in [("{", "JSON"), ('{"model_type": "bert"}', "format"), ("[1]", "JSON")]:
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_model(folder)
    config["model"]["text_tower"]["vocabulary"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tokenizer"):
        load_model(folder)


def test_the_folder_stores_the_decoding_settings_and_the_card_lists_them(model, tmp_path):
    own = DecodingConfig(prompt="a picture of", beams=2, max_length=11, banned_words=["red"])
    Model(model.blip, model.tokenizer, "fp32", "# A card\n", own).save(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu", precision="fp32")
    assert loaded.decoding == own
    images = make_images(3)
    assert loaded.caption_texts(images) == model.caption_texts(images, own) != model.caption_texts(images)
    assert loaded.caption_texts(images, beams=1, prompt="") == model.caption_texts(
        images, DecodingConfig(beams=1, max_length=11, banned_words=["red"])
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("# A card\n") and '| prompt | "a picture of" |' in card
    loaded.decoding.beams = 4
    loaded.save(tmp_path / "again")
    again = (tmp_path / "again" / "README.md").read_text()
    assert again == card.replace("| beams | 2 |", "| beams | 4 |"), "the section is replaced, not repeated"


def test_models_saved_before_decoding_was_stored_have_the_defaults(model, tmp_path):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["decoding"]
    path.write_text(json.dumps(config))
    assert load_model(tmp_path / "model").decoding == DecodingConfig()
    for decoding, sentence in [({"beem": 3}, r"config\.json: Unknown config key beem"), ({"top_p": 2}, "at most 1")]:
        path.write_text(json.dumps({**config, "decoding": decoding}))
        with pytest.raises(UserError, match=sentence):
            load_model(tmp_path / "model")


def test_the_default_key_of_an_image_is_its_path(model, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(make_images(1)[0].permute(1, 2, 0).numpy()).save(path)
    expected = model.caption([path], SAMPLING, keys=[str(path)], num_captions=3)
    assert model.caption([path], SAMPLING, num_captions=3) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("decoding", [SAMPLING, DecodingConfig(beams=3, repetition_penalty=1.1, max_length=14)])
def test_captions_do_not_depend_on_the_batch(precision, decoding):
    model = make_model(precision)
    images = make_images(11)
    keys = [f"key{i}" for i in range(11)]
    whole = model.caption_texts(images, decoding, keys=keys, seed=3)
    assert len(set(whole)) > 3
    assert model.caption_texts(images, decoding, keys=keys, seed=3, batch_size=1) == whole
    assert model.caption_texts(images, decoding, keys=keys, seed=3, batch_size=4) == whole
    assert model.caption_texts(images.flip(0), decoding, keys=keys[::-1], seed=3)[::-1] == whole


def test_sampled_captions_depend_on_seed_and_key(model):
    image = make_images(1)[0]
    keys = [f"k{i}" for i in range(8)]
    by_key = model.caption_texts([image] * 8, SAMPLING, keys=keys)
    assert len(set(by_key)) > 1
    alone = model.caption_texts(image, SAMPLING, keys=["same"])
    assert model.caption_texts([image] * 8, SAMPLING, keys=["same"] * 8) == alone * 8
    several = model.caption([image, image], SAMPLING, keys=["k0", "k1"], num_captions=3)
    assert [captions[0].text for captions in several] == by_key[:2] and len(several[0]) == 3
    assert model.caption_texts([image] * 8, SAMPLING, keys=keys, seed=1) != by_key


@pytest.mark.parametrize("sharing", ["all_but_self_attention", "nothing"])
def test_greedy_captions_equal_decoding_without_cache_or_memory(sharing):
    model = make_model(sharing=sharing)
    images = make_images(4)
    decoding = DecodingConfig(beams=1, repetition_penalty=1.0, min_length=0, max_length=12, prompt="a red")
    captions = model.caption_texts(images, decoding)
    prompt = model.tokenizer.prompt_ids("a red")
    for image, caption in zip(images, captions, strict=True):
        ids = list(prompt)
        with model.inference():
            while len(ids) < 12 and ids[-1] != model.tokenizer.sep_id:
                memory = model.blip.text_tower.project_image(model.blip.encode_images(image[None]), "decoder")
                logits = model.blip.caption_logits(torch.tensor([ids]), None, memory)
                ids.append(int(logits[0, -1].argmax()))
        assert caption == model.tokenizer.decode(ids[len(prompt) :])


def test_paths_pil_images_and_tensors_are_equivalent(model, tmp_path):
    pixels = make_images(1)[0]
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    path = tmp_path / "picture.png"
    picture.save(path)
    expected = model.embed_images(pixels)
    for image in (picture, path, str(path), [path], pixels[None]):
        torch.testing.assert_close(model.embed_images(image), expected)
    encoder = model.blip.image_encoder
    normalised = (pixels / 255 - encoder.mean) / encoder.deviation
    torch.testing.assert_close(model.embed_images(normalised), expected)
    assert model.embed_images(picture.convert("L").resize((50, 70))).shape == (1, 16)
    assert model.embed_images([]).shape == (0, 16) and model.caption([]) == []


def test_unusable_images_are_refused(model, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for image in (tmp_path / "text.jpg", tmp_path / "absent.jpg", tmp_path, torch.zeros(3, 8, 8)):
        with pytest.raises(UserError):
            model.embed_images(image)
    with pytest.raises(UserError, match="all"):
        model.embed_images([torch.zeros(3, SIZE, SIZE), make_images(1)[0]])


def test_embeddings_are_unit_vectors(model):
    texts = ["a red circle", "the Blue square, on white!", "a red circle"]
    vectors = model.embed_texts(texts)
    assert vectors.dtype == torch.float32 and vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(vectors[0], vectors[2])
    torch.testing.assert_close(model.embed_texts(texts, batch_size=1), vectors)
    torch.testing.assert_close(model.embed_images(make_images(5), batch_size=2), model.embed_images(make_images(5)))


def test_match_returns_itc_and_itm_of_each_pair(model):
    images = make_images(3)
    texts = ["a red circle", "a small star above the large blue shape", "square"]
    pairs = model.match(images, texts)
    torch.testing.assert_close(pairs.itc, (model.embed_images(images) * model.embed_texts(texts)).sum(1))
    for i in range(3):
        with model.inference():
            memory = model.blip.text_tower.project_image(model.blip.encode_images(images[i : i + 1]))
            ids, mask = model.tokenizer.encode([texts[i]], 30, first="[ENC]")
            expected = model.blip.match_logits(ids, mask, memory).softmax(-1)[0, 1]
        torch.testing.assert_close(pairs.itm[i], expected)
    torch.testing.assert_close(model.match(images, texts, batch_size=2).itm, pairs.itm)
    one_image = model.match(images[1], texts)
    torch.testing.assert_close(one_image.itm, model.match([images[1]] * 3, texts).itm)
    assert model.match(images, "a star").itm.shape == (3,)
    with pytest.raises(UserError, match="as many"):
        model.match(images, texts[:2])


def test_grouped_indexed_and_batched_matching_agree(model):
    tokens = model.encode_images(make_images(3))
    texts = ["a red circle", "star", "a blue square near a star", "white shape", "the left star", "circle"]
    grouped = model.match_tokens(tokens, texts)
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(model.match_tokens(tokens, texts, index).itm, grouped.itm)
    torch.testing.assert_close(model.match_tokens(tokens, texts, batch_size=4).itm, grouped.itm)
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    shuffled = model.match_tokens(tokens, [texts[i] for i in order], index[order])
    torch.testing.assert_close(shuffled.itm, grouped.itm[order])
    torch.testing.assert_close(shuffled.itc, grouped.itc[order])
    with pytest.raises(UserError, match="evenly"):
        model.match_tokens(tokens, texts[:4])


def test_calls_do_not_change_the_mode_of_the_network(model):
    model.blip.train()
    first = model.embed_images(make_images(2))
    assert model.blip.training and model.blip.text_tower.training
    torch.testing.assert_close(model.embed_images(make_images(2)), first)  # no dropout in between
    assert not first.requires_grad
    model.blip.eval()


def test_invalid_arguments_are_refused(model):
    image = make_images(1)
    for settings in ({"top_p": 2.0}, {"beem": 3}, {"max_length": 1000}, {"keys": ["a", "b"]}, {"num_captions": 0}):
        with pytest.raises(UserError):
            model.caption(image, **settings)


def test_each_image_may_have_its_own_prompt(model):
    images = make_images(4)
    prompts = ["a red", "the large", "a red", ""]
    keys = ["k0", "k1", "k2", "k3"]
    together = model.caption_texts(images, SAMPLING, keys=keys, prompts=prompts)
    alone = [model.caption_texts(images[i], SAMPLING, keys=[keys[i]], prompt=prompts[i])[0] for i in range(4)]
    assert together == alone
    with pytest.raises(UserError, match="one prompt per image"):
        model.caption(images, SAMPLING, prompts=["a"])


def generated(model, images, decoding, banned=()):
    """The result of `generate` for images: ids, because texts of random word pieces do not tokenize back to them."""
    with model.inference():
        memory = model.blip.text_tower.project_image(model.blip.encode_images(images), "decoder")
        stepper = CaptionStepper(model.blip, memory, decoding.max_length)
        keys = [str(row) for row in range(len(images))]
        rules = TokenRules(decoding, model.tokenizer.sep_id, list(banned))
        made = start_generating(stepper, [model.tokenizer.dec_id], rules, keys)()
    return [one for (one,) in made]


@pytest.mark.parametrize("how", [{"beams": 0, "top_p": 0.95}, {"beams": 1}, {"beams": 3}])
def test_captions_have_the_log_probability_of_their_text(model, how):
    images = make_images(3)
    plain = DecodingConfig(**{"repetition_penalty": 1.0, "min_length": 0, "max_length": 12, **how})
    made = generated(model, images, plain)
    for image, one, (caption,) in zip(images, made, model.caption(images, plain), strict=True):
        assert caption == (model.tokenizer.decode(one.ids), one.log_probability, len(one.ids))
        ids = torch.tensor([[model.tokenizer.dec_id, *one.ids]])
        with model.inference():
            memory = model.blip.text_tower.project_image(model.blip.encode_images(image[None]), "decoder")
            logits = model.blip.caption_logits(ids, None, memory)[0, :-1].log_softmax(dim=-1)
        assert one.log_probability == pytest.approx(logits.gather(1, ids[0, 1:, None]).sum().item(), abs=1e-3)


@pytest.mark.parametrize("how", [{"beams": 0, "top_p": 1.0, "temperature": 2.0}, {"beams": 1}, {"beams": 4}])
def test_banned_words_and_repeated_ngrams_do_not_occur(model, how):
    images = make_images(6)
    settings = {"repetition_penalty": 1.0, "min_length": 12, "max_length": 20, **how}
    free = [one.ids for one in generated(model, images, DecodingConfig(**settings))]
    pairs = [tuple(ids[i : i + 2]) for ids in free for i in range(len(ids) - 1)]
    word, pair = free[0][3], max(set(pairs), key=pairs.count)
    for one in generated(model, images, DecodingConfig(**settings), banned=[[word], list(pair)]):
        assert word not in one.ids and pair not in zip(one.ids, one.ids[1:], strict=False)
    for size in (1, 2, 3):
        for one in generated(model, images, DecodingConfig(**settings, no_repeat_ngram=size)):
            ids = [model.tokenizer.dec_id, *one.ids]
            grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
            assert len(grams) == len(set(grams))
    assert "red" not in " ".join(model.caption_texts(images, **settings, banned_words=["red"])).split()


def test_weights_in_bf16(model, tmp_path):
    model.save(tmp_path / "model")
    half = load_model(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.blip.parameters()} == {torch.bfloat16}
    images = make_images(4)
    cosines = (half.embed_images(images) * model.embed_images(images)).sum(dim=1)
    assert cosines.min() > 0.99
    assert len(half.caption(images, beams=3)) == 4


def test_push_to_hub_uploads_a_complete_folder(model, monkeypatch):
    import huggingface_hub

    sent = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            return f"hub/{name}"

        def upload_folder(self, repo_id, folder_path):
            sent[repo_id] = load_model(folder_path, device="cpu", precision="fp32")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert model.push_to_hub("me/mine") == "hub/me/mine"
    images = make_images(2)
    torch.testing.assert_close(sent["me/mine"].embed_images(images), model.embed_images(images))
