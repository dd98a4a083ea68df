"""Batches of listed videos, whose frames worker processes may decode."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlp.data.bad_samples import BadSampleError
from vlp.data.video import find_av, load_frames
from vlp.data.video_lists import ListedVideo


@dataclass
class VideoBatch:
    """Frames uint8 [videos, frames, 3, size, size] of videos, and the videos that are skipped with the reasons."""

    frames: Tensor
    videos: list[ListedVideo] = field(default_factory=list)
    skipped: list[tuple[ListedVideo, str]] = field(default_factory=list)


@dataclass(frozen=True)
class VideoDecoder:
    """Decodes listed videos; can be sent to worker processes. Raises UserError if `av` is not installed."""

    frames: int
    image_size: int

    def __post_init__(self) -> None:
        find_av()  # here, where a UserError does not come from a worker process

    def __call__(self, videos: Sequence[ListedVideo]) -> VideoBatch:
        """The frames of the videos that can be read."""
        batch = VideoBatch(torch.empty(0, self.frames, 3, self.image_size, self.image_size, dtype=torch.uint8))
        decoded = []
        for video in videos:
            try:
                decoded.append(load_frames(video.path, self.frames, self.image_size))
                batch.videos.append(video)
            except BadSampleError as error:
                batch.skipped.append((video, error.reason))
        if decoded:
            batch.frames = torch.from_numpy(np.stack(decoded))
        return batch
