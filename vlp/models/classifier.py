"""A classifier: an image encoder with a linear head on its summary, for classes that were learned from labels."""

from dataclasses import replace

from torch import Tensor, nn

from vlp.config_model import ModelConfig
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.two_towers import resize_images

HEAD_DEVIATION = 0.02  # of a new head's weights, as in ViT's and Compact Transformers' code


class Classifier(nn.Module):
    """Image encoder and linear head. `encode_images`, `resize_images` and others mean the same as in `Blip`.

    Attributes:
        config: of which only `image_encoder` and `classes`, the names of the classes, are used.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(config.image_encoder)
        self.config = replace(config, image_encoder=self.image_encoder.config)
        self.head = nn.Linear(self.image_encoder.width, len(config.classes))
        nn.init.trunc_normal_(self.head.weight, std=HEAD_DEVIATION)
        nn.init.zeros_(self.head.bias)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [batch, 3, size, size] (uint8, or normalized float) -> image tokens [batch, tokens, width]."""
        return self.image_encoder(images)

    def class_logits(self, image_tokens: Tensor) -> Tensor:
        """Image tokens [images, tokens, width], the summary first -> logits [images, classes]."""
        return self.head(image_tokens[:, 0])

    def resize_images(self, image_size: int) -> None:
        """Change the size of the images that the model takes, in pixels; position embeddings are interpolated."""
        resize_images(self, image_size)

    def checkpoint_activations(self) -> None:
        """Recompute blocks in the backward pass, which saves memory for about a third more compute."""
        self.image_encoder.checkpoint_activations()


def classifier_from(encoder: ImageEncoder, classes: list[str]) -> Classifier:
    """A classifier with a new head on a trained image encoder, whose weights are copied."""
    made = Classifier(ModelConfig(encoder.config, network="classifier", classes=classes))
    made.image_encoder.load_state_dict(encoder.state_dict())
    return made
