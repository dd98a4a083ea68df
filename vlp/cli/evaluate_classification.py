"""`vlp evaluate classification` and `vlp evaluate linear-probe`: images with a class."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision

if TYPE_CHECKING:
    from vlp.evaluation.results import Results
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.model import Model

DATA = "An image folder with a subfolder per class, a folder of shards or of parquet files, or shards."


def classification(
    model: str,
    data: Annotated[str, typer.Argument(help=DATA)],
    classnames: Annotated[
        str | None, typer.Option(help="File of class names, one a line, or FOLDER<tab>NAME; default: beside the data.")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help="File of prompts, one a line, with {} for the name; default: beside the data.")
    ] = None,
    rerank: Annotated[int, typer.Option(min=0, help="Match this many texts with each image by ITM; 0 disables.")] = 0,
    split: Annotated[str, typer.Option(help="Split of a downloaded CLIP_benchmark data set, or of parquet.")] = "test",
    label: Annotated[str, typer.Option(help="Key of the class in the JSON of samples, or column of parquet.")] = "",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """acc1, acc5 and mean per class recall: zero-shot, or of a classifier.

    Example: vlp evaluate classification MODEL data/pets --rerank 16
    """
    given = locals()
    from vlp.data.class_names import read_templates
    from vlp.data.labelled_images import open_labelled
    from vlp.evaluation.classification import evaluate_classification

    def evaluate(loaded: "Model", settings: "EvaluationSettings") -> "Results":
        images = open_labelled(data, classnames, split, label=label)
        prompts = read_templates(templates) if templates else []
        return evaluate_classification(loaded, images, prompts, rerank, settings)

    run_evaluation("classification", given, evaluate)


def linear_probe(
    model: str,
    train: Annotated[str, typer.Argument(help=DATA)],
    test: Annotated[str, typer.Argument(help="The same for the images to score.")],
    features: Annotated[
        Literal["class_token", "embedding"],
        typer.Option(help="The encoder's class token, or its projection for ITC."),
    ] = "class_token",
    shots: Annotated[int | None, typer.Option(min=1, help="Fit to this many images of each class.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shots and of the held-out images.")] = 0,
    train_split: Annotated[str, typer.Option(help="Split of a downloaded CLIP_benchmark data set.")] = "train",
    test_split: Annotated[str, typer.Option(help="The same for the images to score.")] = "test",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Logistic regression on frozen features, which are kept in the cache for the next call.

    Example: vlp evaluate linear-probe MODEL data/pets-train data/pets-test --shots 16
    """
    given = locals()
    from vlp.data.labelled_images import open_labelled
    from vlp.evaluation.linear_probe import evaluate_linear_probe, features_folder

    def evaluate(loaded: "Model", settings: "EvaluationSettings") -> "Results":
        fit = open_labelled(train, split=train_split)
        scored = open_labelled(test, split=test_split, folders=fit.folders)
        folder = features_folder(fit, scored, features, settings)
        return evaluate_linear_probe(loaded, fit, scored, folder, features, shots, seed, settings)

    run_evaluation("linear_probe", given, evaluate)
