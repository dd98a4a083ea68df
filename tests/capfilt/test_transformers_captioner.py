"""`hf:` captioners: beam search equals the model's own `generate`, and sampling uses our random numbers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from tests.capfilt.test_score import noise, rows_of, write_shard
from tests.scoring import score_shards
from tests.tiny_model import WORDS, make_model
from vlp.capfilt.scorers import load_scorers
from vlp.capfilt.transformers_captioner import TransformersCaptioner
from vlp.config import DecodingConfig, SamplingOverrides
from vlp.data.tokenizer import train_tokenizer
from vlp.errors import UserError
from vlp.generation.token_rules import uniform_numbers

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 16}
SAMPLED = DecodingConfig(beams=0, max_length=8, min_length=2, repetition_penalty=1.0, top_p=0.7, temperature=1.5)
BEAMS = DecodingConfig(beams=3, max_length=8, min_length=2, repetition_penalty=1.2, no_repeat_ngram=2)


def make_git(folder, tokenizer):
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = GitConfig(
        vision_config={**TINY, **PICTURE}, vocab_size=len(tokenizer), max_position_embeddings=64, **TINY, **ids
    )
    GitForCausalLM(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    GitProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)


def make_blip2(folder, tokenizer):
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**TINY, **PICTURE),
        qformer_config=Blip2QFormerConfig(**TINY, encoder_hidden_size=32, cross_attention_frequency=1),
        text_config=language,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny random models, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("hf")
    train_tokenizer([WORDS] * 3, size=120).save(str(folder / "tokenizer"))
    for seed, (name, make) in enumerate((("git", make_git), ("blip2", make_blip2))):
        torch.manual_seed(seed)
        make(folder / name, PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", padding_side="right"))
    return {name: str(folder / name) for name in ("git", "blip2")}


def images(count=3):
    return [Image.open(io.BytesIO(noise(number, (40 + number, 48)))) for number in range(count)]


@pytest.mark.parametrize("name", ["git", "blip2"])
@pytest.mark.parametrize("prompt", ["", "a red"])
def test_beam_search_equals_the_models_own(name, prompt, folders):
    captioner = TransformersCaptioner(folders[name], precision="fp32")
    decoding = DecodingConfig(**{**vars(BEAMS), "prompt": prompt})
    made = captioner.captions(images(), decoding, ["a", "b", "c"], 0, 2)
    tokenizer = captioner.processor.tokenizer
    for image, captions in zip(images(), made, strict=True):
        inputs = captioner.processor(images=image, return_tensors="pt", **({"text": prompt} if prompt else {}))
        if name == "git" and prompt:  # [CLS] and the words, without the [SEP] that would end the caption
            inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:, :-1], None
        output = captioner.model.generate(
            **inputs,
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=8,
            min_new_tokens=2,
            repetition_penalty=1.2,
            no_repeat_ngram_size=2,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
        assert captions == [text.removeprefix(prompt).strip() for text in texts]
        assert not prompt or name != "git" or all(text.startswith(prompt) for text in texts)


def test_sampling_uses_our_random_numbers(folders):
    """Against a loop without a cache, one image and one caption at a time."""
    captioner = TransformersCaptioner(folders["git"], precision="fp32")
    made = captioner.captions(images(), SAMPLED, ["a", "b", "c"], 4, 2)
    for image, key, captions in zip(images(), "abc", made, strict=True):
        pixels = captioner.processor(images=image, return_tensors="pt")["pixel_values"]
        for number, caption in enumerate(captions):
            ids = [2]
            for uniform in uniform_numbers(4, key, number, 8):
                with torch.no_grad():
                    logits = captioner.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1].double()
                if len(ids) <= 2:
                    logits[3] = -torch.inf  # the end comes after two tokens at least
                probabilities = (logits / 1.5).softmax(dim=0).numpy()
                order = np.argsort(-probabilities)
                nucleus = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.7) + 1]
                cut = np.zeros_like(probabilities)
                cut[nucleus] = probabilities[nucleus]
                ids.append(int(np.searchsorted(np.cumsum(cut), uniform * cut.sum(), side="right")))
                if ids[-1] == 3:
                    break
            assert caption == captioner.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["git", "blip2"])
def test_captions_depend_only_on_seed_key_and_number(name, folders):
    captioner = TransformersCaptioner(folders[name], precision="fp32")
    three = captioner.captions(images(), SAMPLED, ["a", "b", "c"], 0, 3)
    (alone,) = captioner.captions(images()[1:2], SAMPLED, ["b"], 0, 2)
    assert alone == three[1][:2]
    assert len({text for texts in three for text in texts}) == 9
    assert captioner.captions(images(), SAMPLED, ["a", "b", "c"], 1, 3) != three


def test_banned_words_do_not_occur(folders):
    captioner = TransformersCaptioner(folders["git"], precision="fp32")
    (texts,) = captioner.captions(images(1), SAMPLED, ["a"], 0, 40)
    common = max(set(" ".join(texts).split()) & set(WORDS.split()), key=" ".join(texts).split().count)
    banning = DecodingConfig(**{**vars(SAMPLED), "banned_words": [common]})
    (texts,) = captioner.captions(images(1), banning, ["a"], 0, 40)
    assert common not in " ".join(texts).split()


def test_captions_are_in_the_table(folders, tmp_path):
    shard = write_shard(tmp_path / "shards")
    make_model(seed=1).save(tmp_path / "model")
    settings = SamplingOverrides(**vars(SAMPLED))
    counts = score_shards(
        shard, f"hf:{folders['git']}", str(tmp_path / "model"), settings, precision="fp32", num_captions=2, seed=3
    )
    made = [row for row in rows_of(shard) if row["decoding"]]
    assert counts.texts == 20 and len(made) == 10
    captioner = TransformersCaptioner(folders["git"], precision="fp32")
    pictures = [Image.open(io.BytesIO(noise(number, (40 + number, 48)))) for number in range(5)]
    expected = captioner.captions(pictures, SAMPLED, [f"00000.tar/k{number}" for number in range(5)], 3, 2)
    assert [row["text"] for row in made] == [text for texts in expected for text in texts]
    assert all(row["itm"] is not None and row["nll"] is None for row in rows_of(shard))


def test_other_models_are_refused(folders, tmp_path):
    make_model().save(tmp_path / "ours")
    with pytest.raises(UserError, match=r"transformers cannot load hf:.* as an image-to-text model"):
        load_scorers(f"hf:{tmp_path / 'ours'}", str(tmp_path / "ours"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="no safetensors weights; other formats are not read"):
        load_scorers(f"hf:{tmp_path / 'pickled'}", str(tmp_path / "ours"))
    with pytest.raises(UserError, match="An hf: captioner cannot filter"):
        load_scorers("", f"hf:{folders['git']}")
