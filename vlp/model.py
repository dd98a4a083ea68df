"""What users hold: load and save a model folder, caption, embed, match."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlp.config import DecodingConfig, ModelConfig, Precision, from_dict, to_dict
from vlp.data.shards import BadSampleError, decode_image
from vlp.data.tokenizer import CaptionTokenizer, load_tokenizer
from vlp.data.transforms import clean_caption, evaluation_image
from vlp.errors import UserError
from vlp.generation import Decoder, check_decoding, generate
from vlp.models.blip import Blip
from vlp.models.med import ImageMemory, SelfAttentionCache, Side
from vlp.precision import compute_dtype

ImageLike = str | Path | Image.Image | Tensor

FORMAT = "vlp-blip-1"
TEXT_TOKENS = 35  # BLIP's limit in retrieval; longer texts are cut


class Match(NamedTuple):
    """How well texts fit images, float32 [texts] each: the cosine of the embeddings, and ITM's probability."""

    itc: Tensor
    itm: Tensor


class Model:
    """A BLIP model with its tokenizer, ready for images and texts as people have them.

    Images are paths, PIL images or tensors [3, size, size] (uint8, or float and normalised already) of the model's
    image size. Results do not depend on what else is in a batch, but for rounding, and lie on the CPU.
    """

    def __init__(self, blip: Blip, tokenizer: CaptionTokenizer, precision: Precision = "auto"):
        """Wrap a network; it stays where it is and is put in evaluation mode only during calls."""
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

    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        decoding: DecodingConfig | None = None,
        keys: Sequence[str] | None = None,
        seed: int = 0,
        num_captions: int = 1,
        batch_size: int = 32,
        **settings: Any,
    ) -> list[str] | list[list[str]]:
        """Captions of images.

        Args:
            images: one or several.
            decoding: how; None means the defaults of `DecodingConfig`.
            keys: one an image; a sampled caption depends on `seed` and the image's key alone. None: "0", "1", ...
            num_captions: captions an image.
            settings: fields of `DecodingConfig` to change, such as `beams=3` or `prompt="a picture of"`.

        Returns:
            A caption an image, without the prompt; with `num_captions` above 1 a list an image.

        Raises:
            UserError: an image is unreadable or a setting out of range.
        """
        decoding = _with_settings(decoding, settings)
        images = _as_list(images)
        keys = [str(number) for number in range(len(images))] if keys is None else list(keys)
        if len(keys) != len(images):
            raise UserError(f"caption needs one key an image: there are {len(images)} images and {len(keys)} keys.")
        captions: list[list[str]] = []
        for start in range(0, len(images), batch_size):
            tokens = self.encode_images(self.load_images(images[start : start + batch_size]))
            captions += self.caption_tokens(tokens, decoding, keys[start : start + batch_size], seed, num_captions)
        return captions if num_captions > 1 else [texts[0] for texts in captions]

    def embed_images(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32) -> Tensor:
        """Unit vectors float32 [images, embed_dim] in the space that images and texts share."""
        images = _as_list(images)
        vectors = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(images), batch_size):
            tokens = self.encode_images(self.load_images(images[start : start + batch_size]))
            vectors.append(self.embed_tokens(tokens))
        return torch.cat(vectors)

    def embed_texts(self, texts: str | Sequence[str], batch_size: int = 128) -> Tensor:
        """Unit vectors float32 [texts, embed_dim] in the space that images and texts share."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        vectors = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            ids, mask = self.text_ids(texts[start : start + batch_size], "[CLS]")
            with self.inference():
                vectors.append(self.blip.embed_texts(ids, mask).cpu())
        return torch.cat(vectors)

    def match(self, images: ImageLike | Sequence[ImageLike], texts: str | Sequence[str], batch_size: int = 32) -> Match:
        """How well each text fits its image.

        Args:
            images, texts: as many of both, pair by pair; or one of either, which then meets all of the other.

        Raises:
            UserError: the numbers do not go together, or an image is unreadable.
        """
        images = _as_list(images)
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
        save_model(self.blip, self.tokenizer, folder, card)

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

    def caption_tokens(
        self,
        image_tokens: Tensor,
        decoding: DecodingConfig,
        keys: Sequence[str],
        seed: int = 0,
        num_captions: int = 1,
    ) -> list[list[str]]:
        """Captions of images that are encoded already; arguments as in `caption`. A list an image."""
        prompt = self.tokenizer.prompt_ids(decoding.prompt)
        check_decoding(decoding, len(prompt), num_captions)
        if decoding.max_length > self.config.text_tower.positions:
            raise UserError(
                f"decoding: max_length must be at most {self.config.text_tower.positions}, the model's limit."
            )
        with self.inference():
            decoder = self._decoder(image_tokens, decoding.max_length)
            groups = generate(
                decoder, prompt, self.tokenizer.sep_id, decoding, list(keys), seed, num_captions, self.device
            )
        return [[self.tokenizer.decode(text.ids) for text in group] for group in groups]

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

    def _decoder(self, image_tokens: Tensor, max_length: int) -> Decoder:
        memory = self.blip.text_tower.project_image(image_tokens, "decoder")
        past = SelfAttentionCache(max_length)

        def step(new: Tensor) -> Tensor:
            hidden = self.blip.text_tower.decode(new, None, memory, cache=past)  # [rows, new, width]
            return self.blip.word_logits(hidden[:, -1])

        def select(rows: Tensor, groups: Tensor | None) -> None:
            nonlocal memory
            past.select(rows)
            if groups is not None:
                memory = memory.select(groups)

        return Decoder(step, select)


def load_model(path: str | Path, device: str | torch.device | None = None, precision: Precision = "auto") -> Model:
    """Load a model folder. Nothing is unpickled, and every weight must be there and fit.

    Args:
        path: a folder that `save_model` wrote.
        device: None takes the first GPU where there is one, else the CPU.
        precision: of the computation; the weights stay float32.

    Raises:
        UserError: the folder is not a model or does not fit together; one sentence says what is wrong.
    """
    folder = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: it has no {name}.")
    config = _read_config(folder)
    tokenizer = load_tokenizer(str(folder))
    if len(tokenizer) != config.text_tower.vocabulary:
        raise UserError(
            f"{folder} does not fit together: the tokenizer has {len(tokenizer)} words and "
            f"config.json says {config.text_tower.vocabulary}."
        )
    blip = Blip(config)
    try:
        blip.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except SafetensorError as error:
        raise UserError(f"{folder}/model.safetensors cannot be read: {error}.") from None
    except RuntimeError as error:
        problem = " ".join(str(error).split("\n\t")[-1].split())
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {problem}") from None
    blip.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Model(blip, tokenizer, precision)


def save_model(blip: Blip, tokenizer: CaptionTokenizer, folder: str | Path, card: str = "") -> None:
    """Write a model folder: config.json, model.safetensors, tokenizer files and README.md.

    It is written under another name and renamed, so the folder is complete or absent.

    Args:
        card: text of README.md: what the model is, what it learned from, how good it is.

    Raises:
        UserError: the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another name or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        config = {"format": FORMAT, "model": to_dict(blip.config)}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.detach().cpu().contiguous() for name, value in blip.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(temporary))
        (temporary / "README.md").write_text(card or f"# {folder.name}\n\nA vision-language model made with vlp.\n")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_image(image: ImageLike, size: int) -> Tensor:
    """One image as the model takes it: [3, size, size], uint8, or float as it was given.

    Raises:
        UserError: a path does not lead to an image, or a tensor has the wrong shape.
    """
    if isinstance(image, Tensor):
        if tuple(image.shape) != (3, size, size) or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise UserError(
                f"A tensor image must be uint8 or float [3, {size}, {size}], not {image.dtype} {list(image.shape)}."
            )
        return image
    if isinstance(image, Image.Image):
        return torch.as_tensor(evaluation_image(image.convert("RGB"), size))
    try:
        picture = decode_image(Path(image).read_bytes(), shortest=size)
    except OSError as error:
        raise UserError(f"{image} cannot be read: {error.strerror or error}.") from None
    except BadSampleError as error:
        raise UserError(f"{image} is not an image that can be used: {error.reason}.") from None
    return torch.as_tensor(evaluation_image(picture, size))


def _read_config(folder: Path) -> ModelConfig:
    try:
        values = json.loads((folder / "config.json").read_text())
    except ValueError:
        raise UserError(f"{folder}/config.json is not readable as JSON.") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{folder} is not a model folder: its config.json does not say format {FORMAT}.")
    return from_dict(ModelConfig, values.get("model"))


def _with_settings(decoding: DecodingConfig | None, settings: dict[str, Any]) -> DecodingConfig:
    try:
        return replace(decoding or DecodingConfig(), **settings)
    except TypeError:
        unknown = ", ".join(sorted(set(settings) - set(to_dict(DecodingConfig()))))
        raise UserError(f"There is no decoding setting {unknown}.") from None


def _as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list; a tensor of four dimensions holds several."""
    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, Tensor) and images.ndim == 3):
        return [images]
    return list(images)
