"""Scores texts with a CLIP model, of ours or of open_clip: the cosine of image and text embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlp.config import Precision
from vlp.convert.open_clip_models import OPEN_CLIP, create_open_clip
from vlp.data.score_tables import files_hash
from vlp.data.transforms import evaluation_image, resized_part
from vlp.model import Model
from vlp.models.precision import compute_dtype

TEXTS = 512  # texts that are encoded at once
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # open_clip's names


@dataclass
class ClipScorer:
    """A CLIP model as functions.

    Attributes:
        image_size: height and width of its images, in pixels.
        prepare: preprocesses an image for the model, to [3, size, size].
        encode_images: preprocessed images [images, 3, size, size] -> unit vectors float32 [images, width].
        encode_texts: texts -> unit vectors float32 [texts, width].
        model: the model, if it is one of ours.
    """

    image_size: int
    prepare: Callable[[Image.Image], Tensor]
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[list[str]], Tensor]
    model: Model | None = None

    def score(self, vectors: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """The cosine of each text, unchanged, and its image.

        Args:
            vectors: from `encode_images`.
            rows: the row in `vectors` of each text's image.

        Returns:
            float32 [texts], on the CPU.
        """
        cosines = [torch.empty(0)]
        for start in range(0, len(texts), TEXTS):
            encoded = self.encode_texts(texts[start : start + TEXTS])
            seen = vectors[torch.tensor(rows[start : start + TEXTS], device=vectors.device)]
            cosines.append((seen * encoded).sum(dim=-1).cpu())
        return torch.cat(cosines)


def clip_of_ours(model: Model) -> ClipScorer:
    """A CLIP model that `load_model` returned."""
    return ClipScorer(
        model.image_size,
        lambda image: torch.as_tensor(evaluation_image(image, model.image_size)),
        lambda images: model.embed_tokens(model.encode_images(images)),
        model.embed_texts,
        model,
    )


def clip_of_open_clip(
    source: str, device: torch.device | None = None, precision: Precision = "auto"
) -> tuple[ClipScorer, str]:
    """A model of open_clip, and the hash of its weights file or its pretrained tag.

    Args:
        source: see `create_open_clip`.

    Raises:
        UserError: open_clip has no such model or tag, or the file cannot be loaded into the model.
    """
    import open_clip  # takes seconds

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(precision, device) or torch.float32
    found = create_open_clip(source, PRECISIONS[dtype], device)
    tokenizer, model = open_clip.get_tokenizer(found.name), found.model

    def encode_images(images: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(model.encode_image(images.to(device, dtype)).float(), dim=-1)

    def encode_texts(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return F.normalize(model.encode_text(tokenizer(texts).to(device)).float(), dim=-1)

    def prepare(image: Image.Image) -> Tensor:
        shortest = found.preprocessing["resize_mode"] == "shortest"
        return found.prepare_image(image.crop(resized_part(*image.size, image_size)) if shortest else image)

    size = model.visual.image_size
    image_size = max(size) if isinstance(size, tuple) else size
    scorer = ClipScorer(image_size, prepare, encode_images, encode_texts)
    weights = files_hash([Path(found.weights)]) if Path(found.weights).is_file() else found.weights
    return scorer, f"{OPEN_CLIP}{found.name},{weights}"
