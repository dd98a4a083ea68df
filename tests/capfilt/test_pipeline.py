"""The pipeline of scoring: a batch that starts early changes no row, and starts exactly when it should."""

import math
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from tests.capfilt.test_score import TEXTS, write_shard
from tests.tiny_model import make_clip, make_images, make_model
from vlp.capfilt.clip_scorer import clip_of_ours
from vlp.capfilt.encoded_images import EncodedImages, SplitTexts
from vlp.capfilt.pipeline import ScoreSettings, score_batches
from vlp.capfilt.scorers import Scorers
from vlp.capfilt.scoring_batches import read_batches
from vlp.config import SamplingOverrides
from vlp.data.bad_samples import BadSamples
from vlp.models.constant_weights import constant_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHARD_TEXTS = [*TEXTS, *reversed(TEXTS), TEXTS[3], []]  # from none to three of an image
SAMPLING = SamplingOverrides(min_length=1, max_length=10, temperature=5.0, prompt="a")


class Counted(BadSamples):
    """Keeps the samples in the order in which they came."""

    def __init__(self):
        super().__init__(math.inf)
        self.came = []

    def add(self, bad, counted=False):
        self.came.append((bad.key, bad.reason))
        super().add(bad, counted)


def on_device(model):
    model.network.to(DEVICE)
    return model


def scorers_of(captioners, filters, clips=()):
    return Scorers([*map(on_device, captioners)], [*map(on_device, filters)], [*map(clip_of_ours, clips)], {}, {})


def silent_model():
    """A captioner whose captions mostly have no word."""
    model = make_model(seed=1)
    with torch.no_grad():
        model.blip.language_head.bias[model.tokenizer.sep_id] += 25
    return model


def scored(shard, scorers, settings, ahead):
    """The rows of each batch, and the samples of captions without a word."""
    empty = Counted()
    with constant_weights():
        batches = read_batches(shard, scorers, settings.batch_size, BadSamples(0.0))
        made = list(score_batches(batches, scorers, settings, shard, empty, ahead))
    return [[asdict(row) for row in rows] for _, rows in made], empty.came


def test_a_batch_that_starts_early_changes_no_row(tmp_path):
    shard = write_shard(tmp_path, SHARD_TEXTS)
    one, other = make_model(seed=2), make_model(seed=3, size=48)
    ways = [
        scorers_of([one], [one]),
        scorers_of([silent_model(), make_model(seed=4, size=48)], [other, make_model(seed=5)]),
        scorers_of([one, other], [other], [make_clip()]),
        scorers_of([], [other]),
    ]
    without_words = []
    for scorers in ways:
        settings = ScoreSettings(SAMPLING, num_captions=2, seed=3, batch_size=5)
        (plain, came), (early, came_early) = (scored(shard, scorers, settings, ahead) for ahead in (False, True))
        assert [len({row["key"] for row in rows}) for rows in plain][:2] == [5, 5] and len(plain) == 3
        if DEVICE == "cuda":  # sums of likelihoods have no fixed order there
            for row in [row for rows in plain for row in rows if row["nll"] is not None]:
                row["nll"] = pytest.approx(row["nll"], abs=1e-5)
        assert early == plain and came_early == came
        without_words.append(len(came))
    assert 10 < without_words[1] < 24  # of 24 captions of the silent captioner, and 24 others


@pytest.fixture
def calls(monkeypatch):
    """What is done, each with the number of its batch, in order."""
    done, numbers = [], {}
    init, start_captions, start_scores = (
        EncodedImages.__init__,
        EncodedImages.start_captions,
        EncodedImages.start_scores,
    )

    def late(name, number, wait):
        def collect():
            done.append((name, number))
            return wait()

        return collect

    def encode(self, *given):
        numbers[id(self)] = sum(name == "encode" for name, _ in done)
        self.self = self  # stays, so that no other one gets its id
        done.append(("encode", numbers[id(self)]))
        init(self, *given)

    def caption(self, *given):
        done.append(("caption", numbers[id(self)]))
        return late("take captions", numbers[id(self)], start_captions(self, *given))

    def score(self, *given):
        done.append(("score", numbers[id(self)]))
        return late("take scores", numbers[id(self)], start_scores(self, *given))

    monkeypatch.setattr(EncodedImages, "__init__", encode)
    monkeypatch.setattr(EncodedImages, "start_captions", caption)
    monkeypatch.setattr(EncodedImages, "start_scores", score)
    return done


def run(shard, calls, ahead):
    scorers = scorers_of(*[[make_model()]] * 2)
    batches = read_batches(shard, scorers, 4, BadSamples(0.0))

    def read():
        for number, batch in enumerate(batches):
            calls.append(("read", number))
            yield batch

    settings = ScoreSettings(SAMPLING, batch_size=4)
    for number, _ in enumerate(score_batches(read(), scorers, settings, shard, BadSamples(math.inf), ahead)):
        calls.append(("rows", number))


def test_the_next_batch_starts_before_captions_and_scores_are_waited_for(tmp_path, calls):
    run(write_shard(tmp_path, TEXTS * 2), calls, ahead=True)
    rows = ["take scores", "take scores", "rows"]
    expected = [
        *[("read", 0), ("encode", 0), ("score", 0)],
        *[("read", 1), ("caption", 0), ("encode", 1), ("score", 1), ("take captions", 0), ("score", 0)],
        *[("read", 2), ("caption", 1), ("encode", 2), ("score", 2), ("take captions", 1), ("score", 1)],
        *((name, 0) for name in rows),
        *[("caption", 2), ("take captions", 2), ("score", 2)],
        *((name, 1) for name in rows),
        *((name, 2) for name in rows),
    ]
    assert calls == expected


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU starts the next batch early")
def test_on_a_cpu_nothing_starts_early(tmp_path, calls):
    run(write_shard(tmp_path, TEXTS * 2), calls, ahead=None)
    steps = ["read", "encode", "score", "caption", "take captions", "score", "take scores", "take scores", "rows"]
    assert calls == [(step, number) for number in range(3) for step in steps]


def test_models_with_equal_tokenizers_split_texts_once(monkeypatch):
    one, equal, other = make_model().tokenizer, make_model(seed=2).tokenizer, make_clip().tokenizer
    texts, split = ["a star", "The Red circle"], []
    for kind in {type(one), type(other)}:
        plain = kind.word_ids
        monkeypatch.setattr(kind, "word_ids", lambda self, some, plain=plain: split.append(some) or plain(self, some))
    both = SplitTexts(texts)
    assert both.words(one) is both.words(equal) and len(split) == 1
    assert both.words(one) == one.word_ids(["a star", "the red circle"])
    assert both.words(equal, "a picture of") == one.word_ids_after("a picture of", texts)
    assert other.identity == one.identity or both.words(other) == other.word_ids(["a star", "the red circle"])


@contextmanager
def no_waiting():
    """An error if the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 0, 0, 3]])
def test_the_host_does_not_wait_for_a_gpu_to_encode_and_score(rows):
    model, texts = on_device(make_model("bf16")), ["a star", "a red circle", "the blue square near", "left"]
    images = make_images(4).to(DEVICE)
    EncodedImages(model, images).start_scores(
        SplitTexts(texts), rows, True, "a"
    )()  # libraries wait at their first call
    with no_waiting():
        late = EncodedImages(model, images).start_scores(SplitTexts(texts), rows, True, "a")
    assert late().itm.device.type == "cpu"
