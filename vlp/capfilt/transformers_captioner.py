"""Captions images with any image-to-text model of `transformers`."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.config import DecodingConfig, Precision
from vlp.convert.files import find_folder, no_progress_bars
from vlp.data.score_tables import files_hash
from vlp.errors import UserError
from vlp.generation.decode import check_decoding
from vlp.generation.token_rules import cut_distribution, draw, uniform_numbers
from vlp.models.precision import compute_dtype

READ = (".safetensors", ".json", ".txt", ".model", ".jinja")  # the files that are loaded; never a pickle, never code
QUESTION = "Describe the image in one short sentence."  # the prompt of chat models if the decoding has none


class TransformersCaptioner:
    """A model and its processor. It makes captions only: each such model computes likelihoods differently.

    Attributes:
        identity: a hash of the model's files.
        decoding: the defaults of `DecodingConfig`, which the overrides of a CapFilt run change.
    """

    def __init__(self, source: str, device: torch.device | None = None, precision: Precision = "auto"):
        """Load a folder or a name on the hub. Only safetensors weights are read, and no code of the model is run.

        Raises:
            UserError: it is not an image-to-text model, or has no safetensors file.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = find_folder(source)
        if not list(folder.glob("*.safetensors")):
            raise UserError(
                f"hf:{source} has no safetensors weights; other formats are not read, as they can run code."
            )
        self.decoding = DecodingConfig()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = compute_dtype(precision, self.device) or torch.float32
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            with no_progress_bars():
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    folder, trust_remote_code=False, use_safetensors=True, dtype=dtype
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"transformers cannot load hf:{source} as an image-to-text model: {problem}") from None
        self.model = model.to(self.device).eval()
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"  # new tokens follow the prompt
        self.identity = "hf:" + files_hash(sorted(file for file in folder.iterdir() if file.suffix in READ))

    def captions(
        self, images: list[Image.Image], decoding: DecodingConfig, keys: list[str], seed: int, number: int
    ) -> list[list[str]]:
        """Make `number` captions per image, without the prompt.

        The decoding settings have their usual meaning, but lengths count only the new tokens. A sampled caption depends
        on the seed, the image's key and the caption's number.
        """
        check_decoding(decoding, 0, number)
        inputs = self._inputs(images, decoding.prompt)
        settings = {**generation_settings(decoding), "num_return_sequences": number}
        if decoding.banned_words:
            settings["bad_words_ids"] = self.tokenizer(decoding.banned_words, add_special_tokens=False).input_ids
        if decoding.beams == 0:
            settings["logits_processor"] = [DrawnToken(decoding, keys, seed, number)]
        start = ""
        if "input_ids" in inputs:
            start = self.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True).strip()
        with torch.no_grad():
            output = self.model.generate(**inputs, **settings)
        texts = [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
        texts = [text.removeprefix(start).strip() for text in texts]  # some models repeat the prompt
        return [texts[i : i + number] for i in range(0, len(texts), number)]

    def _inputs(self, images: list[Image.Image], prompt: str) -> dict[str, Any]:
        """The inputs of the model's `generate`, with the same prompt for every image."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt or QUESTION}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        # Padding is needed where the number of image tokens depends on the image's size.
        texts = {"text": [prompt] * len(images), "padding": True} if prompt else {}
        inputs = dict(self.processor(images=images, return_tensors="pt", **texts).to(self.device, self.model.dtype))
        if prompt and self.model.config.model_type == "git":  # GIT's tokenizer appends an end token to the prompt
            inputs["input_ids"] = inputs["input_ids"][:, :-1]
            inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
        return inputs


def generation_settings(decoding: DecodingConfig) -> dict[str, Any]:
    """All arguments of `generate` for our decoding settings, so that the defaults in a model folder have no effect."""
    settings = {
        "num_beams": max(decoding.beams, 1),
        "do_sample": decoding.beams == 0,
        "max_new_tokens": decoding.max_length,
        "min_new_tokens": decoding.min_length,
        "repetition_penalty": decoding.repetition_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
    }
    if decoding.beams > 1:
        settings |= {"length_penalty": decoding.length_penalty, "early_stopping": False}
    if decoding.beams == 0:
        settings |= {"top_p": 1.0, "top_k": 0, "temperature": 1.0}  # `DrawnToken` truncates the distribution
    return settings


class DrawnToken:
    """A logits processor that leaves `generate` only the token that our own sampling draws.

    So a caption does not depend on the batch, on the number of captions or on torch's random generator.
    """

    def __init__(self, decoding: DecodingConfig, keys: list[str], seed: int, number: int):
        self.decoding = decoding
        numbers = [uniform_numbers(seed, key, i, decoding.max_length) for key in keys for i in range(number)]
        self.uniforms = torch.tensor(np.stack(numbers), dtype=torch.float32).clamp_(max=1 - 2**-24)
        self.drawn = 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, vocabulary] -> 0 for the drawn token of each row, -inf for all others."""
        decoding = self.decoding
        probabilities = cut_distribution(scores, decoding.temperature, decoding.top_k, decoding.top_p)
        chosen = draw(probabilities, self.uniforms[:, self.drawn].to(scores.device))
        self.drawn += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)
