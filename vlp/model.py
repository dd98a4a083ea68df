"""What users hold: load and save a model folder, caption, embed, match."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlp.config import DecodingConfig, ModelConfig, Precision
from vlp.config_reader import to_dict
from vlp.convert.files import find_folder, read_json
from vlp.convert.read import read_source
from vlp.data.images import ImageLike, as_list, load_image
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.generation.caption_step import caption_stepper
from vlp.generation.decode import check_decoding, generate
from vlp.model_folder import is_ours, read_model, save_model
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.linear import constant_weights
from vlp.models.precision import compute_dtype
from vlp.models.text_tower import ImageMemory, Side

TEXT_TOKENS = 35  # BLIP's limit in retrieval; longer texts are cut
ANSWERS = DecodingConfig(beams=3, repetition_penalty=1.0, min_length=1, max_length=10)


log = logging.getLogger("vlp")


class Match(NamedTuple):
    """How well texts fit images, float32 [texts] each: the cosine of the embeddings, and ITM's probability."""

    itc: Tensor
    itm: Tensor


class Caption(NamedTuple):
    """A caption, and what it was worth to the model: the sum of its tokens' log-probabilities, in nats."""

    text: str
    log_probability: float
    tokens: int  # after the prompt, the end token included


class Model:
    """A BLIP model with its tokenizer, ready for images and texts as people have them.

    Images are paths, PIL images or tensors [3, size, size] (uint8, or float and normalised already) of the model's
    image size. Results do not depend on what else is in a batch, but for rounding, and lie on the CPU.
    """

    def __init__(self, blip: Blip, tokenizer: CaptionTokenizer, precision: Precision = "auto", card: str = ""):
        """Wrap a network; it stays where it is and is put in evaluation mode only during calls.

        Args:
            card: what is known of it: what it learned from and how, what it scored.
        """
        self.card = card
        self.blip = blip
        self.tokenizer = tokenizer
        self.config: ModelConfig = blip.config
        self.compute_dtype = compute_dtype(precision, self.device)
        self.text_tokens = min(TEXT_TOKENS, blip.config.text_tower.positions // 8 * 8)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.blip.parameters()).device

    @property
    def image_size(self) -> int:
        """The side of the images it takes, in pixels."""
        return self.config.image_encoder.image_size

    @constant_weights()
    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        decoding: DecodingConfig | None = None,
        keys: Sequence[str] | None = None,
        seed: int = 0,
        num_captions: int = 1,
        batch_size: int = 32,
        prompts: Sequence[str] | None = None,
        details: bool = False,
        **settings: Any,
    ) -> list[str] | list[list[str]] | list[Caption] | list[list[Caption]]:
        """Captions of images (paper, section 3.2: the image-grounded text decoder).

        Args:
            images: one or several.
            decoding: how; None means the defaults of `DecodingConfig`.
            keys: one an image; a sampled caption depends on `seed` and the image's key alone. None: "0", "1", ...
            num_captions: captions an image; the image is encoded and projected once for all of them.
            prompts: what the caption of each image begins with, in the place of the one `prompt` for all.
            details: give `Caption`s, with log-probabilities, in the place of texts.
            settings: fields of `DecodingConfig` to change, such as `beams=3` or `prompt="a picture of"`.

        Returns:
            A caption an image, without the prompt; with `num_captions` above 1 a list an image.

        Raises:
            UserError: an image is unreadable or a setting out of range.
        """
        decoding = _with_settings(decoding, settings)
        images = as_list(images)
        keys = [str(number) for number in range(len(images))] if keys is None else list(keys)
        if len(keys) != len(images):
            raise UserError(f"caption needs one key an image: there are {len(images)} images and {len(keys)} keys.")
        starts = [decoding.prompt] * len(images) if prompts is None else list(prompts)
        if len(starts) != len(images):
            raise UserError(f"caption needs one prompt an image: {len(images)} images and {len(starts)} prompts.")
        found: dict[int, list[Caption]] = {}
        for prompt in dict.fromkeys(starts):  # those that begin alike go together
            rows = [row for row, start in enumerate(starts) if start == prompt]
            how = replace(decoding, prompt=prompt)
            for first in range(0, len(rows), batch_size):
                here = rows[first : first + batch_size]
                tokens = self.encode_images(self.load_images([images[row] for row in here]))
                made = self.caption_tokens(tokens, how, [keys[row] for row in here], seed, num_captions)
                found.update(zip(here, made, strict=True))
        captions = [found[row] if details else [one.text for one in found[row]] for row in range(len(images))]
        return captions if num_captions > 1 else [texts[0] for texts in captions]

    @constant_weights()
    def answer(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        decoding: DecodingConfig | None = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> list[str]:
        """Answers to questions about images, by a model trained for that (paper, section 5.3).

        The question is read against the image, and the decoder looks at the question's states, not at the image.

        Args:
            images, questions: as many of both, or one image for all questions.
            decoding: how; None is beam search with 3 beams and 1 to 10 tokens.
            settings: fields of `DecodingConfig` to change.

        Raises:
            UserError: the numbers do not go together, or an image is unreadable.
        """
        images, questions = as_list(images), [questions] if isinstance(questions, str) else list(questions)
        images = images * len(questions) if len(images) == 1 else images
        if len(images) != len(questions):
            raise UserError(f"answer needs a question an image: {len(images)} images, {len(questions)} questions.")
        decoding = _with_settings(decoding or ANSWERS, settings)
        answers: dict[int, str] = {}
        lengths = [len(self.tokenizer.prompt_ids(clean_caption(question))) for question in questions]
        for length in sorted(set(lengths)):  # questions of one length need no padding, which the decoder would see
            rows = [row for row, one in enumerate(lengths) if one == length]
            for first in range(0, len(rows), batch_size):
                here = rows[first : first + batch_size]
                states = self._question_states([images[row] for row in here], [questions[row] for row in here])
                made = self.caption_tokens(states, decoding, [str(row) for row in here])
                answers.update((row, texts[0].text) for row, texts in zip(here, made, strict=True))
        return [answers[row] for row in range(len(questions))]

    @constant_weights()
    def embed_images(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32) -> Tensor:
        """Unit vectors float32 [images, embed_dim] in the space that images and texts share."""
        images = as_list(images)
        vectors = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(images), batch_size):
            tokens = self.encode_images(self.load_images(images[start : start + batch_size]))
            vectors.append(self.embed_tokens(tokens))
        return torch.cat(vectors)

    @constant_weights()
    def embed_texts(self, texts: str | Sequence[str], batch_size: int = 128) -> Tensor:
        """Unit vectors float32 [texts, embed_dim] in the space that images and texts share."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        vectors = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            ids, mask = self.text_ids(texts[start : start + batch_size], "[CLS]")
            with self.inference():
                vectors.append(self.blip.embed_texts(ids, mask).cpu())
        return torch.cat(vectors)

    @constant_weights()
    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str], batch_size: int = 32) -> Match:
        """How well each text fits its image.

        Args:
            images, texts: as many of both, pair by pair; or one of either, which then meets all of the other.

        Raises:
            UserError: the numbers do not go together, or an image is unreadable.
        """
        images = as_list(images)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(images) == 1 and len(texts) > 1:
            tokens = self.encode_images(self.load_images(images))
            return self.match_tokens(tokens, texts, batch_size=4 * batch_size)
        if len(texts) == 1:
            texts = texts * len(images)
        if len(images) != len(texts):
            raise UserError(
                f"match needs as many images as texts, or one of either, not {len(images)} and {len(texts)}."
            )
        itc, itm = [torch.empty(0)], [torch.empty(0)]
        for start in range(0, len(images), batch_size):
            tokens = self.encode_images(self.load_images(images[start : start + batch_size]))
            part = self.match_tokens(tokens, texts[start : start + batch_size], batch_size=batch_size)
            itc.append(part.itc)
            itm.append(part.itm)
        return Match(torch.cat(itc), torch.cat(itm))

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write the model folder; see `save_model`."""
        save_model(self.blip, self.tokenizer, folder, card or self.card)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload the model folder, its card included, to the hub as `name` ("owner/model"); returns its address."""
        from huggingface_hub import HfApi

        api = HfApi()
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
        return str(address)

    # What follows works on images already encoded, for callers with several texts an image.

    def load_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Images as one batch [images, 3, size, size], uint8, or float when they are float tensors.

        Raises:
            UserError: an image is unreadable, or a tensor has the wrong shape.
        """
        loaded = [load_image(image, self.image_size) for image in images]
        if len({image.dtype for image in loaded}) > 1:
            raise UserError("Give all images of a call as uint8 (or as paths and pictures), or all as float tensors.")
        return torch.stack(loaded)

    def encode_images(self, images: Tensor) -> Tensor:
        """[images, 3, size, size] -> image tokens [images, tokens, width] on the model's device."""
        with self.inference():
            return self.blip.encode_images(images.to(self.device))

    def embed_tokens(self, image_tokens: Tensor) -> Tensor:
        """Image tokens [images, tokens, width] -> unit vectors float32 [images, embed_dim]."""
        with self.inference():
            return self.blip.embed_image_tokens(image_tokens).cpu()

    def project(self, image_tokens: Tensor, side: Side = "encoder") -> ImageMemory:
        """The image memory for `match_logits` (side "encoder") or for captions ("decoder")."""
        with self.inference():
            return self.blip.text_tower.project_image(image_tokens, side)

    def match_logits(self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None) -> Tensor:
        """ITM logits float32 [texts, 2] on the CPU; ids begin with [ENC]; `image_index` as in `TextTower.match`."""
        with self.inference():
            return self.blip.match_logits(ids, mask, memory, image_index).float().cpu()

    @constant_weights()
    def match_tokens(
        self, image_tokens: Tensor, texts: Sequence[str], image_index: Tensor | None = None, batch_size: int = 128
    ) -> Match:
        """How well texts fit images that are encoded already; each image's memory is projected once.

        Args:
            image_tokens: [images, tokens, width].
            image_index: int64 [texts], the image of each text; None when the texts of each image stand together and
                are equally many, in the order of the images.
        """
        images = len(image_tokens)
        # Texts in the order of their images need no index in one batch; an index copies the memory for every text.
        in_order = images == 1 or (image_index is None and len(texts) <= batch_size)
        if image_index is None:
            image_index = torch.arange(images).repeat_interleave(len(texts) // max(images, 1))
        if len(image_index) != len(texts):
            raise UserError(f"{len(texts)} texts cannot be shared out evenly over {images} images.")
        memory = self.project(image_tokens)
        itm = [torch.empty(0)]
        for start in range(0, len(texts), batch_size):
            ids, mask = self.text_ids(texts[start : start + batch_size], "[ENC]")
            here = None if in_order else image_index[start : start + batch_size].to(self.device)
            itm.append(self.match_logits(ids, mask, memory, here).softmax(dim=-1)[:, 1])
        vectors = self.embed_tokens(image_tokens)[image_index.cpu()]  # [texts, embed_dim]
        return Match((vectors * self.embed_texts(texts)).sum(dim=-1), torch.cat(itm))

    @constant_weights()
    def caption_tokens(
        self,
        image_tokens: Tensor,
        decoding: DecodingConfig,
        keys: Sequence[str],
        seed: int = 0,
        num_captions: int = 1,
        memory: ImageMemory | None = None,
    ) -> list[list[Caption]]:
        """Captions of images that are encoded (and projected: `memory`) already; as in `caption`. A list an image."""
        prompt = self.tokenizer.prompt_ids(decoding.prompt)
        check_decoding(decoding, len(prompt), num_captions)
        if decoding.max_length > self.config.text_tower.positions:
            raise UserError(
                f"decoding: max_length must be at most {self.config.text_tower.positions}, the model's limit."
            )
        with self.inference():
            memory = memory or self.project(image_tokens, "decoder")
            decoder = caption_stepper(self.blip, memory, decoding.max_length)
            groups = generate(
                decoder,
                prompt,
                self.tokenizer.sep_id,
                decoding,
                list(keys),
                seed,
                num_captions,
                self.device,
                [self.tokenizer.prompt_ids(words)[1:] for words in decoding.banned_words],
            )
        decode = self.tokenizer.decode
        return [[Caption(decode(one.ids), one.log_probability, len(one.ids)) for one in group] for group in groups]

    def text_ids(self, texts: Sequence[str], first: str) -> tuple[Tensor, Tensor]:
        """Cleaned texts as ids int64 and mask bool [texts, tokens] on the device, beginning with the token `first`."""
        ids, mask = self.tokenizer.encode([clean_caption(text) for text in texts], self.text_tokens, first=first)
        return ids.to(self.device), mask.to(self.device)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, no dropout, the model's precision; leaves the network's mode as it was."""
        training = self.blip.training
        self.blip.eval()
        autocast = torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype is not None)
        try:
            with torch.no_grad(), autocast:
                yield
        finally:
            self.blip.train(training)

    def _question_states(self, images: Sequence[ImageLike], questions: Sequence[str]) -> Tensor:
        """The states of questions of one length that were read against their images: [questions, tokens, width]."""
        memory = self.project(self.encode_images(self.load_images(images)))
        texts = [clean_caption(question) for question in questions]
        ids, mask = self.tokenizer.encode(texts, self.text_tokens, first="[ENC]", multiple=1)
        with self.inference():
            return self.blip.text_tower.match(ids.to(self.device), mask.to(self.device), memory)


def load_model(
    source: str | Path,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> Model:
    """Load a model. Nothing is unpickled, and every weight must be there and fit.

    Args:
        source: a model folder, here or on the hub; or a `transformers` BLIP, which is converted on the way (parts
            that it lacks are named in the log; `vlp convert` makes a folder of it).
        device: None takes the first GPU where there is one, else the CPU.
        precision: of the computation, on weights in float32; "auto" is bf16 where the device multiplies it.
        dtype: of the weights and so of the computation, in the place of `precision`.
        compile: `torch.compile` its blocks; the first batches take a minute, and on a CPU it does not pay.

    Raises:
        UserError: it is not a model or does not fit together; one sentence says what is wrong.
    """
    folder = find_folder(str(source))
    theirs = folder.is_dir() and not is_ours(folder) and read_json(folder / "config.json").get("model_type") == "blip"
    if theirs:
        found = read_source(str(folder))
        blip, tokenizer = found.blip, found.tokenizer
        log.info("%s is converted; it lacks %s", source, "; ".join(found.started) or "nothing")
    else:
        blip, tokenizer = read_model(folder)
    blip.to(device=device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype=dtype)
    if compile:
        compile_blocks(blip)
    card = folder / "README.md"
    text = card.read_text() if card.is_file() else ""
    return Model(blip, tokenizer, "fp32" if dtype else precision, text)


def _with_settings(decoding: DecodingConfig | None, settings: dict[str, Any]) -> DecodingConfig:
    try:
        return replace(decoding or DecodingConfig(), **settings)
    except TypeError:
        unknown = ", ".join(sorted(set(settings) - set(to_dict(DecodingConfig()))))
        raise UserError(f"There is no decoding setting {unknown}.") from None
