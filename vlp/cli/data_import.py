"""`vlp data import`: other data formats to shards, a command for each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vlp.cli.options import Json, MaxBadShare, Shards, ShardsFolder, ShardSize, print_values

if TYPE_CHECKING:
    from vlp.data.importers.write import Importer

REASONS_SHOWN = 10

import_app = typer.Typer(no_args_is_help=True, help="Import other data formats as shards.")

Annotations = Annotated[list[str], typer.Argument(help="Annotation files, see above.")]
Images = Annotated[str, typer.Option(help="Folder of the images.")]
Names = Annotated[str | None, typer.Option(help="File with the names of the images to take, one per line.")]
Split = Annotated[str | None, typer.Option(help="Splits of Karpathy's file to take, such as train,restval.")]


@import_app.command("coco")
def import_coco(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    split: Split = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import COCO captions. The kind of each file is recognized from its content.

    \b
    captions_train2017.json   official: images and annotations
    dataset_coco.json         Karpathy's: images with sentences and a split
    coco_karpathy_train.json  BLIP's: rows with an image and a caption
    IMAGES/val2014/COCO_val2014_000000391895.jpg, or without the folder

    Example: vlp data import coco dataset_coco.json data/coco --images coco --split train,restval
    """
    from vlp.data.importers.coco import coco

    run_import(coco(files, images, _names(split)), output, shard_size, max_bad_share)


