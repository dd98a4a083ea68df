"""BLEU, ROUGE-L, CIDEr-D and METEOR against pycocoevalcap on the same tokens, and by property."""

import random

import pytest

from tests.flickr8k import flickr8k_captions
from vlp.caption_metrics import java
from vlp.caption_metrics.cider import CiderD, count_documents
from vlp.caption_metrics.ngrams import count_ngrams
from vlp.caption_metrics.ptb_tokenizer import tokenize_captions
from vlp.caption_metrics.scores import caption_scores
from vlp.errors import UserError

WORDS = ["a", "the", "red", "blue", "dog", "cat", "runs", "sleeps", "on", "under", "small", "wire", "two"]


def random_corpus(images: int) -> tuple[list[str], list[list[str]]]:
    """Captions with repeated words, empty ones and ones of a single word, and one to four references for each."""
    rng = random.Random(0)

    def caption(least: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, 9)))

    return [caption(0) for _ in range(images)], [[caption(1) for _ in range(rng.randint(1, 4))] for _ in range(images)]


def reference_scores(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    """The scores by pycocoevalcap of tokenized captions."""
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    ours, truths = dict(enumerate([text] for text in captions)), dict(enumerate(references))
    bleu, _ = Bleu(4).compute_score(truths, ours, verbose=0)
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = Rouge().compute_score(truths, ours)[0]
    scores["CIDEr"] = Cider().compute_score(truths, ours)[0]
    return scores


@pytest.mark.parametrize("images", [1, 2, 60])
def test_random_captions_score_as_by_pycocoevalcap(images):
    captions, references = random_corpus(images)
    assert caption_scores(captions, references).metrics == pytest.approx(
        reference_scores(captions, references), abs=1e-9
    )


def test_captions_of_photos_score_as_by_pycocoevalcap():
    texts = list(flickr8k_captions().values())[:300]
    captions, references = [one[0] for one in texts], [one[1:] for one in texts]
    tokens, truths = tokenize_captions(captions), tokenize_captions([text for one in references for text in one])
    grouped = [[truths.pop(0) for _ in one] for one in references]
    assert caption_scores(captions, references).metrics == pytest.approx(reference_scores(tokens, grouped), abs=1e-6)


def test_scores_of_a_perfect_and_of_a_wrong_caption():
    references = [["A red dog runs."], ["two blue birds, on a wire"], ["a cat sleeps here now"]]
    perfect = caption_scores(
        ["a red dog runs", "Two blue birds on a wire!", "a cat sleeps here now"], references
    ).metrics
    assert perfect["BLEU-4"] == pytest.approx(1) and perfect["ROUGE-L"] == pytest.approx(1)
    assert perfect["CIDEr"] == pytest.approx(10)
    wrong = caption_scores(["a cat sleeps here now", "a red dog runs", "two blue birds on a wire"], references).metrics
    assert wrong["CIDEr"] < 0.5 and wrong["BLEU-4"] < 0.1
    for captions, truths in (([], []), (["one"], []), (["one"], [[]])):
        with pytest.raises(UserError):
            caption_scores(captions, truths)


def test_scores_of_several_captions_of_an_image_are_those_of_each():
    captions, references = random_corpus(20)
    counts, truths = [count_ngrams(one) for one in captions], [[count_ngrams(x) for x in one] for one in references]
    cider = CiderD(count_documents(truths))
    assert cider.scores(counts[:5], truths[3]) == [cider.score(one, truths[3]) for one in counts[:5]]


def test_meteor_by_java():
    if "METEOR" in java.absent_metrics():
        pytest.skip("needs Java and pycocoevalcap")
    scores = caption_scores(
        ["a red dog runs", "a cat sleeps"], [["a red dog is running"], ["a cat sleeps"]], java=True
    ).metrics
    assert 0.3 < scores["METEOR"] < 1


def test_what_java_metrics_lack_is_named(monkeypatch):
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    absent = java.absent_metrics()
    assert absent.keys() == {"METEOR", "SPICE"} and all(absent.values())
    scores = caption_scores(["a red dog"], [["a red dog"]], java=True).metrics
    assert "METEOR" not in scores and "SPICE" not in scores
