"""What a model learns and is scored on: one file a task, and the dict that names them."""

from torch import nn

from vlp.config import RunConfig
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.blip import Blip
from vlp.tasks.captioning import CaptioningTask
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.retrieval import RetrievalTask

TASKS = {
    "pretrain": PretrainTask,
    "captioning": CaptioningTask,
    "retrieval": RetrievalTask,
}


def build_task(config: RunConfig, model: Blip, tokenizer: CaptionTokenizer) -> nn.Module:
    """The module that a run trains: `forward(batch)` returns a `TaskOutput`."""
    return TASKS[config.task](config, model, tokenizer)
