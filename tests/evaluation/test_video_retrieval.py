"""Video retrieval against a plain loop over all pairs; bad rows and videos are counted; it resumes."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_model import make_model
from videos import write_list, write_noise_videos

from vlp.errors import UserError
from vlp.evaluation.settings import EvaluationSettings
from vlp.evaluation.video_retrieval import evaluate_video_retrieval
from vlp.model.video import load_videos

WORDS = ["red", "blue", "green", "circle", "square", "star", "above", "below", "small"]
FRAMES = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    write_noise_videos(path, 9)
    return path


@pytest.fixture
def captions(tmp_path, videos):
    rows = [{"clip_name": f"v{number}", "caption": f"a {WORDS[number]} {WORDS[-number]}"} for number in range(9)]
    extra = [
        {"clip_name": "v3", "caption": "a second text"},
        {"clip_name": "bad", "caption": "a bad video"},
        {"clip_name": "gone", "caption": "a missing video"},
        {"clip_name": "v3", "caption": "a second text"},
    ]
    return write_list(tmp_path / "captions.jsonl", rows + extra)


def plain_ranks(model, videos, texts, owner, rerank):
    """Ranks of the video of each text and of the best text of each video, by a loop over all pairs."""
    frames = load_videos(model, [videos / f"v{number}.mp4" for number in range(9)], FRAMES)
    tokens = [model.encode_images(one).flatten(0, 1)[None] for one in frames]
    cosines, logits = torch.empty(len(texts), 9), torch.empty(len(texts), 9)
    for column, one in enumerate(tokens):
        match = model.match_tokens(one, texts, frames=FRAMES)
        cosines[:, column], logits[:, column] = match.itc, torch.logit(match.itm.double()).float()
        ids, mask = model.text_ids(texts, "[ENC]")
        logits[:, column] = model.match_logits(ids, mask, model.project(one))[:, 1]

    def ranks(scores, itm, relevant):
        found = []
        for row in range(len(scores)):
            order = scores[row].argsort(descending=True).tolist()
            best = sorted(order[:rerank], key=lambda one: -(scores[row] + itm[row])[one].item()) + order[rerank:]
            found.append(min(best.index(one) for one in relevant[row]))
        return found

    owned = [[text for text, video in enumerate(owner) if video == number] for number in range(9)]
    return ranks(cosines, logits, [[one] for one in owner]), ranks(cosines.T, logits.T, owned)


@pytest.mark.parametrize("rerank, workers", [(0, 0), (4, 0), (4, 2)])
def test_video_retrieval_equals_a_plain_loop(videos, captions, rerank, workers, caplog):
    model = make_model()
    settings = EvaluationSettings(batch_size=4, workers=workers)
    results = evaluate_video_retrieval(model, captions, str(videos), FRAMES, rerank, settings)
    texts = [f"a {WORDS[number]} {WORDS[-number]}" for number in range(9)]
    texts.insert(4, "a second text")
    owner = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    t2v, v2t = plain_ranks(model, videos, texts, owner, rerank)
    metrics = results.metrics
    for way, ranks in (("t2v", t2v), ("v2t", v2t)):
        for k in (1, 5, 10):
            assert metrics[f"{way}_r{k}"] == pytest.approx(np.mean([rank < k for rank in ranks]))
        assert metrics[f"{way}_mean_rank"] == pytest.approx(np.mean(ranks) + 1)
        assert metrics[f"{way}_median_rank"] == np.median(ranks) + 1
    assert (metrics["videos"], metrics["texts"], metrics["captions"]) == (9, 10, 10)
    assert {name: metrics[name] for name in metrics if name.startswith("skipped")} == {
        "skipped": 3,
        "skipped: duplicate row": 1,
        "skipped: missing file": 1,
        "skipped: video undecodable": 1,
    }
    assert [one.getMessage() for one in caplog.records if "undecodable" in one.message] == [
        f"skipped {captions} bad: video undecodable"  # once, though re-ranking decodes the videos again
    ]
    assert results.task == "video_retrieval"
    assert Counter(row["query"] for row in results.predictions) == {"video": 9, "text": 10}


def test_an_interrupted_evaluation_goes_on(tmp_path, videos, captions, monkeypatch):
    """The videos of finished batches are not decoded again."""
    from vlp.data import video_batch

    model, decoded, real = make_model(), [], video_batch.load_frames

    def load_frames(path, count, size):
        decoded.append(path)
        if limit and len(decoded) > limit:
            raise KeyboardInterrupt
        return real(path, count, size)

    monkeypatch.setattr(video_batch, "load_frames", load_frames)
    settings = EvaluationSettings(batch_size=2, partial=str(tmp_path / "partial"), about={"model": "tiny"})
    limit = 7
    with pytest.raises(KeyboardInterrupt):
        evaluate_video_retrieval(model, captions, str(videos), FRAMES, 0, settings)
    limit, first = 0, len(decoded)
    resumed = evaluate_video_retrieval(model, captions, str(videos), FRAMES, 0, settings)
    assert len(decoded) - first == 10 - 6
    whole = evaluate_video_retrieval(model, captions, str(videos), FRAMES, 0, EvaluationSettings(batch_size=2))
    assert resumed.metrics == whole.metrics
    with pytest.raises(UserError, match="another frames"):
        evaluate_video_retrieval(model, captions, str(videos), FRAMES + 1, 0, settings)


def test_a_list_without_readable_videos_is_refused(tmp_path, videos):
    path = write_list(tmp_path / "list.json", [{"video": "bad", "caption": "a dog"}])
    with pytest.raises(UserError, match=r"No video that .* can be read .*undecodable: 1"):
        evaluate_video_retrieval(make_model(), path, str(videos))
