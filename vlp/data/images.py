"""Images and videos as users have them (paths, PIL images, tensors) to what a model takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.data.bad_samples import BadSampleError
from vlp.data.exif import orient, read_pil_orientation
from vlp.data.image_decoding import decode_pixels, to_rgb
from vlp.data.transforms import evaluation_image
from vlp.data.video import is_video, load_frame, load_frames
from vlp.errors import UserError

ImageLike = str | Path | Image.Image | Tensor


def load_image(image: ImageLike, size: int) -> Tensor:
    """One image as the model takes it: [3, size, size], uint8, or float if a float tensor is given.

    Paths and PIL images are turned upright by their EXIF orientation.

    Raises:
        UserError: a path does not lead to an image, an image is broken, or a tensor has the wrong shape or dtype.
    """
    if isinstance(image, Tensor):
        if tuple(image.shape) != (3, size, size) or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(
                f"A tensor image must be uint8 or float [3, {size}, {size}], not {image.dtype} {list(image.shape)}."
            )
        return image
    named = "The image" if isinstance(image, Image.Image) else str(image)
    try:
        if isinstance(image, Image.Image):
            pixels = orient(np.array(to_rgb(image)), read_pil_orientation(image))
        else:
            pixels = decode_pixels(Path(image).read_bytes(), shortest=size)
    except OSError as error:
        raise UserError(f"The image {str(image)!r} cannot be read: {error.strerror or error}.") from None
    except BadSampleError as error:
        raise UserError(f"{named} cannot be used as an image: {error.reason}.") from None
    return torch.as_tensor(evaluation_image(pixels, size))


def load_video(path: str | Path, frames: int, size: int) -> Tensor:
    """Frames of one video as the model takes them: uint8 [frames, 3, size, size]; see `load_frames`.

    Raises:
        UserError: the path does not lead to a video.
    """
    try:
        return torch.as_tensor(load_frames(path, frames, size))
    except BadSampleError as error:
        raise UserError(f"{path} cannot be used as a video: {error.reason}.") from None


def video_frame(path: str | Path, number: int, count: int) -> Image.Image:
    """One of `count` frames of a video, in its own size; `number` is from 1 to `count`. See `load_frames`.

    Raises:
        UserError: the path does not lead to a video, or there is no frame of this number.
    """
    if not 1 <= number <= count:
        raise UserError(f"The number of a frame is from 1 to {count}, not {number}.")
    try:
        return Image.fromarray(load_frame(path, number, count))
    except BadSampleError as error:
        raise UserError(f"{path} cannot be used as a video: {error.reason}.") from None


def is_video_path(image: ImageLike) -> bool:
    """Whether an image of a call is the path of a video."""
    return isinstance(image, (str, Path)) and is_video(image)


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list; a tensor with four dimensions holds several."""
    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, Tensor) and images.ndim == 3):
        return [images]
    return list(images)
