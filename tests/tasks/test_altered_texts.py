"""Altered captions: what they change, what they never equal, and ITM with them against plain pairs."""

import itertools
import random
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn import functional as F

from vlp.data.loader import training_loader
from vlp.data.tokenizer import CaptionTokenizer, train_tokenizer
from vlp.demo.scene_captions import INVERSE, describe, read_caption
from vlp.demo.scenes import make_scene
from vlp.errors import UserError
from vlp.tasks import alignment, build_examples, build_task
from vlp.tasks.altered_texts import alter_texts, read_texts, text_bank, word_starts
from vlp.training.loop import train
from vlp.training.model_setup import build_model


@pytest.fixture(scope="module")
def bank():
    """The bank of a batch of 96 scene captions, its tokenizer, of small pieces, and the captions."""
    rng = random.Random(0)
    captions = []
    for _ in range(96):
        scene = make_scene(rng)
        captions.append(describe(scene.objects, scene.relation, rng))
    tokenizer = train_tokenizer(captions, 120)
    starts = word_starts(tokenizer)
    ids, mask = tokenizer.encode(captions, 48, "[ENC]")
    assert (mask.sum(dim=1) - 2 > torch.tensor([len(one.split()) for one in captions])).any()  # words of several pieces
    return text_bank(read_texts(ids, mask, starts, 1), len(starts), torch.ones(96, dtype=torch.bool)), tokenizer


def alter(bank, rows, seed=0, refused=None):
    return alter_texts(bank, rows, rows * 7, seed, rows[:, None] if refused is None else refused)


def test_an_alteration_swaps_two_spans_or_replaces_a_word_by_one_between_the_same_neighbors(bank):
    bank, tokenizer = bank
    texts = [words_of(tokenizer, ids, mask) for ids, mask in zip(bank.texts.ids, bank.texts.mask, strict=True)]
    seen = {context for words in texts for context in contexts(words)}
    kinds, relations, flips = Counter(), 0, 0
    for seed in range(5):
        ids, mask, exists = alter(bank, torch.arange(96), seed)
        assert exists.float().mean() > 0.95
        assert not (ids == bank.texts.ids).all(dim=1)[exists].any()
        for number in exists.nonzero().flatten().tolist():
            own, words = texts[number], words_of(tokenizer, ids[number], mask[number])
            assert ids[number, 0] == tokenizer.enc_id and ids[number][mask[number]][-1] == tokenizer.sep_id
            kinds[Counter(words) == Counter(own)] += 1
            if Counter(words) != Counter(own):
                (place,) = (n for n, (one, other) in enumerate(zip(own, words, strict=True)) if one != other)
                assert contexts(words)[place] in seen
            before, after = read_caption(" ".join(own)), read_caption(" ".join(words))
            if before and before[1]:
                relations += 1
                flips += after in ((before[0], INVERSE[before[1]]), (before[0][::-1], before[1]))
    assert 0.4 < kinds[True] / kinds.total() < 0.6
    assert flips / relations > 0.2  # the relations that ITM should learn to read


def words_of(tokenizer, ids, mask) -> list[str]:
    return tokenizer.decode(ids[mask].tolist()).split()


def contexts(words: list[str]) -> list[tuple[str, str, str]]:
    """Each word with the letters around it; the pieces around it are what replacements share."""
    return [
        (before[-1], word, after[0])
        for before, word, after in zip(["<", *words[:-1]], words, [*words[1:], ">"], strict=True)
    ]


