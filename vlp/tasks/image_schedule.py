"""Cheaper images for a part of a run: fewer patches until its end (FLIP), a lower resolution at its start (CLIPA)."""

from vlp.config import ObjectiveConfig
from vlp.models.image_encoders.encoder import ImageEncoder, ImageView


def image_view(objective: ObjectiveConfig, progress: float) -> ImageView:
    """The view of a step, which depends on nothing but the settings and the share of the run's steps that are done."""
    keep = 1.0 if progress >= 1 - objective.unmasked_share else 1 - objective.patch_dropout
    return ImageView(keep, objective.first_image_size if progress < objective.first_size_share else 0)


def check_views(objective: ObjectiveConfig, encoder: ImageEncoder) -> None:
    """Check that the encoder can encode every view of a run.

    Raises:
        UserError: it cannot drop patches, or does not take the lower resolution.
    """
    encoder.check_keep(1 - objective.patch_dropout)
    if objective.first_image_size:
        encoder.check_size(objective.first_image_size)
