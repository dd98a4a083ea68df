"""Small videos for tests, encoded by PyAV."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 12  # gray levels between one gray frame and the next


def gray_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    return [np.full((height, width, 3), 10 + STEP * number, np.uint8) for number in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of gray frames [count, 3, size, size]."""
    return [round((float(frame.mean()) - 10) / STEP) for frame in frames]


def write_video(path, frames, times=None, codec="mpeg4", gop=12, options=None, b_frames=0, audio=False) -> Path:
    """Encode frames that start at `times` in seconds; None: ten a second."""
    ticks = [round(1000 * time) for time in (times or [number / 10 for number in range(len(frames))])]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        sound = container.add_stream("aac", rate=16000) if audio else None
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr24" if codec == "rawvideo" else "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames = gop, b_frames
        context.time_base = Fraction(1, 1000)
        context.bit_rate = 4_000_000
        for tick, pixels in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            write_silence(container, sound)
    return Path(path)


def write_audio(path) -> Path:
    with av.open(str(path), "w") as container:
        write_silence(container, container.add_stream("aac", rate=16000))
    return Path(path)


def write_silence(container, stream) -> None:
    """Add 1.28 seconds without a sound."""
    for number in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Set the rotation of an mp4 file: the first two columns of the matrix in its track header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # after version and flags, times and id, reserved, layer to volume
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[start + place : start + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def write_noise_videos(folder: Path, count: int) -> None:
    """Readable videos v0.mp4, v1.mp4, ... of six frames, and a damaged one, bad.mp4."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, 6, 4, 6, 3), dtype=np.uint8)
    for number, frames in enumerate(blocks):
        write_video(folder / f"v{number}.mp4", list(frames.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "bad.mp4").write_bytes(b"no video")


def write_list(path: Path, rows: list[dict]) -> str:
    """JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
