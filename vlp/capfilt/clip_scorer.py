"""Scores texts with an open_clip model: the cosine of image and text embeddings."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlp.config import Precision
from vlp.data.score_tables import files_hash
from vlp.errors import UserError
from vlp.models.precision import compute_dtype

TEXTS = 512  # texts that are encoded at once
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # open_clip's names


class ClipScorer:
    """A model of open_clip, in evaluation mode.

    Attributes:
        identity: the model's name, and the hash of the weights file or the pretrained tag.
    """

    def __init__(self, source: str, device: torch.device | None = None, precision: Precision = "auto"):
        """Load NAME,PRETRAINED: one of open_clip's models, with one of its pretrained tags or a .safetensors file.

        Raises:
            UserError: open_clip has no such model or tag, or the file cannot be loaded into the model.
        """
        import open_clip  # takes seconds
        from safetensors import SafetensorError

        name, _, pretrained = source.partition(",")
        if name not in open_clip.list_models():
            raise UserError(f"open_clip has no model {name!r}; choose a name from `open_clip.list_models()`.")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags and not (pretrained.endswith(".safetensors") and Path(pretrained).is_file()):
            raise UserError(
                f"open_clip:{source} needs a .safetensors file (other formats can run code) or one of open_clip's tags "
                f"for {name}: {', '.join(tags) or 'none'}."
            )
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = compute_dtype(precision, self.device) or torch.float32
        try:
            created: Any = open_clip.create_model_from_pretrained(
                name, pretrained, PRECISIONS[self.dtype], device=self.device
            )
        except (RuntimeError, OSError, ValueError, SafetensorError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"open_clip:{source} cannot be loaded: {problem}.") from None
        model, self.prepare_image = created
        self.model = model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        weights = pretrained if pretrained in tags else files_hash([Path(pretrained)])
        self.identity = f"open_clip:{name},{weights}"
        size = model.visual.image_size
        self.image_size: int = max(size) if isinstance(size, tuple) else size

    def prepare(self, image: Image.Image) -> Tensor:
        """Preprocess an image for the model: float32 [3, size, size]."""
        return self.prepare_image(image)

    def encode_images(self, images: Tensor) -> Tensor:
        """Preprocessed images [images, 3, size, size] -> unit vectors float32 [images, width]."""
        with torch.no_grad():
            return F.normalize(self.model.encode_image(images.to(self.device, self.dtype)).float(), dim=-1)

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
            with torch.no_grad():
                ids = self.tokenizer(texts[start : start + TEXTS]).to(self.device)
                encoded = F.normalize(self.model.encode_text(ids).float(), dim=-1)
            seen = vectors[torch.tensor(rows[start : start + TEXTS], device=self.device)]
            cosines.append((seen * encoded).sum(dim=-1).cpu())
        return torch.cat(cosines)