@import_app.command("flickr30k")
def import_flickr30k(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    split: Split = None,
    names: Names = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import Flickr30k.

    \b
    dataset_flickr30k.json      Karpathy's: images with sentences and a split
    flickr30k_test.json         BLIP's: rows with an image and captions
    results.csv                 image_name| comment_number| comment
    results_20130124.token      1000092795.jpg#0<tab>caption
    IMAGES/1000092795.jpg

    Example: vlp data import flickr30k dataset_flickr30k.json data/test --images flickr30k-images --split test
    """
    from vlp.data.importers.flickr import flickr

    run_import(flickr("flickr30k", files, images, _names(split), names), output, shard_size, max_bad_share)


@import_app.command("flickr8k")
def import_flickr8k(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    split: Split = None,
    names: Names = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import Flickr8k, or any data set with one of its layouts.

    \b
    captions.txt           CSV with the columns image, caption
    Flickr8k.token.txt     1000268201_693b08cb0e.jpg#0<tab>caption
    dataset_flickr8k.json  Karpathy's: images with sentences and a split
    IMAGES/1000268201_693b08cb0e.jpg

    Example: vlp data import flickr8k captions.txt data/train --images Images --names train.txt
    """
    from vlp.data.importers.flickr import flickr

    run_import(flickr("flickr8k", files, images, _names(split), names), output, shard_size, max_bad_share)


@import_app.command("vg")
def import_vg(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import Visual Genome. The regions of an image become its captions; their boxes are kept in the JSON.

    \b
    region_descriptions.json  official: images with regions
    vg_caption.json           BLIP's: rows with an image and a caption
    IMAGES/VG_100K/1.jpg, IMAGES/VG_100K_2/2.jpg, or without the folders

    Example: vlp data import vg region_descriptions.json data/vg --images vg
    """
    from vlp.data.importers.visual_genome import visual_genome

    run_import(visual_genome(files, images), output, shard_size, max_bad_share)


@import_app.command("nocaps")
def import_nocaps(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import NoCaps. The domain of an image is kept in the JSON.

    \b
    nocaps_val_4500_captions.json  official: images with their domains, and annotations
    nocaps_val.json                BLIP's: rows with an image, without captions
    IMAGES/val/0013ea2087020901.jpg, or without the folder

    Example: vlp data import nocaps nocaps_val_4500_captions.json data/nocaps --images nocaps
    """
    from vlp.data.importers.nocaps import nocaps

    run_import(nocaps(files, images), output, shard_size, max_bad_share)


@import_app.command("conceptual")
def import_conceptual(
    files: Annotated[list[str], typer.Argument(help="Tables, or folders of img2dataset.")],
    output: ShardsFolder,
    images: Annotated[
        str | None, typer.Option(help="Folder of the images; that of the first table if left out.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Column of the image files; guessed if left out.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of the captions; guessed if left out.")] = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import SBU, Conceptual 3M or 12M, or another web collection, from img2dataset's output or from tables.

    \b
    cc3m/00000.tar, 00000.parquet             img2dataset, webdataset
    cc3m/00000/000000000.jpg, 00000.parquet   img2dataset, files
    train.tsv: image and caption, or url and caption, with or without a heading
    IMAGES/: the files that the table names, or the last parts of the URLs

    Failed downloads are counted by their error; they do not count as bad samples.

    Example: vlp data import conceptual cc3m data/cc3m
    """
    from vlp.data.importers.conceptual import conceptual

    run_import(conceptual(files, images, image, text), output, shard_size, max_bad_share)


@import_app.command("clip-benchmark")
def import_clip_benchmark(
    folder: Annotated[str, typer.Argument(help="Folder of the data set, see above.")],
    output: ShardsFolder,
    split: Annotated[str, typer.Option(help="The split to take.")] = "test",
    caption_template: Annotated[
        str | None, typer.Option(help="Makes captions from class names, such as 'a photo of a {}'.")
    ] = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import a data set of CLIP_benchmark. Lines of texts become captions, classes `cls` in the JSON.

    \b
    FOLDER/test/nshards.txt, 0.tar, 1.tar   images (webp, jpg, png) with .cls or .txt
    FOLDER/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt   kept

    Example: vlp data import clip-benchmark wds_vtab-pets data/pets
    """
    from vlp.data.importers.clip_benchmark import ClipBenchmark

    importer = ClipBenchmark(folder, split, caption_template)
    run_import(importer, output, shard_size, max_bad_share, importer.files)


@import_app.command("folder")
def import_folder(
    folder: Annotated[str, typer.Argument(help="Folder with the images.")],
    output: ShardsFolder,
    text: Annotated[list[str] | None, typer.Option(help="Columns of the captions; guessed if left out.")] = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import a folder of images, with or without texts.

    \b
    FOLDER/metadata.jsonl  {"file_name": "a/1.jpg", "text": "a dog", ...}, or
    FOLDER/metadata.csv    file_name,text,...; other columns are kept in the JSON
    FOLDER/a/1.jpg         without metadata: all images, also those in subfolders;
    FOLDER/a/1.txt         the text of an image, if there is one

    Example: vlp data import folder photos data/mine
    """
    from vlp.data.importers.folder import image_folder

    run_import(image_folder(folder, text), output, shard_size, max_bad_share)


@import_app.command("datacompdr")
def import_datacompdr(
    shards: Annotated[list[str], typer.Argument(help="Shards with images and KEY.syn.json: paths, globs or braces.")],
    output: ShardsFolder,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import DataCompDR: KEY.jpg, KEY.syn.json, KEY.json and optionally KEY.txt, KEY.paug.json, KEY.npz in each shard.

    Synthetic captions join the captions, and the other members are kept. Shards without images are joined to others
    by `vlp data import tables`.

    Example: vlp data import datacompdr 'dr/*.tar' data/dr
    """
    from vlp.data.importers.datacompdr import DataCompDR

    run_import(DataCompDR(shards), output, shard_size, max_bad_share)


@import_app.command("hf")
def import_hf(
    name: Annotated[str, typer.Argument(help="Folder, parquet file, or NAME or NAME:CONFIG of the hub.")],
    output: ShardsFolder,
    split: Annotated[str, typer.Option(help="Split, or several as train+restval.")] = "train",
    image: Annotated[str, typer.Option(help="Column of the images; default: guessed.")] = "",
    text: Annotated[str, typer.Option(help="Column of the texts, or a field as json.caption; default: guessed.")] = "",
    group_by: Annotated[
        str, typer.Option(help="Column that is equal for the rows of an image; default: cocoid, image_id and the like.")
    ] = "",
    no_text: Annotated[bool, typer.Option("--no-text", help="Import images without texts.")] = False,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import a Hugging Face data set. Rows of one image become one sample; other columns are kept in its JSON.

    Without --text, the columns question and question_id (VQAv2) become the questions of their image.

    \b
    data/train-00000-of-00002.parquet    parquet, Arrow or webdataset files
    dataset_info.json, state.json        what save_to_disk wrote
    train/metadata.jsonl, train/1.jpg    an image folder

    Example: vlp data import hf flickr30k data/flickr30k --split test --image image --text caption
    """
    from vlp.data.importers.hf import HuggingFaceDataset

    importer = HuggingFaceDataset(name, split, image, text, group_by, need_text=not no_text)
    run_import(importer, output, shard_size, max_bad_share)


@import_app.command("tables")
def import_tables(
    tables: Annotated[list[str], typer.Argument(help="Parquet tables or DataCompDR's tars: paths, globs or braces.")],
    shards: Shards,
    name: Annotated[str, typer.Option(help="Name of the new tables, such as laion: SHARD.laion.parquet.")],
    on: Annotated[str, typer.Option(help="Column to join on; default: uid, sha256, key or url.")] = "",
    texts: Annotated[
        list[str] | None, typer.Option(help="COLUMN=SOURCE: a column of web, human or synthetic texts; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Join tables of LAION, COYO, DataComp or Recap-DataComp, or texts of DataCompDR, to shards; copies no image.

    Example: vlp data import tables 'laion/*.parquet' --shards 'web/*.tar' --name laion

    The tables' columns can then be named in rules: vlp capfilt select 'itm >= 0.5 and laion.punsafe < 0.1'
    --scores 'web/*.capfilt.parquet' --also laion='web/*.laion.parquet' --out new

    Their texts can be trained on: data.sources=[{shards: web/*.tar, texts: {table: laion}}]
    """
    from vlp.data.importers.table_columns import parse_texts
    from vlp.data.importers.tables import import_tables
    from vlp.data.shard_index import expand_shards
    from vlp.log import Progress

    with Progress("shards", 2 * len(expand_shards(shards)), quiet=as_json) as bar:
        counts = import_tables(tables, shards, name, on, parse_texts(texts or []), lambda *done: bar.add(*done))
    print_values(vars(counts), as_json)


def _names(text: str | None) -> list[str] | None:
    """Names separated by commas."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def run_import(
    importer: "Importer", output: str, shard_size: int, max_bad_share: float, files: Mapping[str, bytes] | None = None
) -> None:
    """Write the samples of an importer as shards, with progress, and print the counts.

    Args:
        files: further files to write beside the shards, by name.
    """
    from vlp.data.importers.write import write_imported
    from vlp.log import Progress

    with Progress("samples", len(importer)) as bar:
        counts = write_imported(
            importer, output, shard_size, max_bad_share, lambda stage, done: bar.add(stage, done), files
        )
    silent = f" {counts.without_text} of them have no text." if counts.without_text else ""
    absent = f" {_count(counts.not_downloaded, 'images were not downloaded')}" if counts.not_downloaded else ""
    skipped = f" {_count(counts.bad, 'bad samples were skipped')}" if counts.bad else ""
    print(f"Wrote {counts.samples} samples to {output}.{silent}{absent}{skipped}")


def _count(reasons: dict[str, int], what: str) -> str:
    """A sentence with the number of something, in all and for the most frequent reasons."""
    most = sorted(reasons.items(), key=lambda pair: -pair[1])[:REASONS_SHOWN]
    shown = ", ".join(f"{reason}: {count}" for reason, count in most)
    rest = sum(reasons.values()) - sum(count for _, count in most)
    return f"{sum(reasons.values())} {what} ({shown}{f', other reasons: {rest}' if rest else ''})."