def test_alterations_depend_on_seed_and_number_alone(bank):
    bank, _ = bank
    ids, mask, exists = alter(bank, torch.arange(96))
    rows = torch.tensor([40, 3, 77])
    for one, other in zip(alter(bank, rows), (ids[rows], mask[rows], exists[rows]), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(alter(bank, rows, seed=1)[0], ids[rows])


def test_no_alteration_equals_another_caption_of_the_image():
    captions = ["red left blue", "blue left red", "red left red", "red right blue"]
    tokenizer = train_tokenizer(captions * 3, 60)
    starts, (ids, mask) = word_starts(tokenizer), tokenizer.encode(captions, 16, "[ENC]")
    bank = text_bank(read_texts(ids, mask, starts, 1), len(starts), torch.ones(4, dtype=torch.bool))
    rows = torch.zeros(300, dtype=torch.int64)
    for refused in ([0], [0, 1], [0, 1, 2, 3]):
        altered, real, exists = alter_texts(bank, rows, torch.arange(300), 5, torch.tensor(refused).expand(300, -1))
        found = {" ".join(words_of(tokenizer, *one)) for one in zip(altered[exists], real[exists], strict=True)}
        assert not found & {captions[number] for number in refused}
        assert ("blue left red" in found) == (1 not in refused)
        assert ("red right blue" in found) == (3 not in refused)
    one_word, mask = tokenizer.encode(["red"], 16, "[ENC]")
    bank = text_bank(read_texts(one_word, mask, starts, 1), len(starts), torch.ones(1, dtype=torch.bool))
    assert not alter(bank, torch.tensor([0]))[2].any()


def test_a_prompt_stays_as_it_is(bank):
    _, tokenizer = bank
    ids, mask = tokenizer.encode(["we see a red ring", "we see a blue star"], 24, "[ENC]")
    first = len(tokenizer.prompt_ids("we see"))
    starts = word_starts(tokenizer)
    with_prompt = text_bank(read_texts(ids, mask, starts, first), len(starts), torch.ones(2, dtype=torch.bool))
    for seed in range(20):
        altered, _, exists = alter(with_prompt, torch.arange(2), seed)
        assert exists.all()
        assert torch.equal(altered[:, :first], ids[:, :first])


def test_words_begin_where_the_tokenizer_marks_them():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    for words in (["red", "##dish"], ["Ġred", "dish"], ["▁red", "dish"]):
        vocabulary = {word: number for number, word in enumerate([*pieces, *words])}
        tokenizer = CaptionTokenizer(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
        assert word_starts(tokenizer).tolist() == [False] * 7 + [True, False]


@pytest.mark.parametrize("task_name", ["pretrain", "retrieval"])
def test_matching_learns_from_altered_captions(run_config, captioned, task_name, monkeypatch):
    more = [f"data.sources=[{{shards: '{captioned}/*.tar'}}]", "data.texts_per_image=2", "objective.altered_texts=3"]
    config = run_config("run", f"task={task_name}", *more)
    torch.manual_seed(0)
    model, tokenizer, _ = build_model(config)
    loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
    task = build_task(config, model, tokenizer).eval()
    (batch,) = itertools.islice(loader, 1)
    made = []
    plain = alignment.alter_texts
    monkeypatch.setattr(alignment, "alter_texts", lambda *given: made.append((given, plain(*given))) or made[-1][1])
    task.start_step(0, 0.0)
    with_altered = task(batch)
    ((_, rows, *_), (ids, mask, exists)) = made[0]
    own = [batch.image_index.tolist().count(image) for image in range(8)]
    assert rows.tolist() == [2 * image + number % own[image] for image in range(8) for number in range(3)]
    task.alignment.objective.altered_texts = 0
    task.alignment.image_queue.filled[:] = task.alignment.text_queue.filled[:] = False
    task.start_step(0, 0.0)
    without = task(batch)
    entropies, right = [], 0
    for number in exists.nonzero().flatten().tolist():
        image = number // 3
        memory = model.text_tower.project_image(model.encode_images(batch.images[image : image + 1]))
        logits = model.match_logits(ids[number : number + 1], mask[number : number + 1], memory)
        entropies.append(F.cross_entropy(logits, torch.tensor([0])))
        right += int(logits.argmax() == 0)
    pairs = 3 * len(batch.text_ids)
    expected = (without.losses["itm"] * pairs + torch.stack(entropies).sum()) / (pairs + len(entropies))
    torch.testing.assert_close(with_altered.losses["itm"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(with_altered.losses["itc"], without.losses["itc"])
    assert with_altered.metrics["altered_accuracy"] == pytest.approx(right / len(entropies))
    assert with_altered.metrics["itm_accuracy"] == without.metrics["itm_accuracy"]
    assert "altered_accuracy" not in without.metrics


@pytest.mark.parametrize("setting", ["altered_texts=1", "hardness_ramp=0.5"])
def test_settings_of_negatives_are_for_matching(run_config, setting):
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"{name} is for tasks pretrain and retrieval; leave it out"):
        train(run_config("run", "task=captioning", f"objective.{setting}"))
