"""NLVR2 finetuning: whether a sentence is true of two images, as a classification (paper, section 5.4)."""

from torch.nn import functional as F

from vlp.config import RunConfig
from vlp.data.examples_nlvr2 import Nlvr2Batch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.blip import Blip
from vlp.tasks.language import freeze
from vlp.tasks.task import Task, TaskOutput


class Nlvr2Task(Task):
    """Cross-entropy of the pair head."""

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.model = model
        freeze([*model.decoder_only_parts(), model.image_projection, model.text_projection, model.itm_head])
        model.log_temperature.requires_grad_(False)

    def forward(self, batch: Nlvr2Batch) -> TaskOutput:
        """The loss `classification` and the metric `accuracy` of a batch.

        Every process has a batch of the same size, so the mean over processes is that of the global batch.
        """
        memory = self.model.pair_memory(batch.images)
        logits = self.model.pair_logits(batch.text_ids, batch.text_mask, memory).float()  # [batch, 2]
        right = (logits.argmax(dim=-1) == batch.labels).float().mean()
        return TaskOutput({"classification": F.cross_entropy(logits, batch.labels)}, {"accuracy": right})
