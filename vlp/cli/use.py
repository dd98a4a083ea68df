"""What a trained model does: `vlp convert`, `vlp caption`, `vlp search` and `vlp match`."""

import json
from typing import Annotated, Literal

import typer

from vlp.cli.options import Json, print_values
from vlp.config import DecodingConfig


def convert(
    source: Annotated[str, typer.Argument(help="transformers folder or hub name, original .pth, or our model folder.")],
    output: str,
    to: Annotated[
        Literal["vlp", "hf"], typer.Option(help="vlp: a model folder of ours; hf: a transformers folder.")
    ] = "vlp",
    kind: Annotated[
        Literal["captioning", "retrieval", "vqa"], typer.Option(help="With --to hf: for which class.")
    ] = "captioning",
    image: Annotated[str, typer.Option(help="Image encoder: timm:NAME, open_clip:NAME,TAG or a ViT's folder.")] = "",
    tokenizer: Annotated[str, typer.Option(help="Folder or hub name, for a source without one.")] = "",
    image_size: Annotated[int, typer.Option(help="Resize to this many pixels; 0 keeps.")] = 0,
) -> None:
    """Weights of BLIP, BERT, ViT to a model, and back. Example: vlp convert Salesforce/blip-itm-base-coco out"""
    from vlp.convert.command import from_ours, to_ours

    lines = from_ours(source, output, kind) if to == "hf" else to_ours(source, output, image, tokenizer, image_size)
    print("\n".join([*lines, f"{output} is complete"]))


def caption(
    model: str,
    images: list[str],
    beams: Annotated[int, typer.Option(help="Beam search with this many beams; 0 samples.")] = 3,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: share of the probability to draw from.")] = 0.9,
    top_k: int = 0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.1,
    prompt: str = "",
    min_length: int = 5,
    max_length: int = 20,
    num_captions: Annotated[int, typer.Option(help="Captions an image.")] = 1,
    no_repeat_ngram: Annotated[int, typer.Option(help="No so many tokens in a row occur twice; 0 allows it.")] = 0,
    ban: Annotated[list[str] | None, typer.Option(help="A word that must not occur; repeatable.")] = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Caption images. Example: vlp caption runs/captioner/model photo.jpg --beams 3"""
    decoding = DecodingConfig(
        beams=beams,
        top_p=top_p,
        top_k=top_k,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        min_length=min_length,
        max_length=max_length,
        no_repeat_ngram=no_repeat_ngram,
        banned_words=ban or [],
        prompt=prompt,
    )
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    captioner = optimise_for_cpu(load_model(model))
    made = captioner.caption(images, decoding, keys=images, seed=seed, num_captions=num_captions)
    if as_json:
        print(json.dumps(dict(zip(images, made, strict=True))))
        return
    for image, texts in zip(images, made, strict=True):
        for text in [texts] if isinstance(texts, str) else texts:
            print(f"{image}\t{text}")


def search(
    model: str,
    images: Annotated[str, typer.Argument(help="A folder of pictures, or shards.")],
    query: Annotated[str, typer.Option(help="What to look for.")],
    top: int = 10,
    rerank: Annotated[int, typer.Option(help="How many of the best ITM puts in order.")] = 32,
    as_json: Json = False,
) -> None:
    """Search images by text. Example: vlp search MODEL photos --query "a dog on the beach" """
    from vlp.evaluation.search import search as run
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    hits = run(optimise_for_cpu(load_model(model)), images, query, top, rerank)
    if as_json:
        print(json.dumps([vars(hit) for hit in hits]))
    else:
        for hit in hits:
            matched = "" if hit.itm is None else f"  match {hit.itm:.2f}"
            print(f"{hit.itc:.3f}{matched}  {hit.name}")


def match(model: str, image: str, text: str, as_json: Json = False) -> None:
    """ITC similarity and ITM probability of an image and a text. Example: vlp match MODEL photo.jpg "a dog" """
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    result = optimise_for_cpu(load_model(model)).match(image, text)
    print_values({"itc": result.itc.item(), "itm": result.itm.item()}, as_json)
