"""Converted text towers and image encoders compute the same states as in their own libraries."""

import json
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import timm
import torch
import transformers
from timm.models import vision_transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel, ViTConfig, ViTModel

from vlp.config_model import ModelConfig
from vlp.convert.command import to_ours
from vlp.convert.read import read_source
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.model import load_model
from vlp.training.loop import train

WORDS = [
    "the",
    "dog",
    "cat",
    "red",
    "small",
    "사과",
    "빨간",
    "강아지",
    "고양이",
    "红",
    "色",
    "的",
    "狗",
    "猫",
    "##s",
    "##는",
    "a",
]
TEXTS = ["the small dogs", "빨간 사과", "红色的狗", "a cat 고양이는"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def redraw(network):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.15 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def bert(tmp_path):
    """A multilingual BERT with a tiny vocabulary: its folder and the model."""
    folder = tmp_path / "bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer.from_pretrained(str(folder), do_lower_case=False).save_pretrained(str(folder))
    theirs = redraw(BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, **SMALL)))
    theirs.save_pretrained(str(folder))
    return folder, theirs


def states_of(found, texts):
    ids, mask = found.tokenizer.encode(texts, 30)
    with torch.no_grad():
        return ids, mask, found.blip.text_tower.encode(ids, mask)


def test_multilingual_bert_gives_the_same_states(bert):
    folder, theirs = bert
    found = read_source(str(folder))
    ids, mask, mine = states_of(found, TEXTS)
    assert (ids == 1).sum() == 0, "every word of the three languages is known"
    expected = theirs.bert(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(mine[mask], expected[mask].detach(), atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # the masked language model's head becomes that of the decoder
        logits = found.blip.word_logits(mine)[..., : len(WORDS) + 5]
        torch.testing.assert_close(logits, theirs.cls(mine), atol=1e-4, rtol=1e-4)
    layer = found.blip.text_tower.layers[1].self_attention
    assert torch.equal(layer["decoder"].qkv.weight, layer["encoder"].qkv.weight)
    assert "text_tower.layers.*.cross_attention.shared.query: random weights" in found.missing


def test_roberta_gives_the_same_states_with_its_own_tokenizer(tmp_path):
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(str(tmp_path / "roberta"))
    config = RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=42, pad_token_id=1, type_vocab_size=1, **SMALL
    )
    theirs = redraw(RobertaModel(config, add_pooling_layer=False))
    theirs.save_pretrained(str(tmp_path / "roberta"))
    to_ours(str(tmp_path / "roberta"), str(tmp_path / "ours"))
    found = load_model(tmp_path / "ours", device="cpu", precision="fp32")  # the tokens' roles survive the folder
    ids, mask, mine = states_of(found, ["the small dog", "a red cat is the dog", "빨간 사과"])
    assert ids[:, 0].tolist() == [0, 0, 0] and found.tokenizer.pad_id == 1
    expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(mine[mask], expected[mask].detach(), atol=1e-4, rtol=1e-4)


def image_states(found, size):
    torch.manual_seed(0)
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        return images, found.blip.encode_images(images)


def test_a_transformers_vit_gives_the_same_states(bert, tmp_path):
    theirs = redraw(ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL), add_pooling_layer=False))
    theirs.save_pretrained(str(tmp_path / "vit"))
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(str(tmp_path / "vit"))
    found = read_source(str(bert[0]), image=str(tmp_path / "vit"))
    images, mine = image_states(found, 32)
    torch.testing.assert_close(mine, theirs(images).last_hidden_state.detach(), atol=1e-4, rtol=1e-4)
    image = found.blip.config.image_encoder
    assert image.mean == [0.1, 0.2, 0.3] and image.deviation == [0.5, 0.5, 0.5]


