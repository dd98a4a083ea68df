"""Moving scenes: the same every time, and no frame shows both objects."""

import json

import numpy as np

from vlp.data.video import load_frames
from vlp.demo.scene_captions import read_caption
from vlp.demo.scenes import BACKGROUNDS, PAINT
from vlp.demo.video_scenes import LIST, make_video_scenes

SIZE = 64


def shown_colors(frame: np.ndarray) -> set[str]:
    """The colors of the objects in a frame [3, SIZE, SIZE]: of those that more pixels have than edges do."""
    names = list(PAINT) + list(BACKGROUNDS)
    palette = np.array([*PAINT.values(), *BACKGROUNDS.values()])
    pixels = frame.reshape(3, -1).T.astype(int)
    distances = np.abs(pixels[:, None] - palette).max(axis=2)
    nearest = distances.argmin(axis=1)[distances.min(axis=1) < 30]
    counts = np.bincount(nearest, minlength=len(names))
    return {name for name, count in zip(names, counts, strict=True) if name in PAINT and count >= 20}


def test_every_frame_shows_at_most_one_object_and_the_video_both(tmp_path):
    make_video_scenes(tmp_path / "videos", 12, SIZE, "test")
    rows = [json.loads(line) for line in (tmp_path / "videos" / LIST).read_text().splitlines()]
    assert len(rows) == 12
    different = 0
    for row in rows:
        objects, relation = read_caption(row["caption"])
        colors = {thing["colour"] for thing in objects}
        frames = load_frames(tmp_path / "videos" / f"{row['clip_name']}.mp4", 8, SIZE)
        assert relation and len(objects) == 2
        assert set().union(*map(shown_colors, frames)) == colors
        if len(colors) == 2:
            different += 1
            assert all(len(shown_colors(frame)) <= 1 for frame in frames)
    assert different >= 8


def test_the_seed_decides_the_videos(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        make_video_scenes(tmp_path / name, 2, 32, seed)
    a, b, c = ((tmp_path / name / LIST).read_text() for name in "abc")
    assert a == b != c
    frames = [load_frames(tmp_path / name / "00001.mp4", 4, 32) for name in "ab"]
    assert (frames[0] == frames[1]).all()
