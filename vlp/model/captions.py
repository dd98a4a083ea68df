"""Captions of encoded images: starts to generate them, and turns their tokens to texts when they are asked for."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlp.config import DecodingConfig
from vlp.errors import UserError
from vlp.generation.decode import start_generating
from vlp.generation.graph_step import caption_stepper
from vlp.generation.settings import check_decoding
from vlp.generation.token_rules import TokenRules
from vlp.models.image_memory import ImageMemory
from vlp.models.untrained import CAPTIONING, require_trained

if TYPE_CHECKING:
    from vlp.model.model import Model


class Caption(NamedTuple):
    """A generated caption, and the log-probability of its tokens under the model (their sum, in nats)."""

    text: str
    log_probability: float
    tokens: int  # after the prompt, including the end token


def start_captions(
    model: "Model",
    memory: ImageMemory,
    decoding: DecodingConfig,
    keys: Sequence[str],
    seed: int = 0,
    num_captions: int = 1,
) -> Callable[[], list[list[Caption]]]:
    """Start to caption the images of a memory for the decoder; the function returned waits for the captions.

    Until then a GPU may still be at the last tokens, see `start_generating`. Further arguments and the result are those
    of `Model.caption`.

    Args:
        decoding: all settings; the model's own do not apply.
    """
    require_trained(model.config, CAPTIONING, "generate text")
    prompt = model.tokenizer.prompt_ids(decoding.prompt)
    check_decoding(decoding, len(prompt), num_captions)
    if decoding.max_length > (positions := model.config.text_tower.positions):
        raise UserError(f"decoding: max_length must be at most {positions}, the number of the model's positions.")
    rules = TokenRules(decoding, model.tokenizer.sep_id, model.tokenizer.word_ids(decoding.banned_words))
    with model.inference():
        stepper = caption_stepper(model.blip, memory, decoding.max_length)
        generated = start_generating(stepper, prompt, rules, list(keys), seed, num_captions, model.device)
    to_text = model.tokenizer.decode
    return lambda: [
        [Caption(to_text(one.ids), one.log_probability, len(one.ids)) for one in group] for group in generated()
    ]
