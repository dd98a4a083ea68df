"""Runs the work of a peer once for each line "go" on stdin. It runs as a program and does not import vlp.

The first line on stdin holds the settings as JSON. The answer to every line, including the first one, is a line of JSON
with `peak_memory_gib`; the first answer means that the peer is built. install_peers.sh copies this file to the peers'
environment, where `vlp/bench/peers.py` starts it.
"""

import importlib.machinery
import json
import os
import resource
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

Work = Callable[[], object]


def lavis_train(settings: dict) -> Work:
    """A pretraining step of LAVIS's BLIP on random images: forward with momentum model and queue, backward, AdamW."""
    _import_lavis()
    from lavis.models.blip_models.blip import BlipBase
    from lavis.models.blip_models.blip_pretrain import BlipPretrain
    from lavis.models.med import XBertEncoder, XBertLMHeadDecoder
    from lavis.models.vit import VisionTransformerEncoder
    from transformers import BertConfig

    width, layers, heads = settings["width"], settings["layers"], settings["heads"]
    med = BertConfig(
        vocab_size=len(settings["words"]),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        add_type_embeddings=False,
        encoder_width=width,
        add_cross_attention=True,
    )
    BlipBase.init_tokenizer = classmethod(lambda cls: _lavis_tokenizer(settings["words"]))
    image = VisionTransformerEncoder(
        img_size=settings["image_size"], patch_size=16, embed_dim=width, depth=layers, num_heads=heads
    )
    image.vision_width = width
    text, decoder = XBertEncoder(config=med, add_pooling_layer=False), XBertLMHeadDecoder(config=med)
    model = BlipPretrain(image, text, decoder, queue_size=settings["queue"]).to(_device()).train()
    captions = settings["captions"]
    samples = {"image": _images(settings), "text_input": captions, "epoch": 0, "iters": 0, "num_iters_per_epoch": 100}
    return _step(model, lambda: model(samples).loss, settings["precision"], settings["fused"])


def open_clip_train(settings: dict) -> Work:
    """A training step of open_clip's CLIP on random images and ids: forward with ClipLoss, backward, fused AdamW."""
    import open_clip
    from open_clip.model import CLIP

    vision = {"layers": settings["layers"], "width": settings["width"], "patch_size": 16}
    vision |= {"head_width": settings["width"] // settings["heads"], "image_size": settings["image_size"]}
    text = {"context_length": settings["context"], "vocab_size": settings["vocabulary"]}
    text |= {"width": settings["text_width"], "heads": settings["text_heads"], "layers": settings["layers"]}
    model = CLIP(settings["embed_dim"], vision, text).to(_device()).train()
    images = _images(settings)
    ids = torch.zeros(len(images), settings["context"], dtype=torch.int64)
    for row, caption in enumerate(settings["captions"]):
        ids[row, : len(caption)] = torch.tensor(caption)
        ids[row, len(caption) - 1] = settings["vocabulary"] - 1  # the end token, which has the largest id
    ids, loss = ids.to(_device()), open_clip.ClipLoss()
    return _step(model, lambda: loss(*model(images, ids)), settings["precision"])


def lavis_data(settings: dict) -> Work:
    """Batches of training images as LAVIS reads them, by webdataset, Pillow, torchvision and OpenCV."""
    _import_lavis()
    import cv2
    import webdataset
    from lavis.processors.blip_processors import BlipImageTrainProcessor

    torch.set_num_threads(1)  # like a loader worker
    cv2.setNumThreads(1)
    image = BlipImageTrainProcessor(image_size=settings["image_size"], min_scale=0.2)
    images = webdataset.DataPipeline(
        webdataset.ResampledShards(settings["shards"]),
        webdataset.tarfile_to_samples(),
        webdataset.decode("pilrgb"),
        webdataset.to_tuple("jpg"),
        webdataset.map_tuple(image),
    )
    stream = (one for (one,) in images)
    return lambda: [torch.stack([next(stream) for _ in range(settings["batch"])]) for _ in range(settings["batches"])]


WORKS = {"lavis_train": lavis_train, "open_clip_train": open_clip_train, "lavis_data": lavis_data}


def main() -> None:
    """Build the peer that the settings name and run it on request. With an argument (`check`), only import LAVIS."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what peers print must not mix with the answers
    if len(sys.argv) > 1:
        return _import_lavis()
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    work = WORKS[settings["peer"]](settings)
    while True:
        print(json.dumps({"peak_memory_gib": _peak_memory_gib()}), file=answers, flush=True)
        if sys.stdin.readline() != "go\n":
            return None
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _step(model: torch.nn.Module, loss: Callable[[], torch.Tensor], precision: str, fused: bool = True) -> Work:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=fused or None)
    autocast = partial(torch.autocast, _device().type, torch.bfloat16, enabled=precision == "bf16")

    def work() -> None:
        with autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def _import_lavis() -> None:
    """Import LAVIS without spaCy, which only an unused model of it needs."""
    spacy = types.ModuleType("spacy")
    spacy.__spec__ = importlib.machinery.ModuleSpec("spacy", None)
    sys.modules["spacy"] = spacy
    import lavis.models  # noqa: F401


def _lavis_tokenizer(words: list[str]) -> object:
    """The tokenizer that LAVIS's `init_tokenizer` would build from these words; the last two are its added tokens."""
    from transformers import BertTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("".join(f"{word}\n" for word in words[:-2]))
        tokenizer = BertTokenizer(str(path))
    tokenizer.add_special_tokens({"bos_token": words[-2]})
    tokenizer.add_special_tokens({"additional_special_tokens": [words[-1]]})
    tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
    return tokenizer


def _images(settings: dict) -> torch.Tensor:
    return torch.randn(len(settings["captions"]), 3, settings["image_size"], settings["image_size"], device=_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _peak_memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
