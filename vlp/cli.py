"""Every command: parse, call one function, print. Heavy imports stand inside the commands, so that --help is quick."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlp.cli_capfilt import capfilt_app
from vlp.cli_options import Json, Overrides, print_values
from vlp.config import DecodingConfig, RunConfig, load_config
from vlp.errors import UserError, WorkError
from vlp.launch import start_missing_processes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="BLIP-style pretraining and CapFilt on image-text shards.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, import and inspect shards.")
import_app = typer.Typer(no_args_is_help=True, help="Other people's formats to shards.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model on shards.")
app.add_typer(data_app, name="data")
data_app.add_typer(import_app, name="import")
app.add_typer(capfilt_app, name="capfilt")
app.add_typer(evaluate_app, name="evaluate")


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show tracebacks and every log line.")] = False) -> None:
    """BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vlp").setLevel(logging.DEBUG if debug else logging.INFO)


@app.command()
def demo(
    output: Annotated[str, typer.Argument(help="Folder for everything the demo makes.")] = "demo",
    quick: Annotated[bool, typer.Option(help="A smoke test of a minute.")] = False,
    seed: int = 0,
) -> None:
    """The whole loop on synthetic scenes, with a report. Example: vlp demo runs/demo"""
    from vlp.demo import run_demo

    run_demo(output, quick=quick, seed=seed)


@data_app.command("scenes")
def data_scenes(
    output: str,
    num: Annotated[int, typer.Option(help="How many samples.")] = 1000,
    split: Annotated[str, typer.Option(help="human (clean) or web (some texts wrong).")] = "human",
    wrong: Annotated[float, typer.Option(help="Share of wrong texts in a web split.")] = 0.4,
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    shard_size: Annotated[int, typer.Option(help="Samples a shard.")] = 1000,
    seed: int = 0,
) -> None:
    """Synthetic scenes with a known truth. Example: vlp data scenes data/web --num 16000 --split web --wrong 0.4"""
    from vlp.data.scenes import write_scenes

    write_scenes(output, num, split, wrong, image_size, shard_size, seed)
    print(f"{num} samples in {output}")


@import_app.command("flickr8k")
def import_flickr8k(
    output: str,
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    captions: Annotated[str, typer.Option(help="CSV with the columns image, caption.")],
    split: Annotated[str | None, typer.Option(help="File with the names of the images to take.")] = None,
    shard_size: int = 1000,
) -> None:
    """Flickr8k. Example: vlp data import flickr8k data/train --images Images --captions captions.txt"""
    from vlp.data.import_captions import import_flickr8k as run

    print(f"{run(images, captions, output, split, shard_size)} samples in {output}")


@import_app.command("folder")
def import_folder(output: str, folder: str, shard_size: int = 1000) -> None:
    """An image folder with metadata.jsonl (file_name, text). Example: vlp data import folder data/mine photos"""
    from vlp.data.import_web import import_folder as run

    print(f"{run(folder, output, shard_size)} samples in {output}")


@data_app.command("inspect")
def data_inspect(
    shards: Annotated[list[str], typer.Argument()],
    sheet: Annotated[str, typer.Option(help="Where the contact sheet goes.")] = "contact-sheet.png",
    as_json: Json = False,
) -> None:
    """Counts, bad samples, captions, sizes and a contact sheet. Example: vlp data inspect 'data/web/*.tar'"""
    from vlp.data.inspect import inspect_shards
    from vlp.report.sheets import contact_sheet

    facts = inspect_shards(shards)
    Path(sheet).write_bytes(contact_sheet(facts.pop("pictures")))
    print_values({**facts, "contact_sheet": sheet}, as_json)


@app.command()
def tokenizer(
    shards: Annotated[list[str], typer.Argument()],
    output: Annotated[str, typer.Argument(help="Folder for the tokenizer.")],
    size: Annotated[int, typer.Option(help="Words at most.")] = 30_524,
) -> None:
    """Train a WordPiece tokenizer on captions. Example: vlp tokenizer 'data/*.tar' tokenizer --size 4000"""
    from vlp.data.shards import BadSamples, expand_shards, iterate_samples
    from vlp.data.tokenizer import train_tokenizer
    from vlp.data.transforms import clean_caption

    samples = iterate_samples(expand_shards(shards), BadSamples(max_share=1.0))
    made = train_tokenizer((clean_caption(text) for sample in samples for text in sample.captions), size)
    made.save(output)
    print(f"{len(made)} words in {output}")


Resume = Annotated[bool, typer.Option(help="Go on from the last complete checkpoint.")]


@app.command()
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


@app.command()
def pretrain(config: str, overrides: Overrides = None, resume: Resume = False) -> None:
    """Pretrain with ITC, ITM and LM. Example: vlp pretrain configs/pretrain-vit-b16.yaml batch_size=600"""
    _train(config, overrides, resume, {"pretrain"})


@app.command()
def finetune(config: str, overrides: Overrides = None, resume: Resume = False) -> None:
    """Finetune for captioning or retrieval (the filter). Example: vlp finetune configs/captioner.yaml seed=1"""
    _train(config, overrides, resume, {"captioning", "retrieval"})


