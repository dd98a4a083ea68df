"""Images as people have them (paths, pictures, tensors) as a model takes them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import decode_pixels
from vlp.data.transforms import evaluation_image
from vlp.errors import UserError

ImageLike = str | Path | Image.Image | Tensor


def load_image(image: ImageLike, size: int) -> Tensor:
    """One image as the model takes it: [3, size, size], uint8, or float as it was given.

    Raises:
        UserError: a path does not lead to an image, or a tensor has the wrong shape.
    """
    if isinstance(image, Tensor):
        if tuple(image.shape) != (3, size, size) or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(
                f"A tensor image must be uint8 or float [3, {size}, {size}], not {image.dtype} {list(image.shape)}."
            )
        return image
    if isinstance(image, Image.Image):
        return torch.as_tensor(evaluation_image(image.convert("RGB"), size))
    try:
        picture = decode_pixels(Path(image).read_bytes(), shortest=size)
    except OSError as error:
        raise UserError(f"{image} cannot be read: {error.strerror or error}.") from None
    except BadSampleError as error:
        raise UserError(f"{image} is not an image that can be used: {error.reason}.") from None
    return torch.as_tensor(evaluation_image(picture, size))


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list; a tensor of four dimensions holds several."""
    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, Tensor) and images.ndim == 3):
        return [images]
    return list(images)
