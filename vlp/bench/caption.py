"""`vlp bench caption`: captions per second at a fixed length, compared with BLIP in `transformers`."""

from dataclasses import dataclass
from typing import Any

import torch

from vlp.bench.timing import Measured, Work, compare, device
from vlp.config import DecodingConfig, Precision
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.generation.decode import start_generating
from vlp.generation.graph_step import caption_stepper
from vlp.generation.token_rules import TokenRules
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.constant_weights import constant_weights
from vlp.models.cpu.optimise import optimise_for_cpu

LENGTH = 20  # tokens of every caption, including the first one
END = 3  # id of [SEP] in these untrained models


@dataclass(frozen=True)
class Size:
    """The size of the models in a benchmark.

    Attributes:
        width, layers, heads: of the text tower, and of the image encoder unless `image` is given.
        image: width, layers and heads of the image encoder.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    image_size: int = 224
    vocabulary: int = 30_524
    image: tuple[int, int, int] | None = None

    def config(self) -> ModelConfig:
        """The config of our model at this size."""
        width, layers, heads = self.image or (self.width, self.layers, self.heads)
        image = ImageEncoderConfig(image_size=self.image_size, width=width, layers=layers, heads=heads, norm_eps=1e-5)
        text = TextTowerConfig(
            self.vocabulary, self.width, self.layers, self.heads, 4 * self.width, positions=64, dropout=0.0
        )
        return ModelConfig(image, text)

    def transformers_config(self) -> Any:
        """The BlipConfig of `transformers` at this size."""
        from transformers import BlipConfig

        own = (self.width, self.layers, self.heads)
        both, vision = (
            {
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
            }
            for width, layers, heads in (own, self.image or own)
        )
        ids = {"bos_token_id": self.vocabulary - 2, "sep_token_id": END, "eos_token_id": END, "pad_token_id": 0}
        text = {**both, **ids, "encoder_hidden_size": vision["hidden_size"], "vocab_size": self.vocabulary}
        return BlipConfig(text_config=text, vision_config={**vision, "image_size": self.image_size})


SMALL = Size(192, 4, 3, 128, 4096)
SCENES = Size(128, 4, 2, 64, 1000)  # as configs/scenes.yaml, with patches
BASE = Size()
LARGE = Size(image=(1024, 24, 16))


def bench_caption(size: Size, precision: Precision, batch: int, peers: bool, compiled: bool = False) -> list[Measured]:
    """Caption one batch of images by nucleus sampling (one and five captions per image) and by beam search.

    The time includes encoding the images.

    Args:
        compiled: compile our blocks.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    blip = Blip(size.config()).to(device=device(), dtype=dtype).eval()
    optimise_for_cpu(blip)
    if compiled:
        compile_blocks(blip)
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8, device=device())
    lines = []
    for name, beams, captions in (("nucleus", 0, 1), ("beam 3", 3, 1), ("nucleus, 5 per image", 0, 5)):
        decoding = DecodingConfig(beams=beams, min_length=LENGTH, max_length=LENGTH)

        def ours(decoding: DecodingConfig = decoding, captions: int = captions) -> None:
            _captions(blip, images, decoding, captions)

        def make_peer(beams: int = beams, captions: int = captions) -> Work:
            return _transformers(size, images, dtype, beams, captions)

        what = f"caption {name}"
        with constant_weights():  # as in a command that captions batch after batch
            lines.append(compare(what, "captions/s", batch * captions, precision, ours, make_peer if peers else None))
    return lines


def _captions(blip: Blip, images: torch.Tensor, decoding: DecodingConfig, captions: int) -> None:
    vocabulary = blip.config.text_tower.vocabulary
    with torch.no_grad():
        memory = blip.text_tower.project_image(blip.encode_images(images), "decoder")
        stepper = caption_stepper(blip, memory, decoding.max_length)
        keys = [str(row) for row in range(len(images))]
        start_generating(stepper, [vocabulary - 2], TokenRules(decoding, END), keys, 0, captions, images.device)()


def _transformers(size: Size, images: torch.Tensor, dtype: torch.dtype, beams: int, captions: int) -> Work:
    """The peer at its best: weights in the compute precision instead of autocast."""
    from transformers import BlipForConditionalGeneration

    theirs: Any = BlipForConditionalGeneration(size.transformers_config())
    theirs.to(device=images.device, dtype=dtype).eval()
    pixels = (images.float() / 127.5 - 1).to(dtype)
    length = {"min_length": LENGTH, "max_length": LENGTH, "num_return_sequences": captions}
    how = {"num_beams": beams, "do_sample": False} if beams else {"do_sample": True, "top_p": 0.9, "top_k": 0}
    return lambda: theirs.generate(pixel_values=pixels, **how, **length)
