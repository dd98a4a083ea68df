"""BLIP models of `transformers` with random weights, and inputs for them and for converted ones."""

import torch
import transformers
from transformers import BlipConfig

from vlp.model import Model

CLASSES = {
    "captioning": transformers.BlipForConditionalGeneration,
    "retrieval": transformers.BlipForImageTextRetrieval,
    "vqa": transformers.BlipForQuestionAnswering,
    "features": transformers.BlipModel,
}
SIZES = [
    {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "patch": 16},
    {"width": 48, "layers": 3, "heads": 4, "image_size": 48, "patch": 8},
]
WORDS = ("small", "large"), ("red", "blue", "green", "white"), ("circle", "box", "star", "bar", "ring")
TEXTS = ["a small red circle", "there is a large blue star above a green box", "a bar", "we see a white ring"]


def redraw(network, deviation=0.15):
    """Redraw the weights: those of a new vision model are so small (1e-10) that the image would have no effect."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(around + deviation * torch.randn_like(parameter))
    return network.eval()


def make_theirs(kind, tokenizer, width, layers, heads, image_size, patch):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "encoder_hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 40,
        "bos_token_id": tokenizer.dec_id,
        "pad_token_id": tokenizer.pad_id,
        "sep_token_id": tokenizer.sep_id,
        "eos_token_id": tokenizer.sep_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch,
    }
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24)
    theirs = redraw(CLASSES[kind](config))
    theirs.tie_weights()
    return theirs


def pictures(model: Model, count):
    torch.manual_seed(1)
    return torch.randn(count, 3, model.image_size, model.image_size)


def ids_of(model: Model, texts, first):
    ids, mask = model.tokenizer.encode(texts, 30, first=first)
    return ids, mask.long()
