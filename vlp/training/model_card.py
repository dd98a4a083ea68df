"""The model card of a run: what the model was trained on, with which command and settings, and its scores."""

from pathlib import Path

from vlp.config import PRETRAINING, RunConfig
from vlp.config_reader import as_yaml
from vlp.models.network import KINDS


def model_card(config: RunConfig, results: dict[str, float], epoch_size: int) -> str:
    """The text of the model's README.md.

    Args:
        config: the resolved config of the run.
        results: the last record of the log, and validation scores where they exist.
        epoch_size: samples per epoch.
    """
    sources = "\n".join(
        f"- `{source.dataset or source.shards}` (weight {source.weight:g})" for source in config.data.sources
    )
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in results.items())
    origin = f"starting from `{config.start_from}`" if config.start_from else "from random weights"
    command = "pretrain" if config.task in PRETRAINING else "finetune"
    kind = KINDS[config.model.network]
    return (
        f"# {Path(config.output).name}\n\n{kind[0].upper() + kind[1:]}, trained with `vlp` ({config.task}), "
        f"{origin}, on {epoch_size} samples per epoch:\n\n{sources}\n\n"
        f"| measure | at the end |\n| --- | --- |\n{numbers}\n\n"
        f"`vlp {command} config.yaml` repeats the training with this config.yaml:\n\n```yaml\n{as_yaml(config)}```\n"
    )
