"""Pictures and videos that visitors upload: checked before anything decodes them, and shown small."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from vlp.app.pieces import note
from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import EncodedImage, shrink_for
from vlp.data.image_encoding import small_jpeg
from vlp.data.video import is_video, load_frame
from vlp.errors import UserError
from vlp.report.page import data_uri

LARGEST = 20 * 2**20  # bytes
MOST_PIXELS = 40_000_000
SHOWN = 512  # pixels of the longer side
VIDEO_FRAMES = 16  # to choose from


@dataclass(frozen=True)
class Upload:
    """A file in the page's folder for uploads.

    Attributes:
        path: where it is.
        frame: of a video, from 1 to `VIDEO_FRAMES`; 0: all of it.
    """

    path: str
    frame: int = 0

    @property
    def name(self) -> str:
        """As commands name it: the visitor's name of the file, or that of a frame that was saved."""
        return f"frame-{self.frame}.png" if self.frame else _argument(os.path.basename(self.path))

    def command(self, line: str) -> str:
        """A command line that names the upload by `name`, after the one that saves the frame of a video."""
        if not self.frame:
            return line
        video = shlex.quote(_argument(os.path.basename(self.path)))
        return f"vlp data frame {video} --number {self.frame} --of {VIDEO_FRAMES} --out {self.name} && {line}"

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.path)

    def image(self) -> str | Image.Image:
        """What a model takes: the path, or the frame of a video.

        Raises:
            UserError: the file is gone, or it is damaged.
        """
        if not os.path.exists(self.path):
            raise UserError("The uploaded file is not kept any more; upload it again.")
        if not self.frame:
            return self.path
        try:
            return Image.fromarray(load_frame(self.path, self.frame, VIDEO_FRAMES))
        except BadSampleError as error:
            raise _unusable(self.path, error) from None


def check_upload(path: str) -> Upload:
    """An upload that can be used; of a video, its middle frame.

    Raises:
        UserError: it is too large, or neither an image nor a video that can be read.
    """
    name = os.path.basename(path)
    if os.path.getsize(path) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST // 2**20} MB; choose a smaller file.")
    if is_video(path):
        upload = Upload(path, VIDEO_FRAMES // 2)
        upload.image()
        return upload
    try:
        header = EncodedImage(Path(path).read_bytes())
        if header.width * header.height > MOST_PIXELS:
            raise UserError(
                f"{name} has {header.width} x {header.height} pixels, and {MOST_PIXELS // 1_000_000} million are "
                "allowed; make it smaller."
            )
        header.pixels(shrink_for(header.width, header.height, SHOWN))
    except BadSampleError as error:
        raise _unusable(path, error) from None
    return Upload(path)


def read_upload(path: str | None) -> tuple[Upload | None, str]:
    """An upload that can be used, and its picture; or None and a sentence."""
    try:
        upload = check_upload(path) if path else None
        return upload, shown_html(upload) if upload else ""
    except UserError as error:
        return None, note(str(error), "error")


def shown_html(upload: Upload, caption: str = "") -> str:
    """An upload as a small picture; of all frames of a video, the middle one.

    Raises:
        UserError: as in `Upload.image`.
    """
    whole = upload.is_video and not upload.frame
    image = Upload(upload.path, VIDEO_FRAMES // 2).image() if whole else upload.image()
    if isinstance(image, str):
        header = EncodedImage(Path(image).read_bytes())
        image = Image.fromarray(header.pixels(shrink_for(header.width, header.height, SHOWN)))
    return picture_html(image, caption or os.path.basename(upload.path))


def picture_html(picture: Image.Image, caption: str, alt: str = "") -> str:
    """A picture, made smaller, with a line below it."""
    return str(
        Markup('<figure class="vlp-picture"><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            data_uri(small_jpeg(_enlarged(picture), SHOWN), "jpeg"), alt or caption, caption
        )
    )


def _argument(name: str) -> str:
    """A file's name as an argument of a command, which would take a name such as -v.png for an option."""
    return f"./{name}" if name.startswith("-") else name


def _enlarged(picture: Image.Image) -> np.ndarray:
    """RGB pixels, uint8 [height, width, 3]; of small pictures, enlarged by a whole factor."""
    factor = max(1, SHOWN // 2 // max(picture.size))
    return np.asarray(picture.convert("RGB")).repeat(factor, 0).repeat(factor, 1)


def _unusable(path: str, error: BadSampleError) -> UserError:
    kind, others = ("a video", "") if is_video(path) else ("a picture", "; choose a JPEG, PNG or WebP file")
    return UserError(f"{os.path.basename(path)} cannot be used as {kind}: {error.reason}{others}.")
