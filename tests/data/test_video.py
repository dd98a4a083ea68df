"""Frames of videos: which ones, in what order, upright, and what happens to damaged files."""

import tracemalloc

import av
import numpy as np
import pytest
from videos import gray_frames, numbers, rotate, write_audio, write_video

from vlp.data.bad_samples import BadSampleError
from vlp.data.transforms import evaluation_image
from vlp.data.video import is_video, load_frame, load_frames

FASTSTART = {"movflags": "faststart"}


@pytest.mark.parametrize(
    "name, codec", [("v.mp4", "mpeg4"), ("v.mkv", "libx264"), ("v.avi", "mpeg4"), ("v.mov", "mpeg4")]
)
@pytest.mark.parametrize("b_frames", [0, 2])
def test_the_middle_of_equal_parts_of_the_time(tmp_path, name, codec, b_frames):
    path = write_video(tmp_path / name, gray_frames(20), codec=codec, b_frames=b_frames)  # 2 seconds
    frames = load_frames(path, 4, 32)
    assert frames.shape == (4, 3, 32, 32) and frames.dtype == np.uint8
    assert numbers(frames) == [2, 7, 12, 17]  # at 0.25, 0.75, 1.25 and 1.75 seconds
    assert numbers(load_frames(path, 1, 32)) == [10]


def test_frames_equal_those_of_a_plain_loop_over_all(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 56, 3), dtype=np.uint8)
    path = write_video(tmp_path / "noise.mp4", list(noise))
    with av.open(str(path)) as container:
        decoded = [evaluation_image(frame.to_ndarray(format="rgb24"), 24) for frame in container.decode(video=0)]
    assert (load_frames(path, 3, 24) == np.stack(decoded)[[2, 6, 10]]).all()
    single = load_frame(path, 2, 3)  # the same frame in its own size
    assert single.shape == (40, 56, 3) and (evaluation_image(single, 24) == decoded[6]).all()


def test_variable_frame_rates_are_sampled_by_time(tmp_path):
    path = write_video(tmp_path / "v.mkv", gray_frames(5), times=[0, 0.1, 0.2, 3, 7.9])  # 8 seconds
    assert numbers(load_frames(path, 4, 32)) == [2, 3, 3, 3]  # at 1, 3, 5 and 7 seconds


@pytest.mark.parametrize("frames, expected", [(1, [0] * 8), (3, [0, 0, 0, 1, 1, 2, 2, 2])])
def test_frames_of_short_videos_repeat(tmp_path, frames, expected):
    path = write_video(tmp_path / "short.mp4", gray_frames(frames))
    assert numbers(load_frames(path, 8, 32)) == expected


def test_a_recording_that_does_not_record_its_duration(tmp_path):
    path = write_video(tmp_path / "live.mkv", gray_frames(20), options={"live": "1"})
    with av.open(str(path)) as container:
        assert not container.duration and not container.streams.video[0].duration
    assert numbers(load_frames(path, 4, 32)) == [2, 7, 12, 17]


def test_sound_that_goes_on_after_the_pictures(tmp_path):
    path = write_video(tmp_path / "sound.mkv", gray_frames(8), audio=True)  # 0.8 of 1.28 seconds
    assert numbers(load_frames(path, 4, 32))[-1] == 7


