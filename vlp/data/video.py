"""Videos to frames: sampled uniformly over time, each at the model's size like an image for evaluation."""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import MAX_PIXELS
from vlp.data.transforms import evaluation_image
from vlp.extras import extra

if TYPE_CHECKING:
    from av import VideoFrame

VIDEO_EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi")
# FFmpeg's readers of these containers. Some of its other readers, such as that of playlists, open further files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
SEEK_SECONDS = 4.0  # between two frames: from here on, seeking is cheaper than decoding what lies between them
GAP_SECONDS = 1.0  # without a frame, which is damage if decoding failed or the video ended before its duration


def is_video(path: str | Path) -> bool:
    """Whether the name of a file is that of a video."""
    return Path(path).suffix.lower().lstrip(".") in VIDEO_EXTENSIONS


def load_frames(path: str | Path, count: int, size: int) -> np.ndarray:
    """`count` frames of a video, in order of time: uint8 [count, 3, size, size].

    The video is divided into `count` parts of equal length, and the frame that is shown in the middle of each part is
    taken; so the frames of a short video repeat. BLIP takes the first frame of each part, which makes the opening of a
    video one of its frames. Long videos are read by seeking, and one frame is decoded at a time.

    Raises:
        BadSampleError: the file is missing, empty, damaged, truncated or has no video.
        UserError: `av` is not installed.
    """
    return np.stack(_read(path, count, range(count), lambda pixels: evaluation_image(pixels, size)))


def load_frame(path: str | Path, number: int, count: int) -> np.ndarray:
    """One of the `count` frames of `load_frames` in its own size: uint8 [height, width, 3].

    Args:
        number: from 1 to `count`.

    Raises:
        BadSampleError, UserError: as in `load_frames`.
    """
    (frame,) = _read(path, count, [number - 1], lambda pixels: pixels)
    return frame


def _read(
    path: str | Path, count: int, numbers: Iterable[int], convert: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Some of `count` frames, by rising number from 0, each converted before the next is decoded."""
    av = find_av()
    from av.error import FFmpegError

    _check_file(Path(path))
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path), options=options, metadata_errors="ignore") as container:
            reader = _Reader(container, count)
            return [convert(_pixels(reader.frame_at(number))) for number in numbers]
    except (FFmpegError, OSError, ValueError):  # ValueError: sizes or times that make no sense
        raise BadSampleError("video undecodable") from None


def find_av() -> Any:
    """The module `av`, which decodes videos.

    Raises:
        UserError: it is not installed.
    """
    with extra("video"):
        import av
    return av


class _Reader:
    """The frames of an open video by their part of its length. Times are exact fractions of a second."""

    def __init__(self, container: Any, count: int):
        """Find the video stream, its first frame and its length.

        Raises:
            BadSampleError: there is no video stream, or it has no frame.
        """
        self.container = container
        self.stream = _video_stream(container)
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.stream.codec_context.thread_count = 1  # worker processes decode in parallel
        self.base = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.failures = 0
        self.part = self._length() / count
        self.seeks = self.part > SEEK_SECONDS
        self.shown: VideoFrame | None = None
        self.frames = self._decode()
        self.following = next(self.frames, None)
        if self.following is None:
            raise BadSampleError("video undecodable")
        self.start = self._time(self.following)  # the header may say otherwise

    def frame_at(self, number: int) -> "VideoFrame":
        """The frame that is shown in the middle of a part; call it with rising numbers.

        Raises:
            BadSampleError: there is none, because the video is truncated or damaged.
        """
        time = self.start + (number + Fraction(1, 2)) * self.part
        if self.seeks:
            self._seek(time)
        while self.following is not None and self._time(self.following) <= time:
            self.shown, self.following = self.following, next(self.frames, None)
        frame = self.shown or self.following
        if frame is None:
            raise BadSampleError("truncated")
        gap = time - self._time(frame) - self._shown_for(frame)
        if gap > max(GAP_SECONDS, self.part) and (self.following is None or self.failures):
            raise BadSampleError("truncated" if self.following is None else "video undecodable")
        return frame

    def _seek(self, time: Fraction) -> None:
        """Go to the last key frame before a time."""
        self.container.seek(int(time / self.base), stream=self.stream)
        self.shown, self.frames = None, self._decode()
        self.following = next(self.frames, None)

    def _decode(self) -> Iterator["VideoFrame"]:
        """The frames from here to the end; damaged packets are left out."""
        from av.error import FFmpegError

        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except FFmpegError:
                    self.failures += 1
        except FFmpegError:
            self.failures += 1

    def _time(self, frame: "VideoFrame") -> Fraction:
        return (frame.pts or 0) * Fraction(frame.time_base or self.base)

    def _shown_for(self, frame: "VideoFrame") -> Fraction:
        """How long a frame is shown, by the container or else by the frame rate."""
        if frame.duration:
            return frame.duration * Fraction(frame.time_base or self.base)
        return 1 / Fraction(self.stream.average_rate) if self.stream.average_rate else Fraction(0)

    def _length(self) -> Fraction:
        """The duration. Packets tell it where the container does not, as in recordings of a stream."""
        if self.stream.duration:
            return self.stream.duration * self.base
        if self.container.duration:
            return Fraction(self.container.duration, 1_000_000)
        first, end = None, 0
        for packet in self.container.demux(self.stream):
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
        self.container.seek(0)
        return (end - (first or 0)) * self.base


def _check_file(path: Path) -> None:
    """Raise a BadSampleError for what is no file with content."""
    try:
        if not path.is_file():
            raise BadSampleError("not a file" if path.exists() else "missing file")
        if not path.stat().st_size:
            raise BadSampleError("zero bytes")
    except (OSError, ValueError):  # names that are too long or hold a zero byte
        raise BadSampleError("missing file") from None


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures; raises BadSampleError if there is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song
            return stream
    raise BadSampleError("no video")


def _pixels(frame: "VideoFrame") -> np.ndarray:
    """Upright RGB pixels, uint8 [height, width, 3]."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # counterclockwise
