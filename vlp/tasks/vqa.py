"""VQA finetuning: a question is read against the image, and its answers are decoded from the question's states."""

import torch

from vlp.config import RunConfig
from vlp.data.examples_vqa import QuestionBatch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import all_sum, world_size
from vlp.models.blip import Blip
from vlp.models.finetuned import require
from vlp.models.text_rows import true_places
from vlp.tasks.language import freeze
from vlp.tasks.task import Task, TaskOutput


class VqaTask(Task):
    """LM of the answers (BLIP, section 5.3), each weighted by the share of annotators who gave it.

    The loss is that of the authors' code (`models/blip_vqa.py`): the cross-entropies of an answer's tokens, [SEP]
    included, with label smoothing, are summed and multiplied by the answer's weight. The sum over answers is divided by
    the number of questions; there it is the number of images, with one question each.
    """

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        require(model.config, "vqa", "learn to answer questions")
        self.model = model
        self.smoothing = config.objective.label_smoothing
        freeze([model.image_projection, model.text_projection, model.itm_head])
        model.log_temperature.requires_grad_(False)

    def forward(self, batch: QuestionBatch) -> TaskOutput:
        """The loss `lm` of a batch."""
        model = self.model
        memory = model.text_tower.project_image(model.encode_images(batch.images))  # once for all questions
        questions = model.question_memory(batch.question_ids, batch.question_mask, memory, batch.image_index)
        ids, mask = batch.answer_ids, batch.answer_mask
        hidden = model.text_tower.decode(ids[:, :-1], mask[:, :-1], questions, batch.question_index)
        places = true_places(mask[:, 1:].flatten(), batch.predicted)
        weights = batch.weights.repeat_interleave(mask.shape[1] - 1)[places]
        total = model.word_loss(hidden.flatten(0, 1)[places], ids[:, 1:].flatten()[places], self.smoothing, weights)
        number = all_sum(torch.full_like(total, len(batch.question_ids))).clamp(min=1)
        return TaskOutput({"lm": total * world_size() / number}, {})