def test_a_timm_vit_gives_the_same_states(bert, tmp_path):
    theirs = redraw(timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=224))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    found = read_source(str(bert[0]), image=f"timm:vit_tiny_patch16_224,{tmp_path}/vit.pth")
    images, mine = image_states(found, 224)
    torch.testing.assert_close(mine, theirs.forward_features(images).detach(), atol=1e-4, rtol=1e-4)
    pixels, way = (
        torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8),
        timm.data.resolve_model_data_config(theirs),
    )
    mean, deviation = (torch.tensor(way[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():  # colors are normalized as timm normalizes them for this model
        expected = theirs.forward_features((pixels / 255 - mean) / deviation)
        torch.testing.assert_close(found.blip.encode_images(pixels), expected, atol=1e-4, rtol=1e-4)


def register_tiny_vit(name, **settings):
    """Give timm a small ViT of another architecture than ours."""
    tiny = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, **settings}

    def create(pretrained=False, **given):
        return vision_transformer._create_vision_transformer("test_vit", pretrained, **tiny, **given)

    create.__name__ = name
    timm.models.register_model(create)


register_tiny_vit("positions_without_class_token", no_embed_class=True)  # as in deit3
register_tiny_vit("silu_vit", act_layer="silu")
register_tiny_vit("parallel_vit", block_fn=vision_transformer.ParallelThingsBlock)


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "test_convnext",
        "test_vit2",
        "vit_tiny_r_s16_p8_224",
        "test_efficientnet",
        "positions_without_class_token",
        "silu_vit",
        "parallel_vit",
    ],
)
def test_other_timm_towers_give_patch_and_pooled_features(bert, tmp_path, name):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "tower.pth")
    found = read_source(str(bert[0]), image=f"timm:{name},{tmp_path}/tower.pth")
    images, mine = image_states(found, found.blip.config.image_encoder.image_size)
    with torch.no_grad():
        pooled, features = theirs(images), theirs.forward_features(images)
    torch.testing.assert_close(mine[:, 0], pooled, atol=1e-4, rtol=1e-4)
    places = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    torch.testing.assert_close(mine[:, -places.shape[1] :], places, atol=1e-4, rtol=1e-4)
    found.blip.image_encoder.train()
    tokens = found.blip.image_encoder(images).square().mean()
    tokens.backward()
    lacking = [n for n, p in found.blip.image_encoder.named_parameters() if p.grad is None]
    assert not lacking, "every weight takes part, as DDP asks"


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_an_open_clip_tower_gives_the_same_states(bert, tmp_path, quick_gelu):
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "output_tokens": True}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1}
    settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    (tmp_path / "tiny-test.json").write_text(json.dumps(settings))
    open_clip.add_model_config(str(tmp_path / "tiny-test.json"))
    theirs = redraw(open_clip.create_model("tiny-test"))
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    images, mine = image_states(read_source(str(bert[0]), image=f"open_clip:tiny-test,{tmp_path}/clip.pt"), 32)
    with torch.no_grad():
        tokens = theirs.visual(images)[1]
    torch.testing.assert_close(mine[:, 1:], tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [48, 16])
def test_positions_are_resized_as_in_timm(bert, tmp_path, size):
    ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    plain = read_source(str(bert[0]), image=str(tmp_path / "vit"))
    other = read_source(str(bert[0]), image=str(tmp_path / "vit"), image_size=size)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=SMALL["hidden_size"],
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        norm_layer=partial(torch.nn.LayerNorm, eps=plain.blip.config.image_encoder.norm_eps),
        num_classes=0,
    ).eval()
    theirs.load_state_dict(plain.blip.image_encoder.tower.state_dict())
    theirs.set_input_size(img_size=(size, size))
    images, mine = image_states(other, size)
    with torch.no_grad():
        torch.testing.assert_close(mine, theirs.forward_features(images), atol=1e-4, rtol=1e-4)


def test_grids_that_are_not_square_are_refused(bert, tmp_path):
    vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL), add_pooling_layer=False)
    vit.embeddings.position_embeddings = torch.nn.Parameter(torch.zeros(1, 13, 32))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="pos_embed"):
        read_source(str(bert[0]), image=str(tmp_path / "vit"))


def test_a_multilingual_tower_pretrains_and_captions(bert, tmp_path, scenes, run_config):
    with ShardWriter(str(tmp_path / "shards"), 50) as writer:
        for number, sample in enumerate(iterate_samples(f"{scenes}/*.tar")):
            writer.write(sample.key, sample.image, "png", TEXTS[number % len(TEXTS)], {})
    ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    to_ours(str(bert[0]), str(tmp_path / "start"), image=str(tmp_path / "vit"))
    sources = f"data.sources=[{{shards: '{tmp_path}/shards/*.tar'}}]"
    config = run_config(
        "run", f"start_from={tmp_path}/start", "tokenizer=''", sources, "steps=200", "optim.learning_rate=3e-3"
    )
    train(replace(config, model=ModelConfig()))
    model = load_model(tmp_path / "run" / "model", device="cpu", precision="fp32")
    picture = next(iterate_samples(f"{scenes}/*.tar")).image
    (tmp_path / "one.png").write_bytes(picture)
    caption = model.caption_texts(tmp_path / "one.png", beams=3, min_length=3)[0]
    assert caption in {"the small dogs", "빨간 사과", "红 色 的 狗", "a cat 고양이는"}


def test_towers_that_do_not_fit_are_refused_by_name(bert, tmp_path):
    folder, _ = bert
    facts = json.loads((folder / "config.json").read_text())
    for change, sentence in [
        ({"model_type": "t5"}, "unknown kind 't5'"),
        ({"hidden_size": 16}, r"does not fit its own settings: text_tower\.\S+ \[.*and \d+ more"),
        ({"hidden_act": "relu"}, "activation"),
        ({"model_type": "vit"}, "image encoder"),
    ]:
        (folder / "config.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(UserError, match=sentence):
            to_ours(str(folder), str(tmp_path / "out"))
    (folder / "config.json").write_text(json.dumps(facts))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="download may be incomplete"):
        to_ours(str(folder), str(tmp_path / "out"))
    (folder / "model.safetensors").write_bytes(weights)
    BertModel(BertConfig(vocab_size=9, max_position_embeddings=40, **SMALL)).save_pretrained(str(folder))
    with pytest.raises(UserError, match="9 word embeddings"):
        to_ours(str(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
