"""What a model learns: a file for each task, and the dict that names them."""

from collections.abc import Callable

from vlp.config import RunConfig
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.blip import Blip
from vlp.tasks.captioning import CaptioningTask
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.retrieval import RetrievalTask
from vlp.tasks.task import Task

TASKS: dict[str, Callable[[RunConfig, Blip, CaptionTokenizer], Task]] = {
    "pretrain": PretrainTask,
    "captioning": CaptioningTask,
    "retrieval": RetrievalTask,
}


def build_task(config: RunConfig, model: Blip, tokenizer: CaptionTokenizer) -> Task:
    """The module that a run trains, around `model`."""
    return TASKS[config.task](config, model, tokenizer)
