"""Any image-to-text model of `transformers` as a captioner."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.config import DecodingConfig, Precision
from vlp.convert.files import find_folder
from vlp.data.score_tables import files_hash
from vlp.errors import UserError
from vlp.generation.decode import check_decoding
from vlp.generation.token_rules import cut_distribution, draw, uniform_numbers
from vlp.models.precision import compute_dtype

READ = (".safetensors", ".json", ".txt", ".model", ".jinja")  # what a model is made of; never a pickle, never code
QUESTION = "Describe the image in one short sentence."  # to models that chat, where the decoding has no prompt


class TransformersCaptioner:
    """A model with its processor; only its captions are asked, as likelihoods are counted in too many ways.

    Attributes:
        identity: the hash of its files.
    """

    def __init__(self, source: str, device: torch.device | None = None, precision: Precision = "auto"):
        """Load a folder, or a name on the hub. Weights are read from safetensors alone, and no code of theirs is run.

        Raises:
            UserError: it is not such a model, or has no safetensors file.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = find_folder(source)
        if not list(folder.glob("*.safetensors")):
            raise UserError(f"hf:{source} has no weights as safetensors; others are not read, as they can run code.")
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = compute_dtype(precision, self.device) or torch.float32
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=dtype
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"hf:{source} is no image-to-text model that transformers can load: {problem}") from None
        self.model = model.to(self.device).eval()
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"  # new tokens follow the prompt
        self.identity = "hf:" + files_hash(sorted(file for file in folder.iterdir() if file.suffix in READ))

    def captions(
        self, images: list[Image.Image], decoding: DecodingConfig, keys: list[str], seed: int, number: int
    ) -> list[list[str]]:
        """`number` captions an image, without the prompt.

        The decoding means what it does elsewhere, but lengths count the new tokens alone, and a sampled caption depends
        on the seed, the image's key and its own number.
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
        texts = [text.removeprefix(start).strip() for text in texts]  # some models give the prompt back, others do not
        return [texts[i : i + number] for i in range(0, len(texts), number)]

    def _inputs(self, images: list[Image.Image], prompt: str) -> dict[str, Any]:
        """What the model's `generate` takes: the same prompt for every image."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt or QUESTION}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        # Padding is for images that are as many tokens as they are large.
        texts = {"text": [prompt] * len(images), "padding": True} if prompt else {}
        inputs = dict(self.processor(images=images, return_tensors="pt", **texts).to(self.device, self.model.dtype))
        if prompt and self.model.config.model_type == "git":  # its tokenizer ends the prompt, which must go on
            inputs["input_ids"] = inputs["input_ids"][:, :-1]
            inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
        return inputs


def generation_settings(decoding: DecodingConfig) -> dict[str, Any]:
    """Our decoding in the words of `generate`: all of it, as a model's folder may bring settings of its own."""
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
        settings |= {"top_p": 1.0, "top_k": 0, "temperature": 1.0}  # `DrawnToken` cuts the distribution
    return settings


class DrawnToken:
    """A logits processor that leaves `generate` no token but the one that our own sampling draws.

    So a caption does not depend on the batch, on how many captions were asked for, or on torch's generator.
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
