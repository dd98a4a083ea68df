"""Dialog finetuning: ITM tells true from false answers, given an image, its caption and the history of the dialog.

BLIP, section 5.5: the dialog encoder reads the history and the answer, and attends to the embeddings of the image and
of the caption, which are concatenated.
"""

from vlp.config import RunConfig
from vlp.data.examples_visdial import DialogBatch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import all_sum, world_size
from vlp.losses.matching import matching_loss
from vlp.models.blip import Blip
from vlp.tasks.language import freeze
from vlp.tasks.task import Task, TaskOutput


class VisDialTask(Task):
    """ITM on one batch; each image and caption is encoded and projected once for all its texts."""

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.model = model
        freeze([*model.decoder_only_parts(), model.image_projection, model.text_projection])
        model.log_temperature.requires_grad_(False)

    def forward(self, batch: DialogBatch) -> TaskOutput:
        """The loss `itm` of a batch, and the metric `itm_accuracy`: means over the texts of all processes."""
        model = self.model
        image_tokens = model.encode_images(batch.images)  # [batch, tokens, width]
        memory = model.dialog_memory(image_tokens, batch.caption_ids, batch.caption_mask)
        logits = model.match_logits(batch.text_ids, batch.text_mask, memory)  # [texts, 2]
        total, right, pairs = matching_loss(logits, batch.labels, batch.counted)
        pairs = all_sum(pairs).clamp(min=1)
        return TaskOutput({"itm": total * world_size() / pairs}, {"itm_accuracy": right * world_size() / pairs})
