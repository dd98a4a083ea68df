"""`vlp data import` for the data sets of tasks: questions, pairs and dialogs about images."""

from typing import Annotated

import typer

from vlp.cli.data_import import Annotations, Images, import_app, run_import
from vlp.cli.options import MaxBadShare, ShardsFolder, ShardSize


@import_app.command("vqa")
def import_vqa(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import VQA and Visual Genome's questions. A sample is an image with all its questions.

    \b
    v2_OpenEnded_mscoco_train2014_questions.json   official questions, and with them
    v2_mscoco_train2014_annotations.json           the official annotations, unless it is a test split
    vqa_train.json, vqa_val.json, vqa_test.json, vg_qa.json   BLIP's
    question_answers.json                          Visual Genome's
    IMAGES/train2014/COCO_train2014_000000458752.jpg, IMAGES/VG_100K/10.jpg, or without the folder

    Example: vlp data import vqa questions.json annotations.json data/vqa-train --images coco
    """
    from vlp.data.importers.vqa import Vqa

    run_import(Vqa(files, images), output, shard_size, max_bad_share)


@import_app.command("visdial")
def import_visdial(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    options: Annotated[
        int | None, typer.Option(help="Answer options to keep in each round, with the true one; all if left out.")
    ] = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import VisDial v1.0. A sample is an image with its dialog.

    \b
    visdial_1.0_train.json                   official: questions, answers, dialogs; also _val and _test
    visdial_1.0_val_dense_annotations.json   the relevance of the options of some rounds
    IMAGES/VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg, or without the folder
    IMAGES/train2014/COCO_train2014_000000378466.jpg, or without the folder

    Example: vlp data import visdial visdial_1.0_train.json data/visdial-train --images coco --options 20
    """
    from vlp.data.importers.visdial import VisDial

    run_import(VisDial(files, images, options), output, shard_size, max_bad_share)


@import_app.command("nlvr2")
def import_nlvr2(
    files: Annotations,
    output: ShardsFolder,
    images: Images,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import NLVR2. A sample is a sentence with its two images: KEY.png and KEY.right.png.

    \b
    train.json, dev.json, test1.json   official: JSON lines with an identifier, a sentence and a label
    nlvr_train.json                    BLIP's: rows with two images, a sentence and a label
    IMAGES/dev/dev-850-0-img0.png, IMAGES/train/47/train-10171-0-img0.png, or without the folders

    Example: vlp data import nlvr2 dev.json data/nlvr2/dev --images nlvr2
    """
    from vlp.data.importers.nlvr2 import Nlvr2

    run_import(Nlvr2(files, images), output, shard_size, max_bad_share)
