"""Compares the features of a CLIP of ours with those of open_clip's model that it was converted from or to."""

from typing import Any

import torch
from torch.nn import functional as F

from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError
from vlp.models.clip import Clip

CLOSE = 1e-3  # more than rounding changes in a component of a unit vector
TEXTS = ["a photo of the sea", "two dogs, one of them small, run after a red ball"]


def check_features(theirs: Any, clip: Clip, tokenizer: CaptionTokenizer, name: str) -> None:
    """Check that two networks give equal features of a random image and of two texts of different lengths.

    Args:
        theirs: a model of open_clip.
        name: of the model, for the error.

    Raises:
        UserError: the features differ, so one model has a setting that the other one lacks.
    """
    size = clip.config.image_encoder.image_size
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    longest = tokenizer.longest(clip.config.text_tower.positions)
    ids, mask = tokenizer.encode([tokenizer.form.clean(text) for text in TEXTS], longest)
    padded = F.pad(ids, (0, longest - ids.shape[1]), value=tokenizer.pad_id)
    with torch.no_grad():
        ours = {"image": clip.embed_image_tokens(clip.encode_images(images)), "text": clip.embed_texts(ids, mask)}
        others = {"image": theirs.encode_image(images), "text": theirs.encode_text(padded)}
    for side, vectors in ours.items():
        if not (vectors - F.normalize(others[side].float(), dim=-1)).abs().max() < CLOSE:
            raise UserError(
                f"{name} cannot be converted: its {side} features in vlp and in open_clip differ, so one of them lacks "
                "a setting of the model."
            )
