"""Bad lists of videos and bad videos on the command line: one sentence, or skipped, counted and named."""

import json

import pytest
from videos import write_audio, write_list, write_noise_videos

from tests.end_to_end.bad_input import refused, run


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_noise_videos(folder, 3)
    write_audio(folder / "song.mp4")
    (folder / "empty.mp4").touch()
    return folder


ROW = {"video": "v0", "caption": "a red circle", "question": "what", "answer": "red"}


@pytest.mark.parametrize(
    "command, rows, says",
    [
        ("video-retrieval", [], "neither a JSON list of rows nor JSON lines"),
        ("video-retrieval", [{"image": "a.jpg", "caption": "a dog"}], "does not list videos"),
        ("video-retrieval", [ROW | {"video": "song"}], "can be read (no video: 1); repair the videos"),
        ("video-qa", [ROW], "not finetuned for vqa"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(command, rows, says, tmp_path, videos, models):
    path = write_list(tmp_path / "list.jsonl", rows)
    out = tmp_path / "out.json"
    refused(run("evaluate", command, models[0], path, "--videos", videos, "--out", out), says)
    assert not out.exists()


def test_bad_videos_are_counted_and_the_results_tell_over_how_many(tmp_path, videos, models):
    names = ["v0", "v1", "v2", "song", "empty", "bad", "absent"]
    rows = [{"video": name, "caption": f"a red circle above {name}"} for name in names]
    path = write_list(tmp_path / "list.jsonl", rows)
    out = tmp_path / "out.json"
    outcome = run("evaluate", "video-retrieval", models[0], path, "--videos", videos, "--out", out, "--json")
    assert outcome.code == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["videos"] == metrics["texts"] == 3
    assert {name: value for name, value in metrics.items() if name.startswith("skipped")} == {
        "skipped": 4,
        "skipped: missing file": 1,
        "skipped: no video": 1,
        "skipped: video undecodable": 1,
        "skipped: zero bytes": 1,
    }
    assert "absent: missing file" in outcome.err


def test_search_and_captions_name_bad_videos(videos, models):
    found = run("search", models[0], videos, "--query", "a red circle", "--json")
    assert found.code == 0 and len(found.values()) == 3
    assert "song.mp4: no video" in found.err and "empty.mp4: zero bytes" in found.err
    refused(run("caption", models[0], videos / "song.mp4"), "song.mp4 cannot be used as a video: no video")
