"""Formulas for the cost of a pretraining step (parameters, FLOPs, memory, bytes between GPUs) and of a data set.

docs/scale.md explains them and shows the output of `python scripts/bench/scale_tables.py`. FLOPs are those of matrix
products, counting a multiplication and an addition as two. Texts include their padding, which GPUs compute.
"""

from dataclasses import dataclass

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.losses.language import GPU_LOGITS_AT_ONCE
from vlp.losses.parts import ROWS_AT_ONCE
from vlp.models.text_layers import shared_parts

FULL, HALF = 4, 2  # bytes of a float32 and of a bfloat16
CAPTION_TOKENS = 20  # of a new caption, including the first one


@dataclass(frozen=True)
class Step:
    """One pretraining step.

    Attributes:
        model: the model, with the size of its vocabulary.
        pairs: image-text pairs per GPU.
        gpus: number of processes, one per GPU.
        tokens: tokens of every text, including padding.
        words: tokens per text that LM predicts, on average.
        queue: entries of the feature queue.
        checkpointing: whether blocks are recomputed in the backward pass.
    """

    model: ModelConfig
    pairs: int
    gpus: int
    tokens: int = 30
    words: float = 13.0
    queue: int = 57_600
    checkpointing: bool = False

    @property
    def columns(self) -> int:
        """Columns of the ITC similarity matrix."""
        return self.pairs * self.gpus + self.queue