@pytest.mark.parametrize(
    "matrix, corner",
    [((1, 0, 0, 1), (0, 0)), ((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))],
)
def test_rotated_videos_are_turned_upright(tmp_path, matrix, corner):
    """The matrices of 0, 90, 180 and 270 degrees clockwise move the upper left corner."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    path = write_video(tmp_path / "phone.mp4", [pixels] * 3)
    rotate(path, matrix)
    frame = load_frames(path, 1, 40)[0].mean(axis=0)
    corners = {(y, x): frame[y, x] for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.__getitem__) == corner
    assert sorted(corners.values())[-2] < 60


def count_decoded(monkeypatch) -> list[int]:
    """The number of decoded frames, in a list."""
    from vlp.data import video

    decoded = [0]
    real = video._Reader._decode

    def decode(self):
        for frame in real(self):
            decoded[0] += 1
            yield frame

    monkeypatch.setattr(video._Reader, "_decode", decode)
    return decoded


def test_an_hour_is_read_by_seeking(tmp_path, monkeypatch):
    frames = [np.full((16, 16, 3), number % 240, np.uint8) for number in range(3600)]
    path = write_video(tmp_path / "hour.mp4", frames, times=list(range(3600)), gop=10)
    decoded = count_decoded(monkeypatch)
    found = load_frames(path, 8, 16).mean(axis=(1, 2, 3))
    expected = [(450 * number + 225) % 240 for number in range(8)]
    assert np.abs(found - expected).max() <= 2
    assert decoded[0] <= 8 * 12 + 2  # one group of pictures for each


def test_short_videos_are_decoded_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", gray_frames(20), gop=100)
    decoded = count_decoded(monkeypatch)
    load_frames(path, 16, 32)
    assert decoded[0] <= 20


def test_one_large_frame_is_in_memory_at_a_time(tmp_path):
    path = write_video(tmp_path / "4k.mp4", [np.full((2160, 3840, 3), 99, np.uint8)] * 6, codec="libx264")
    tracemalloc.start()  # NumPy's arrays; FFmpeg's own buffers are not counted
    try:
        load_frames(path, 6, 32)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 2160 * 3840 * 3
    finally:
        tracemalloc.stop()


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def noisy(path, **settings):
    noise = np.random.default_rng(0).integers(0, 256, (80, 48, 64, 3), dtype=np.uint8)
    return write_video(path, list(noise), **settings)  # 8 seconds


def without_size(path):
    """An avi file whose stream has 0 x 0 pixels."""
    write_video(path, gray_frames(3), codec="rawvideo")
    data = bytearray(path.read_bytes())
    start = data.index(b"strf") + 12
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    return path


def playlist(path):
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    return path


def folder(path):
    path.mkdir()
    return path


def with_bytes(data):
    def write(path):
        path.write_bytes(data)
        return path

    return write


BAD = {
    "missing": ("v.mp4", lambda path: path, "missing file"),
    "name too long": ("v" * 300 + ".mp4", lambda path: path, "missing file"),
    "folder": ("v.mp4", folder, "not a file"),
    "zero bytes": ("v.mp4", with_bytes(b""), "zero bytes"),
    "text": ("v.mp4", with_bytes(b"not a video\n" * 100), "video undecodable"),
    "playlist": ("v.mp4", playlist, "video undecodable"),
    "audio only": ("v.mp4", write_audio, "no video"),
    "index cut off": ("v.mp4", lambda path: cut(noisy(path), 0.6), "video undecodable"),
    "truncated mp4": ("v.mp4", lambda path: cut(noisy(path, options=FASTSTART), 0.5), "truncated"),
    "truncated mkv": ("v.mkv", lambda path: cut(noisy(path), 0.5), "truncated"),
    "0 x 0": ("v.avi", without_size, "video undecodable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_videos_are_named(tmp_path, name):
    file, make, reason = BAD[name]
    path = make(tmp_path / file)
    with pytest.raises(BadSampleError) as error:
        load_frames(path, 4, 32)
    assert error.value.reason == reason


def test_a_truncated_long_video_is_found_by_seeking(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    path = write_video(tmp_path / "long.mp4", list(noise), times=list(range(100)), options=FASTSTART)
    with pytest.raises(BadSampleError, match="truncated"):
        load_frames(cut(path, 0.5), 8, 16)


def test_damage_in_the_middle_costs_only_the_frames_there(tmp_path):
    path = noisy(tmp_path / "v.mp4", options=FASTSTART, gop=4)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    assert load_frames(path, 8, 32).shape == (8, 3, 32, 32)


@pytest.mark.parametrize(
    "name, expected", [("a/clip.MP4", True), ("clip.webm", True), ("photo.jpg", False), ("mp4", False)]
)
def test_videos_are_known_by_their_names(name, expected):
    assert is_video(name) == expected
