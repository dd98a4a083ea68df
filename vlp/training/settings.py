"""Settings as dotted keys, and which of them contradict those of a model."""

from typing import Any

from vlp.config_reader import to_dict


def leaves(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists of dicts as one dict from dotted keys to values."""
    if isinstance(values, dict) and values:
        parts = {f"{name}.{key}" if name else str(key): value for key, value in values.items()}
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        parts = {f"{name}[{number}]": value for number, value in enumerate(values)}
    else:
        return {name: values}
    return {key: leaf for part, value in parts.items() for key, leaf in leaves(value, part).items()}


def contradictions(given: Any, actual: Any, name: str) -> list[str]:
    """Where a section of a config gives other values than a model has; a value at its default counts as not given.

    Args:
        given, actual: of one dataclass.
        name: of the section.
    """
    default, stated, held = (leaves(to_dict(one), name) for one in (type(given)(), given, actual))
    return [
        f"{key} is {value} (the model has {held.get(key)})"
        for key, value in stated.items()
        if value not in (default.get(key), held.get(key))
    ]
