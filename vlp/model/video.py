"""Videos beside images: frames to tokens that one memory holds, and batches of images or videos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlp.data.images import ImageLike, is_video_path, load_video

if TYPE_CHECKING:
    from vlp.model.model import Model

FRAMES = 8  # of a video, as BLIP takes for retrieval
QUESTION_FRAMES = 16  # for questions about it


@dataclass
class Encoded:
    """Images or videos of a call that were encoded together.

    Attributes:
        rows: their positions in the call.
        tokens: [items, frames * tokens, width] on the model's device.
        frames: 1 for images.
    """

    rows: list[int]
    tokens: Tensor
    frames: int


def load_videos(model: "Model", paths: Sequence[str | Path], frames: int = FRAMES) -> Tensor:
    """Load the frames of videos as one batch for `encode_videos`: uint8 [videos, frames, 3, size, size].

    Raises:
        UserError: a video is unreadable.
    """
    return torch.stack([load_video(path, frames, model.image_size) for path in paths])


def encode_videos(model: "Model", frames: Tensor) -> Tensor:
    """Frames [videos, frames, 3, size, size] -> tokens [videos, frames * tokens, width] on the model's device.

    The tokens of the frames follow each other in one memory, without a mark of time (paper, section 5.6).
    """
    videos, count = frames.shape[:2]
    tokens = model.encode_images(frames.flatten(0, 1))  # [videos * frames, tokens, width]
    return tokens.unflatten(0, (videos, count)).flatten(1, 2)


def encode_all(
    model: "Model", images: Sequence[ImageLike], rows: Sequence[int], frames: int, batch_size: int
) -> Iterator[Encoded]:
    """Encode some images and videos of a call: images first, at most `batch_size` images or frames at once.

    Args:
        images: of the call; paths that end like videos are videos.
        rows: the positions of those to encode.
        frames: of each video.

    Raises:
        UserError: an image or a video is unreadable.
    """
    still = [row for row in rows if not is_video_path(images[row])]
    for first in range(0, len(still), batch_size):
        here = still[first : first + batch_size]
        yield Encoded(here, model.encode_images(model.load_images([images[row] for row in here])), 1)
    moving = [row for row in rows if is_video_path(images[row])]
    many = max(1, batch_size // frames)
    for first in range(0, len(moving), many):
        here = moving[first : first + many]
        loaded = load_videos(model, [str(images[row]) for row in here], frames)
        yield Encoded(here, encode_videos(model, loaded), frames)
