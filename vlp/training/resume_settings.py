"""Which settings of a run may change when it is resumed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from vlp.config import DecodingOverrides, RunConfig
from vlp.config_reader import to_dict
from vlp.errors import UserError
from vlp.training.settings import leaves

# These change neither what the remaining steps compute nor which data they see.
MAY_CHANGE = {
    "output",  # the run folder may be moved
    "log_every",
    "tracker",
    "license",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate_every",
    "validation",
    "data.workers",
    "data.prefetch",
    "data.retries",
    "data.cache",
    "data.cache_gib",
    "data.pin_memory",
    "data.max_bad_share",
    "activation_checkpointing",
    "compile",
    "collective_timeout_minutes",
    *(f"decoding.{one.name}" for one in fields(DecodingOverrides)),
}
DECIDE_BEST = {"evaluate_every", "validation"}  # with best_by, these decide which model is the best
MAY_GROW = {"steps", "epochs"}


def check_resumed_settings(output: Path, config: RunConfig) -> bool:
    """Refuse to resume a run with settings that would change its results.

    Returns:
        Whether the run was made longer.

    Raises:
        UserError: such settings differ from those in OUTPUT/config.yaml; the sentence lists them.
    """
    differences = _differences(output, config)
    grown = {key for key in MAY_GROW & differences.keys() if differences[key][1] > differences[key][0]}
    allowed = MAY_CHANGE - (DECIDE_BEST if config.best_by else set())
    refused = {key: values for key, values in differences.items() if key not in allowed | grown}
    if refused:
        changes = ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise UserError(
            f"{output} was started with other settings ({changes}); resume it with those in {output}/config.yaml, "
            "or choose another output for a new run."
        )
    return bool(grown)


def _differences(output: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The old and new value of every key that differs from the resolved config that the run folder holds."""
    path = output / "config.yaml"
    if not path.exists():
        return {}
    try:
        saved = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is damaged; restore it, or start a new run in another output.")
    old, new, default = leaves(saved), leaves(to_dict(config)), leaves(to_dict(RunConfig()))
    found = {}
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, default.get(key)), new.get(key)
        if before != after and not (_is_taken_from_model(key, bool(config.start_from)) and after == default.get(key)):
            found[key] = (before, after)
    return found


def _is_taken_from_model(key: str, starts_from_model: bool) -> bool:
    """Whether the resolved config holds a computed value, or the model's, where the given config has the default."""
    if key in ("model.text_tower.vocabulary", "model.network", "model.classes", "data.streams"):
        return True
    return starts_from_model and (key.startswith("model.") or key == "objective.temperature")
