"""Retrieval finetuning, which trains the filter: ITC and ITM, where all captions of an image are its positives."""

from vlp.config import RunConfig
from vlp.data.batch import Batch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.blip import Blip
from vlp.tasks.alignment import Alignment
from vlp.tasks.language import freeze
from vlp.tasks.task import Task, TaskOutput


class RetrievalTask(Task):
    """ITC and ITM on one batch.

    The targets of ITC share a row's weight among all columns of its image, in the batch and in the queue (ALBEF,
    section 5). BLIP's public code computes these targets too, but then trains on the own pair alone. Hard negatives
    come from all processes and never from the same image or caption, as in BLIP's configuration for COCO.
    """

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.model = model
        freeze(model.decoder_only_parts())
        self.alignment = Alignment(config, model, tokenizer)

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """Update the momentum twin and the settings that change during training."""
        self.alignment.start_step(self.model, step, epoch, progress)

    def forward(self, batch: Batch) -> TaskOutput:
        """The losses `itc` and `itm` of a batch, and the metrics of ITM."""
        image_tokens = self.model.encode_images(batch.images)  # [batch, tokens, width]
        drawn = self.alignment.contrast(self.model, batch, image_tokens, same_image=True)
        memory = self.model.text_tower.project_image(image_tokens, "encoder")
        return self.alignment.match(self.model, batch, drawn, image_tokens, memory)[0]
