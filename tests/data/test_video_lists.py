"""Lists of videos: their forms, where the files are, and rows that are skipped and counted."""

import json

import pytest
import torch
from videos import gray_frames, numbers, write_video

from vlp.data.video_batch import VideoDecoder
from vlp.data.video_lists import read_video_captions, read_video_questions
from vlp.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Files that are only named: video1.mp4, video2.avi, sub/vid3.webm and a text."""
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name in ("video1.mp4", "video2.avi", "sub/vid3.webm", "notes.txt"):
        (tmp_path / "videos" / name).write_bytes(b"x")
    (tmp_path / "outside.mp4").write_bytes(b"x")
    return str(tmp_path / "videos")


def write(tmp_path, rows, lines=False):
    path = tmp_path / "list.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("lines", [False, True])
def test_captions_of_videos(tmp_path, folder, lines):
    rows = [
        {"clip_name": "video1", "caption": "a dog runs"},
        {"video": "video2.avi", "caption": ["a car", "a red car", "a car"]},
        {"clip_name": "video1", "caption": "a dog is running"},
        {"video_id": 3, "caption": "a cat"},
    ]
    videos, skipped = read_video_captions(write(tmp_path, rows, lines), folder)
    assert [(video.name, video.captions) for video in videos] == [
        ("video1", ["a dog runs", "a dog is running"]),
        ("video2.avi", ["a car", "a red car"]),
        ("3", ["a cat"]),
    ]
    assert [video.path.removeprefix(folder) for video in videos] == ["/video1.mp4", "/video2.avi", "/sub/vid3.webm"]
    assert not skipped


def test_line_separators_in_captions_end_no_row(tmp_path, folder):
    rows = [{"video": "video1", "caption": "a dog\u2028runs"}, {"video": "video2", "caption": "a\x85car"}]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    videos, skipped = read_video_captions(str(tmp_path / "list.jsonl"), folder)
    assert [video.captions for video in videos] == [[row["caption"]] for row in rows] and not skipped


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path, folder, caplog):
    rows = [
        {"clip_name": "video1", "caption": "a dog"},
        {"clip_name": "video1", "caption": "a dog"},
        {"clip_name": "video9", "caption": "a dog"},
        {"clip_name": "../outside", "caption": "a dog"},
        {"clip_name": "notes", "caption": "a dog"},
        {"clip_name": "video2", "caption": "..."},
        {"clip_name": "video2"},
        {"caption": "a dog"},
        ["no row"],
    ]
    videos, skipped = read_video_captions(write(tmp_path, rows), folder)
    assert [video.name for video in videos] == ["video1"]
    assert skipped == {"duplicate row": 1, "missing file": 3, "no text": 2, "bad row": 1, "bad json": 1}
    assert "row 3 video9: missing file" in caplog.text


def test_questions_about_videos(tmp_path, folder):
    rows = [
        {"video": "video1", "question": "what runs?", "answer": "dog", "question_id": 7},
        {"video_id": 1, "question": "how many?", "answer": 2, "id": 8},
        {"video": "video2.avi", "question": "who?", "answer": "man"},
        {"video": "video2", "question": "who?", "answer": "man", "id": 7},
        {"video": "video2", "question": "who?", "answer": ""},
        {"video": "video2", "question": "", "answer": "man"},
        {"video": "video8", "question": "who?", "answer": "man"},
    ]
    videos, skipped = read_video_questions(write(tmp_path, rows), folder)
    found = [[(one.number, one.text, one.answer) for one in video.questions] for video in videos]
    assert found == [[(7, "what runs?", "dog"), (8, "how many?", "2")], [("row 3", "who?", "man")]]
    assert skipped == {"duplicate question id": 1, "no answer": 1, "no question": 1, "missing file": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "neither a JSON list"),
        ("[]", "neither a JSON list"),
        ('[{"image": "a.jpg", "caption": "a dog"}]', "does not list videos"),
        ('[{"video": "a", "question": "who?"}]', "no row has a 'caption'"),
    ],
)
def test_another_file_is_refused(tmp_path, folder, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_video_captions(str(tmp_path / "list.json"), folder)


def test_missing_folders_and_lists_are_named(tmp_path, folder):
    path = write(tmp_path, [{"video": "video1", "caption": "a dog"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no list of videos"):
        read_video_captions(f"{path}.x", folder)
    with pytest.raises(UserError, match="no folder of videos"):
        read_video_captions(path, f"{folder}.x")
    with pytest.raises(UserError, match="has no video files"):
        read_video_captions(path, str(tmp_path / "empty"))


def test_a_batch_leaves_out_damaged_videos(tmp_path):
    write_video(tmp_path / "a.mp4", gray_frames(8))
    write_video(tmp_path / "c.mkv", gray_frames(4))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    rows = [{"video": name, "caption": f"video {name}"} for name in "abc"]
    videos, skipped = read_video_captions(write(tmp_path, rows), str(tmp_path))
    batch = VideoDecoder(2, 16)(videos)
    assert not skipped and batch.frames.shape == (2, 2, 3, 16, 16) and batch.frames.dtype == torch.uint8
    assert [video.name for video in batch.videos] == ["a", "c"]
    assert [(video.name, reason) for video, reason in batch.skipped] == [("b", "video undecodable")]
    assert [numbers(frames) for frames in batch.frames.numpy()] == [[2, 6], [1, 3]]
