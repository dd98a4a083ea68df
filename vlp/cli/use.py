"""What a trained model does: `vlp convert`, `vlp caption`, `vlp answer`, `vlp search` and `vlp match`."""

import json
import os
from typing import Annotated, Literal

import typer

from vlp.cli import decoding as options
from vlp.cli.decoding import decoding_settings
from vlp.cli.options import Json, Precision, print_values
from vlp.errors import UserError

Frames = Annotated[int, typer.Option(min=1, help="Frames of a video, sampled uniformly.")]


def convert(
    source: Annotated[
        str,
        typer.Argument(help="A transformers folder or hub name, a .pth, open_clip:NAME,TAG, or a model folder."),
    ],
    output: str,
    to: Annotated[
        Literal["vlp", "hf", "open_clip"],
        typer.Option(help="vlp: a model folder; hf: a transformers folder; open_clip: its folder of a CLIP model."),
    ] = "vlp",
    kind: Annotated[
        Literal["captioning", "retrieval", "vqa"],
        typer.Option(help="With --to hf: the task of the transformers class."),
    ] = "captioning",
    image: Annotated[str, typer.Option(help="Image encoder: timm:NAME, open_clip:NAME,TAG or a ViT's folder.")] = "",
    tokenizer: Annotated[str, typer.Option(help="Folder or hub name, for a source without a tokenizer.")] = "",
    image_size: Annotated[
        int, typer.Option(min=0, max=16_384, help="Resize to this many pixels; 0 keeps the size.")
    ] = 0,
) -> None:
    """Convert BLIP, CLIP, BERT or ViT weights to a model, or back.

    Example: vlp convert open_clip:ViT-B-32,laion2b_s34b_b79k out
    """
    from vlp.convert.command import from_ours, to_open_clip, to_ours

    if to != "vlp" and (image or tokenizer or image_size):
        raise UserError("--image, --tokenizer and --image-size are for --to vlp; convert twice, or leave them out.")
    if to != "hf" and kind != "captioning":
        raise UserError("--kind is for --to hf; leave it out.")
    if to == "vlp":
        lines = to_ours(source, output, image, tokenizer, image_size)
    else:
        lines = from_ours(source, output, kind) if to == "hf" else to_open_clip(source, output)
    print("\n".join([*lines, f"{output} is complete"]))


def caption(
    model: str,
    images: Annotated[list[str], typer.Argument(help="Images or videos; with --out also folders and shards.")],
    out: Annotated[str, typer.Option(help="Write a table: FILE.csv, FILE.jsonl or FILE.parquet.")] = "",
    prompt: options.Prompt = None,
    beams: options.Beams = None,
    min_length: options.MinLength = None,
    max_length: options.MaxLength = None,
    repetition_penalty: options.RepetitionPenalty = None,
    length_penalty: options.LengthPenalty = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    temperature: options.Temperature = None,
    no_repeat_ngram: options.NoRepeatNgram = None,
    banned_words: options.BannedWords = None,
    num_captions: Annotated[int, typer.Option(min=1, help="Captions per image.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    frames: Frames = 8,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Caption images and videos as the model was trained to. Example: vlp caption MODEL photo.jpg clip.mp4 --beams 5

    A whole folder or shards, continued after an interruption: vlp caption MODEL photos --out captions.csv
    """
    settings = decoding_settings(locals())
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    if out:
        from vlp.distributed import is_main, join_processes
        from vlp.generation.settings import named_overrides, resolve_decoding
        from vlp.index.caption_table import caption_to_table

        loaded = optimise_for_cpu(load_model(model, join_processes(), precision))
        decoding = resolve_decoding(loaded.decoding, named_overrides(settings))
        counts = caption_to_table(loaded, images, out, decoding, seed, num_captions, batch_size, frames, as_json)
        if is_main():
            print_values(vars(counts), as_json)
        return
    many = next((one for one in images if os.path.isdir(one) or one.endswith(".tar")), None)
    if many is not None:
        raise UserError(f"{many} is a {'folder' if os.path.isdir(many) else 'shard'}; add --out captions.csv.")
    captioner = optimise_for_cpu(load_model(model, precision=precision))
    captions = captioner.caption(
        images, seed=seed, num_captions=num_captions, batch_size=batch_size, frames=frames, **settings
    )
    texts = {image: [one.text for one in group] for image, group in zip(images, captions, strict=True)}
    if as_json:
        print(json.dumps(texts))
        return
    for image, group in texts.items():
        for text in group:
            print(f"{image}\t{text}")


def answer(
    model: str,
    image: Annotated[str, typer.Argument(help="An image or a video.")],
    questions: list[str],
    answers: Annotated[str, typer.Option(help="JSON list of answers to choose from; without it, generate.")] = "",
    beams: options.Beams = None,
    max_length: options.MaxLength = None,
    frames: Frames = 16,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Answer questions about an image or video. Example: vlp answer VQA-MODEL photo.jpg "what color is the bus?" """
    from vlp.data.questions import read_answer_list
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    listed = read_answer_list(answers) if answers else None
    loaded = optimise_for_cpu(load_model(model, precision=precision))
    if listed:
        found = [ranked[0].text for ranked in loaded.rank_answers(image, questions, listed, frames=frames)]
    else:
        found = loaded.answer(image, questions, frames=frames, beams=beams, max_length=max_length)
    if as_json:
        print(json.dumps([{"question": one, "answer": text} for one, text in zip(questions, found, strict=True)]))
        return
    for text in found:
        print(text)


def match(
    model: str,
    image: Annotated[str, typer.Argument(help="An image or a video.")],
    texts: list[str],
    frames: Frames = 8,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """ITC and ITM scores of an image or video and each text. Example: vlp match MODEL photo.jpg "a dog" "two dogs"

    A line for each text: the cosine of the embeddings (ITC), the probability that they match (ITM), and the text.
    """
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    found = optimise_for_cpu(load_model(model, precision=precision)).match(image, texts, frames=frames)
    rows = list(zip(texts, found.itc.tolist(), found.itm.tolist(), strict=True))
    if as_json:
        print(json.dumps([{"text": text, "itc": itc, "itm": itm} for text, itc, itm in rows]))
        return
    for text, itc, itm in rows:
        print(f"{itc:.4f}\t{itm:.4f}\t{text}")


def compare(
    model: str, left: str, right: str, sentence: str, precision: Precision = "auto", as_json: Json = False
) -> None:
    """How likely a sentence is true of two images. Example: vlp compare MODEL a.jpg b.jpg "both show a dog" """
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    probability = optimise_for_cpu(load_model(model, precision=precision)).compare(left, right, sentence)
    print_values({"true": probability.item()}, as_json)
