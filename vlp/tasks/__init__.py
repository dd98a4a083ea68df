"""What a model learns: a file for each task, and the dicts that name them."""

from collections.abc import Callable
from typing import Any

from vlp.config import RunConfig
from vlp.data.examples import CaptionExamples, Examples
from vlp.data.examples_classification import LabelExamples
from vlp.data.examples_contrastive import ContrastiveExamples
from vlp.data.examples_matching import MatchingExamples
from vlp.data.examples_nlvr2 import Nlvr2Examples
from vlp.data.examples_references import ReferenceExamples
from vlp.data.examples_visdial import DialogExamples
from vlp.data.examples_vqa import QuestionExamples
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.network import Network
from vlp.tasks.captioning import CaptioningTask
from vlp.tasks.classification import ClassificationTask
from vlp.tasks.contrastive import ContrastiveTask
from vlp.tasks.nlvr2 import Nlvr2Task
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.retrieval import RetrievalTask
from vlp.tasks.self_critical import SelfCriticalTask
from vlp.tasks.task import Task
from vlp.tasks.visdial import VisDialTask
from vlp.tasks.vqa import VqaTask

TASKS: dict[str, Callable[[RunConfig, Any, Any], Task]] = {
    "pretrain": PretrainTask,
    "captioning": CaptioningTask,
    "retrieval": RetrievalTask,
    "visdial": VisDialTask,
    "nlvr2": Nlvr2Task,
    "self_critical": SelfCriticalTask,
    "vqa": VqaTask,
    "contrastive": ContrastiveTask,
    "classification": ClassificationTask,
}


def _captions(config: RunConfig, tokenizer: CaptionTokenizer) -> CaptionExamples:
    data = config.data
    return CaptionExamples(tokenizer, data.max_tokens, config.objective.prompt, data.texts_per_image)


def _matches(config: RunConfig, tokenizer: CaptionTokenizer) -> CaptionExamples:
    data, objective = config.data, config.objective
    if not objective.wrong_texts:
        return _captions(config, tokenizer)
    return MatchingExamples(tokenizer, data.max_tokens, objective.prompt, data.texts_per_image, objective.wrong_texts)


def _dialogs(config: RunConfig, tokenizer: CaptionTokenizer) -> DialogExamples:
    data = config.data
    return DialogExamples(tokenizer, data.max_tokens, data.texts_per_image, data.false_answers)


def _questions(config: RunConfig, tokenizer: CaptionTokenizer) -> QuestionExamples:
    return QuestionExamples(tokenizer, config.data.max_tokens, config.data.texts_per_image)


def _contrastive(config: RunConfig, tokenizer: CaptionTokenizer) -> ContrastiveExamples:
    return ContrastiveExamples(tokenizer, config.data.max_tokens, config.data.texts_per_image)


EXAMPLES: dict[str, Callable[[RunConfig, Any], Examples]] = {
    "pretrain": _captions,
    "captioning": _captions,
    "retrieval": _matches,
    "visdial": _dialogs,
    "nlvr2": lambda config, tokenizer: Nlvr2Examples(tokenizer, config.data.max_tokens),
    "self_critical": lambda config, tokenizer: ReferenceExamples(),
    "vqa": _questions,
    "contrastive": _contrastive,
    "classification": lambda config, _: LabelExamples(len(config.model.classes), config.data.label),
}


def build_task(config: RunConfig, model: Network, tokenizer: CaptionTokenizer | None) -> Task:
    """The module that a run trains, around `model`; only a classifier has no tokenizer."""
    return TASKS[config.task](config, model, tokenizer)


def build_examples(config: RunConfig, tokenizer: CaptionTokenizer | None) -> Examples:
    """What the task of a run, whose config is resolved, learns from each sample."""
    return EXAMPLES[config.task](config, tokenizer)
