"""The decoding settings that a run stores with its model: the prompt that it trains with, and `decoding`."""

from dataclasses import replace

from vlp.config import ANSWER_DECODING, DecodingConfig, RunConfig
from vlp.config_model import ModelConfig
from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError
from vlp.generation.settings import check_decoding, resolve_decoding


def trained_decoding(
    config: RunConfig, decoding: DecodingConfig, tokenizer: CaptionTokenizer, model: ModelConfig
) -> DecodingConfig:
    """The decoding settings of the model that a run trains: those of the model it starts from, with `config.decoding`.

    Captioning, self-critical training and pretraining put `objective.prompt` before every caption, so it becomes the
    model's prompt. Retrieval, NLVR2 and contrastive training do not train a decoder and keep the prompt. A model for
    VQA decodes answers: by beam search, without a prompt.

    Args:
        decoding: the settings of the model that the run starts from; the defaults for a new model.

    Raises:
        UserError: the settings contradict each other, the prompt, or the lengths of training texts and of the model.
    """
    if config.decoding.prompt is not None:
        raise UserError("A model's prompt is the one it is trained with; set objective.prompt, not decoding.prompt.")
    decoding = resolve_decoding(ANSWER_DECODING if config.task == "vqa" else decoding, config.decoding)
    if config.task in ("retrieval", "nlvr2", "contrastive"):
        return decoding
    decoding = replace(decoding, prompt="" if config.task == "vqa" else config.objective.prompt)
    if config.task in ("captioning", "self_critical", "vqa"):
        prompt_tokens = len(tokenizer.prompt_ids(decoding.prompt))
        check_decoding(decoding, prompt_tokens)
        if prompt_tokens > config.data.max_tokens - 2:
            raise UserError(f"data.max_tokens must exceed the {prompt_tokens} tokens of objective.prompt by 2 or more.")
        if decoding.max_length > model.text_tower.positions:
            raise UserError(
                f"decoding.max_length ({decoding.max_length}) must not exceed model.text_tower.positions "
                f"({model.text_tower.positions})."
            )
    return decoding