def image_tokens(image: ImageEncoderConfig) -> int:
    """Tokens of an image, including the class token."""
    return (image.image_size // image.patch_size) ** 2 + 1


def _image_feed_forward(image: ImageEncoderConfig) -> int:
    return image.feed_forward or 4 * image.width


def image_parameters(image: ImageEncoderConfig) -> int:
    """Parameters of the ViT."""
    width, inner = image.width, _image_feed_forward(image)
    patches = 3 * image.patch_size**2 * width + width
    block = 4 * width**2 + 4 * width + 2 * width * inner + inner + width + 4 * width
    return patches + width + image_tokens(image) * width + image.layers * block + 2 * width


def text_parts(text: TextTowerConfig, image_width: int) -> dict[str, int]:
    """Parameters of each part of the text tower that encoder and decoder share or have one copy each of."""
    width, inner = text.width, text.feed_forward
    return {
        "embeddings": (text.vocabulary + text.positions + 2) * width,
        "self_attention": text.layers * (4 * width**2 + 6 * width),
        "cross_attention": text.layers * (2 * width**2 + 2 * image_width * width + 6 * width),
        "feed_forward": text.layers * (2 * width * inner + inner + 3 * width),
    }


def parameters(model: ModelConfig) -> int:
    """Trained parameters of the whole model."""
    image, text = model.image_encoder, model.text_tower
    shared = shared_parts(text.sharing)
    tower = sum(count * (1 if part in shared else 2) for part, count in text_parts(text, image.width).items())
    heads = _projections(model) + 2 * text.width + 2
    language = text.width**2 + 3 * text.width + text.vocabulary
    return image_parameters(image) + tower + heads + language + 1  # the temperature


def twin_parameters(model: ModelConfig) -> int:
    """Parameters of the momentum twin, which has only what ITC uses."""
    parts = text_parts(model.text_tower, model.image_encoder.width)
    return image_parameters(model.image_encoder) + sum(parts.values()) - parts["cross_attention"] + _projections(model)


def _projections(model: ModelConfig) -> int:
    return (model.image_encoder.width + model.text_tower.width + 2) * model.embed_dim


def step_flops(step: Step) -> dict[str, float]:
    """FLOPs per pair of forward and backward, by part of the step.

    The backward pass of a product costs two products, for the gradients of its input and of its weight. The patch
    projection needs no gradient of its input.
    """
    image, text, size = step.model.image_encoder, step.model.text_tower, step.model.embed_dim
    seen, width = image_tokens(image), text.width
    patches, blocks = _image_flops(image)
    alone, crossed = (_text_flops(step.model, step.tokens, cross) for cross in (False, True))
    decoding = _text_flops(step.model, step.tokens - 1, True)
    memory = _memory_flops(step.model)
    memories = (1 if "cross_attention" in shared_parts(text.sharing) else 2) + (1 if step.gpus > 1 else 0)
    heads = 2 * size * (image.width + width)
    rows_again = 2 if step.pairs > ROWS_AT_ONCE else 0
    flops = {
        "image encoder": 3 * blocks + 2 * patches,
        "momentum twin": blocks + patches + alone + heads,
        "text for ITC": 3 * alone,
        "image memory": 3 * memories * memory,
        "ITM, three texts": 9 * crossed + 3 * 3 * 2 * width * 2,
        "LM": 3 * decoding + 3 * step.words * 2 * width * (width + text.vocabulary),
        "similarities": 3 * heads + 2 * (3 + rows_again) * 2 * step.columns * size,
    }
    if _logits(step) > GPU_LOGITS_AT_ONCE:
        flops["LM"] += step.words * 2 * width * text.vocabulary  # recomputed
    if step.checkpointing:
        # The last product of a ViT block is not recomputed: no later operation of the block reads its result.
        last = image.layers * 2 * seen * image.width * _image_feed_forward(image)
        flops["recomputed"] = blocks - last + alone + 3 * crossed + decoding
    return flops


def _image_flops(image: ImageEncoderConfig) -> tuple[float, float]:
    """FLOPs of one image in the forward pass: of the patch projection, and of all blocks."""
    seen = image_tokens(image)
    products = image.layers * 2 * seen * image.width * (4 * image.width + 2 * _image_feed_forward(image))
    return 2 * (seen - 1) * 3 * image.patch_size**2 * image.width, products + image.layers * 4 * seen**2 * image.width


def _memory_flops(model: ModelConfig) -> float:
    """FLOPs of the keys and values of one image for all layers of the text tower, in the forward pass."""
    image, text = model.image_encoder, model.text_tower
    return text.layers * 2 * image_tokens(image) * image.width * 2 * text.width


def _logits(step: Step) -> float:
    return step.pairs * step.words * step.model.text_tower.vocabulary


def _text_flops(model: ModelConfig, tokens: float, cross: bool) -> float:
    """FLOPs of one text in the forward pass through all layers."""
    text = model.text_tower
    layer = 2 * tokens * text.width * (4 * text.width + 2 * text.feed_forward) + 4 * tokens**2 * text.width
    if cross:
        layer += 4 * tokens * text.width**2 + 4 * tokens * image_tokens(model.image_encoder) * text.width
    return text.layers * layer


def state_bytes(model: ModelConfig) -> dict[str, int]:
    """Bytes of the float32 states under DDP: weights, gradients, the two moments of AdamW, and the momentum twin."""
    trained = parameters(model)
    return {
        "weights": FULL * trained,
        "gradients": FULL * trained,
        "AdamW": 2 * FULL * trained,
        "momentum twin": FULL * twin_parameters(model),
    }


def queue_bytes(step: Step) -> int:
    """Bytes of the queue: features of image and text, a hash and a flag per entry, and the index of the next one."""
    return 2 * (step.queue * (step.model.embed_dim * FULL + 8 + 1) + 8)  # of images and of texts


def activation_bytes(step: Step) -> dict[str, float]:
    """Bytes per GPU that the forward pass in bf16 keeps for the backward pass; an estimate of what autograd saves.

    Per token and channel, a ViT block keeps 36 bytes: two float32 residual sums that the norms read (8), the outputs of
    the norms (4), queries, keys and values (6), the output of attention (2), and input and output of GELU (8 each, at
    four times the width). A text layer keeps the bf16 inputs of its products, and for each of its parts a float32 sum
    and a dropout mask of one byte.
    """
    image, text = step.model.image_encoder, step.model.text_tower
    seen = image_tokens(image)
    block = seen * (20 * image.width + 4 * _image_feed_forward(image))
    layer = 22 * text.width + 4 * text.feed_forward
    crossed = layer + 11 * text.width
    texts = (step.tokens, 4 * step.tokens - 1)  # tokens per pair without and with an image
    memories = 2 if "cross_attention" in shared_parts(text.sharing) else 3
    memory = memories * text.layers * seen * HALF * (2 * text.width + image.width)
    if step.checkpointing:  # the input of each block, and all of one block at a time
        images = image.layers * seen * FULL * image.width + block
        words = text.layers * FULL * text.width * sum(texts) + crossed * 3 * step.tokens
    else:
        images, words = image.layers * block, text.layers * (layer * texts[0] + crossed * texts[1])
    rows = min(step.pairs, ROWS_AT_ONCE)
    logits = min(_logits(step), GPU_LOGITS_AT_ONCE) * (3 * FULL + HALF)
    return {
        "image encoder": step.pairs * images,
        "texts": step.pairs * words,
        "image memory": step.pairs * memory,
        "vocabulary logits": logits,
        "similarities": 10.0 * FULL * rows * step.columns,
    }


def memory_bytes(step: Step, sharded: bool = False) -> dict[str, float]:
    """Bytes per GPU at the peak of a step.

    Args:
        sharded: use FSDP, which distributes weights, gradients, moments and twin over the GPUs.
    """
    states = sum(state_bytes(step.model).values())
    tokens = step.pairs * image_tokens(step.model.image_encoder) * step.model.image_encoder.width
    return {
        "states": states / (step.gpus if sharded else 1),
        "bf16 casts": HALF * parameters(step.model),
        "queue": queue_bytes(step),
        "activations": sum(activation_bytes(step).values()),
        # In the backward pass: float32 gradients of the images drawn here, gradients that arrive, and their sum; bf16
        # gradients that were sent.
        "drawn image tokens": tokens * (3 * FULL + HALF) if step.gpus > 1 else 0,
    }


def gathered_bytes(step: Step) -> dict[str, int]:
    """Bytes that each GPU holds after the gathers of a step.

    A text has int64 ids and a mask of one byte per token; a draw is the int64 index of an image.
    """
    everyone = step.pairs * step.gpus
    return {
        "features": everyone * 2 * FULL * step.model.embed_dim,
        "hashes": everyone * 2 * 8,
        "texts": everyone * step.tokens * (8 + 1),
        "draws": everyone * 8,
    }


def drawn_bytes(step: Step) -> int:
    """Bytes of the bf16 tokens of the images that a GPU draws as hard negatives."""
    image = step.model.image_encoder
    return step.pairs * image_tokens(image) * image.width * HALF


def communication_bytes(step: Step) -> dict[str, float]:
    """Bytes that each GPU sends per step by ring algorithms: (n - 1) / n of what is gathered, twice that for sums.

    (n - 1) / n of the drawn images come from other GPUs. If all images are drawn equally often, a GPU sends as many as
    it receives.
    """
    share = (step.gpus - 1) / step.gpus
    return {
        "gradients, summed": 2 * share * FULL * parameters(step.model),
        "features, hashes, texts, draws": share * sum(gathered_bytes(step).values()),
        "drawn image tokens": share * drawn_bytes(step),
        "drawn image tokens' gradients": share * drawn_bytes(step),
    }


def step_seconds(step: Step, rate: float, bandwidth: float) -> tuple[float, float]:
    """Seconds of the products and of the communication of a step.

    Args:
        rate: FLOP/s that a GPU reaches in a step.
        bandwidth: bytes per second that a GPU sends.
    """
    return step.pairs * sum(step_flops(step).values()) / rate, sum(communication_bytes(step).values()) / bandwidth


def scoring_flops(model: ModelConfig, texts: int = 1, captions: int = 1, tokens: int = 20) -> dict[str, float]:
    """FLOPs per image of CapFilt's scoring by a captioner and a filter of one shape, by part.

    The captioner samples captions of 20 tokens with a cache. The filter computes ITM and ITC of all texts, the
    captioner their likelihood.

    Args:
        texts: the image's own texts.
        captions: new captions.
        tokens: tokens of a scored text, including padding.
    """
    image, text = model.image_encoder, model.text_tower
    steps, every = CAPTION_TOKENS - 1, texts + captions
    word = 2 * text.width * (text.width + text.vocabulary)
    # With a cache, the token of step t attends to t tokens instead of all.
    attended = 4 * text.width * text.layers * (steps**2 - steps * (steps + 1) / 2)
    heads = 2 * model.embed_dim
    return {
        "images, twice": 2 * sum(_image_flops(image)),
        "image memory, twice": 2 * _memory_flops(model),
        "captions": captions * (_text_flops(model, steps, True) - attended + steps * word),
        "ITM": every * (_text_flops(model, tokens, True) + 4 * text.width),
        "ITC": every * (_text_flops(model, tokens, False) + heads * text.width) + heads * image.width,
        "likelihoods": every * (_text_flops(model, tokens - 1, True) + (tokens - 4) * word),
    }


def gpu_hours(items: float, flops: float, rate: float) -> float:
    """GPU hours of `items` times `flops`.

    Args:
        rate: FLOP/s that a GPU reaches.
    """
    return items * flops / rate / 3600


def index_bytes(samples: int, key_bytes: int = 9) -> int:
    """Bytes of the index of shards: per sample seven uint32 for members, one for the end of its key, and the key."""
    return samples * (7 * 4 + 4 + key_bytes)