def _train(path: str, overrides: list[str] | None, resume: bool, tasks: set[str]) -> None:
    config = load_config(RunConfig, path, overrides)
    if config.task not in tasks:
        raise UserError(f"task is {config.task}; this command takes {' or '.join(sorted(tasks))}.")
    from vlp.train import run

    run(config, resume)


@app.command()
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

    made = load_model(model).caption(images, decoding, keys=images, seed=seed, num_captions=num_captions)
    if as_json:
        print(json.dumps(dict(zip(images, made, strict=True))))
        return
    for image, texts in zip(images, made, strict=True):
        for text in [texts] if isinstance(texts, str) else texts:
            print(f"{image}\t{text}")


@app.command()
def search(
    model: str,
    images: Annotated[str, typer.Argument(help="A folder of pictures, or shards.")],
    query: Annotated[str, typer.Option(help="What to look for.")],
    top: int = 10,
    rerank: Annotated[int, typer.Option(help="How many of the best ITM puts in order.")] = 32,
    as_json: Json = False,
) -> None:
    """Search images by text. Example: vlp search MODEL photos --query "a dog on the beach" """
    from vlp.model import load_model
    from vlp.search import search as run

    hits = run(load_model(model), images, query, top, rerank)
    if as_json:
        print(json.dumps([vars(hit) for hit in hits]))
    else:
        for hit in hits:
            matched = "" if hit.itm is None else f"  match {hit.itm:.2f}"
            print(f"{hit.itc:.3f}{matched}  {hit.name}")


@app.command()
def match(model: str, image: str, text: str, as_json: Json = False) -> None:
    """ITC similarity and ITM probability of an image and a text. Example: vlp match MODEL photo.jpg "a dog" """
    from vlp.model import load_model

    result = load_model(model).match(image, text)
    print_values({"itc": result.itc.item(), "itm": result.itm.item()}, as_json)


@app.command()
def bench(
    what: Annotated[
        Literal["attention", "capfilt", "caption", "clip", "data", "rerank", "select", "train"],
        typer.Argument(help="What to measure."),
    ],
    size: Annotated[Literal["base", "small"], typer.Option(help="ViT-B/16 and BERT-base, or 192 wide.")] = "base",
    precision: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of weights and computation.")] = "bf16",
    batch: Annotated[int, typer.Option(help="Images at once.")] = 8,
    peers: Annotated[bool, typer.Option(help="Also measure the peer, in turns; see scripts/bench_peers.sh.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of clip, data and train.")] = 5,
    shards: Annotated[str, typer.Option(help="What data reads; made pictures if not given.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Texts that select chooses from.")] = 10_000_000,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile our blocks, in train and caption.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a part, and its peer in turns with it. Example: vlp bench caption --peers --precision fp32"""
    from vlp.bench.command import as_table
    from vlp.bench.command import bench as run

    lines = run(what, size, precision, batch, peers, repeats, shards, rows, compiled)
    print(json.dumps([vars(line) for line in lines]) if as_json else as_table(lines))


Out = Annotated[str | None, typer.Option("--out", help="Also write the numbers to this JSON file.")]


@evaluate_app.command("retrieval")
def evaluate_retrieval(
    model: str, shards: list[str], rerank: int = 16, limit: int | None = None, out: Out = None, as_json: Json = False
) -> None:
    """R@1/5/10 both ways. Example: vlp evaluate retrieval MODEL 'data/val/*.tar' --rerank 16"""
    from vlp.evaluate import evaluate_retrieval as run
    from vlp.log import Progress
    from vlp.model import load_model

    with Progress("items", quiet=as_json) as progress:
        results = run(load_model(model), shards, rerank=rerank, limit=limit, progress=progress.add)
    _finish(results, out, as_json)


@evaluate_app.command("captioning")
def evaluate_captioning(
    model: str, shards: list[str], beams: int = 3, limit: int | None = None, out: Out = None, as_json: Json = False
) -> None:
    """CIDEr, BLEU, and on scenes the share of exact captions. Example: vlp evaluate captioning MODEL 'val/*.tar'"""
    from vlp.evaluate import evaluate_captioning as run
    from vlp.log import Progress
    from vlp.model import load_model

    with Progress("images", quiet=as_json) as progress:
        results = run(load_model(model), shards, DecodingConfig(beams=beams), limit=limit, progress=progress.add)
    _finish(results, out, as_json)


@evaluate_app.command("matching")
def evaluate_matching(
    model: str,
    pairs: Annotated[str, typer.Argument(help="Tab-separated: image, caption, match or no-match.")],
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """AUC of ITM and ITC on labelled pairs. Example: vlp evaluate matching MODEL pairs.tsv --images photos"""
    from vlp.evaluate import evaluate_matching as run
    from vlp.log import Progress
    from vlp.model import load_model

    with Progress("pairs", quiet=as_json) as progress:
        results = run(load_model(model), images, pairs, progress=progress.add)
    _finish(results, out, as_json)


def _finish(results: dict[str, Any], out: str | None, as_json: bool) -> None:
    if out:
        Path(out).write_text(json.dumps(results, indent=2) + "\n")
    print_values(results, as_json)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 the work failed, 2 the call was wrong."""
    try:
        start_missing_processes(sys.argv[1:])
        app()
    except (UserError, WorkError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
