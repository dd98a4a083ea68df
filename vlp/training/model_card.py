"""The model card of a run: its data, recipe, scores, license and limits."""

from pathlib import Path

from vlp.config import PRETRAINING, RunConfig, SourceConfig
from vlp.config_reader import as_yaml
from vlp.models.network import KINDS

LIMITS = {
    "blip": (
        "Captions and answers can be wrong even where their probability is high, and ITM probabilities are not "
        "calibrated: choose thresholds on labeled pairs of your own data."
    ),
    "clip": "Similarities are not probabilities: compare them only with those of this model.",
    "classifier": "It knows only the classes of its training and assigns one of them to every image.",
}


def model_card(config: RunConfig, results: dict[str, float], epoch_size: int) -> str:
    """The text of the model's README.md.

    Args:
        config: the resolved config of the run.
        results: the last record of the log, and validation scores where they exist.
        epoch_size: samples per epoch.
    """
    sources = "\n".join(f"- {_source(source)}" for source in config.data.sources)
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in results.items())
    origin = f"starting from `{config.start_from}`" if config.start_from else "from random weights"
    command = "pretrain" if config.task in PRETRAINING else "finetune"
    kind = KINDS[config.model.network]
    validated = f"Scores are on `{config.validation}`." if config.validation else "The run had no validation data."
    return (
        f"# {Path(config.output).name}\n\n"
        f"{kind[0].upper() + kind[1:]}, trained with `vlp` ({config.task}), {origin}.\n\n"
        f"## Data\n\n{epoch_size} samples per epoch:\n\n{sources}\n\n"
        f"## Scores\n\n{validated} Losses are means over the last training steps.\n\n"
        f"| measure | at the end |\n| --- | --- |\n{numbers}\n\n"
        f"## License\n\n{_license(config)}\n\n"
        f"## Limits\n\n{_limits(config)}\n\n"
        f"## Recipe\n\n`vlp {command} config.yaml` repeats the training with this config.yaml:\n\n"
        f"```yaml\n{as_yaml(config)}```\n"
    )


def _source(source: SourceConfig) -> str:
    """One source of the training data."""
    text = f"`{source.dataset or source.shards}` (weight {source.weight:g})"
    if source.texts:
        text += f", texts drawn from the score tables `{source.texts.table}`"
    return text + (f", samples listed in `{source.keep}`" if source.keep else "")


def _license(config: RunConfig) -> str:
    """The license of the weights, and whose terms apply as well."""
    stated = f"The weights: {config.license}." if config.license else "The run states no license for the weights."
    start = f" and of `{config.start_from}`" if config.start_from else ""
    return f"{stated} The terms of the training data{start} apply as well."


def _limits(config: RunConfig) -> str:
    """What the model was not made for."""
    size = config.model.image_encoder.image_size
    texts = "" if config.model.network == "classifier" else f", and texts up to {config.data.max_tokens} tokens"
    return (
        f"Trained on images of {size} x {size} pixels{texts} from the sources above, whose errors, languages and "
        f"biases it has learned. {LIMITS[config.model.network]} It was not tested for decisions about people."
    )
