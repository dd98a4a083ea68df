"""The reader that fills the config dataclasses: defaults < YAML < key=value."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from vlp.errors import UserError

Config = TypeVar("Config")


def load_config(kind: type[Config], path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """Read a config file and apply `key.sub=value` overrides.

    Args:
        kind: the dataclass to fill, such as `RunConfig`.
        path: a YAML file, or None for the defaults alone.
        overrides: dotted assignments; each value is read as YAML.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except FileNotFoundError:
            raise UserError(f"There is no config file {path}.") from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values at its top level.")
    for override in overrides or []:
        _assign(values, override)
    return from_dict(kind, values)


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Fill the dataclass `kind` from nested dicts, refusing unknown keys and wrong types by name."""
    return _convert(kind, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dict of a config, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save_config(config: Any, path: str | Path) -> None:
    """Write a config as YAML, every key included."""
    Path(path).write_text(as_yaml(config))


def as_yaml(config: Any) -> str:
    """A config as YAML, every key included."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _assign(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"Write an override as key=value, not {override!r}.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"{key} cannot be set: {parent} is not a section.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"The value of {key} is not readable as YAML: {text!r}.") from None


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotated type `kind`; `name` is its dotted key."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_section(kind, value, name)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}.")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(kind, value, name)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{name} must be a list, not {value!r}.")
        (item,) = typing.get_args(kind)
        return [_convert(item, entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    return _convert_scalar(kind, value, name)


def _convert_section(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{name or 'the config'} must be a section with keys, not {value!r}.")
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(hints)}."
            raise UserError(f"Unknown config key {_join(name, key)}{hint}")
    return kind(**{key: _convert(hints[key], entry, _join(name, key)) for key, entry in value.items()})


def _convert_union(kind: Any, value: Any, name: str) -> Any:
    for choice in typing.get_args(kind):
        if dataclasses.is_dataclass(choice) and value is not None:
            return _convert_section(choice, value, name)  # which says better what is wrong
        try:
            return _convert(choice, value, name)
        except UserError:
            continue
    raise UserError(f"{name} must be {str(kind).replace('|', 'or')}, not {value!r}.")


def _convert_scalar(kind: type, value: Any, name: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    if kind is types.NoneType and value is None:
        return None
    if type(value) is not kind:
        raise UserError(f"{name} must be {kind.__name__}, not {value!r}.")
    return value


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)
