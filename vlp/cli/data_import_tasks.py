"""`vlp data import` for the data sets of tasks: questions, pairs and dialogs about images."""

from typing import Annotated

import typer

from vlp.cli.data_import import Annotations, Images, import_app, run_import
from vlp.cli.options import MaxBadShare, ShardsFolder, ShardSize


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
