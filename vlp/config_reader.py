"""Reads config files into the dataclasses of `vlp.config`: defaults < YAML < key=value."""

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml

from vlp.config import PRETRAINING, CapFiltConfig, RunConfig
from vlp.config_ranges import LARGEST, Length, Pattern, Range
from vlp.errors import UserError
from vlp.files import read_text, write_text

KINDS = (RunConfig, CapFiltConfig)  # of config files
MOST_YAML = 2**22  # bytes of a config file
MOST_MERGED = 10_000  # keys of a section
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}  # as error messages name them

Config = TypeVar("Config")


def load_config(
    kind: type[Config],
    path: str | Path | None,
    overrides: list[str] | None = None,
    values: dict[str, Any] | None = None,
) -> Config:
    """Read a config file and apply overrides.

    Args:
        kind: the dataclass to fill, such as `RunConfig`.
        path: a YAML file, or None to start from the defaults.
        overrides: assignments as `key.sub=value`; each value is parsed as YAML. They win over `values`. An empty
            value, as in `tokenizer=`, is null in YAML; for a text it means the empty one.
        values: values by top-level key, used as they are. They win over the file.

    Raises:
        UserError: the file is missing or is not YAML, is for another command, a key is unknown, or a value has the
            wrong type or is out of range.
    """
    given = _read_file(path)
    _check_kind(kind, given, path)
    return from_dict(kind, _override(given | (values or {}), overrides))


def load_any_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig | CapFiltConfig:
    """Read a config file of either kind: a training run or CapFilt.

    The top-level keys decide. The kind that knows more of them is used, and `RunConfig` if both know equally many.

    Raises:
        UserError: as in `load_config`.
    """
    values = _override(_read_file(path), overrides)
    kinds: list[Any] = list(KINDS)  # max takes the first of equals
    return from_dict(max(kinds, key=lambda kind: len(values.keys() & typing.get_type_hints(kind).keys())), values)


def command_of(kind: type, task: str = "") -> str:
    """The command that takes a kind of config, `CapFiltConfig` or `RunConfig`; of trainings, one with this task."""
    if kind is CapFiltConfig:
        return "capfilt run"
    return "pretrain" if task in ("", *PRETRAINING) else "finetune"


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Fill the dataclass `kind` from nested dicts.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range; the message names the key.
    """
    return _convert(kind, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dict of a config, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save_config(config: Any, path: str | Path) -> None:
    """Write a config as YAML with every key, including those at their defaults."""
    write_text(path, as_yaml(config))


def as_yaml(config: Any) -> str:
    """A config as YAML with every key, including those at their defaults."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _read_file(path: str | Path | None) -> dict[str, Any]:
    """The nested dict of a file, before types are checked; {} for None."""
    values: Any = {} if path is None else _read_yaml(read_text(path, "config file", MOST_YAML), str(path))
    if values is None:
        values = {}  # an empty file
    if not isinstance(values, dict):
        raise UserError(f"{path} must have keys and values at its top level.")
    return values


def _check_kind(kind: Any, values: dict[str, Any], path: str | Path | None) -> None:
    """Raise UserError for a file that is a recipe of another command: all of its keys are those of another config."""
    known = {one: typing.get_type_hints(one).keys() for one in KINDS}
    if kind not in known or values.keys() <= known[kind]:
        return
    for other in KINDS:
        if values.keys() <= known[other]:
            command = command_of(other, str(values.get("task", "")))
            raise UserError(f"{path} is a recipe for `vlp {command}`; give it to that, or name another one.")


def _override(values: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    """The nested dict with its overrides."""
    for override in overrides or []:
        _assign(values, override)
    return values


def _assign(values: dict[str, Any], override: str) -> None:
    """Apply one `key.sub=value` to the nested dict."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"Write an override as key=value, not {override!r}.")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise UserError(f"Cannot set {key}: {parent} is not a section.")
    values[last] = _read_yaml(text, f"The value of {key}")


class _Loader(yaml.SafeLoader):
    """Safe YAML that rejects duplicate keys and merges (`<<`) that grow without bound."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    raise yaml.YAMLError(f"the key {key.value} occurs twice, line {key.start_mark.line + 1}")
                keys.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_MERGED:
            raise yaml.YAMLError(f"merges (<<) make a section of more than {MOST_MERGED} keys")


def _read_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{what} is not valid YAML: it is nested too deeply.") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # SafeLoader raises the errors that are not YAMLErrors for invalid dates, numbers and tags.
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())[:200]}.") from None


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Check `value` against the annotated type `kind`; `name` is its dotted key."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_section(kind, value, name)
    if origin is Annotated:
        base, *limits = typing.get_args(kind)
        converted = _convert(base, value, name)
        for limit in limits:
            _check_limit(limit, converted, name)
        return converted
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, not {_shown(value)}.")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(kind, value, name)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{name} must be a list, not {_shown(value)}.")
        (item,) = typing.get_args(kind)
        return [_convert(item, entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    return _convert_scalar(kind, value, name)


def _convert_section(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{name or 'The config'} must be a section with keys, not {_shown(value)}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(hints)}."
            raise UserError(f"Unknown config key {_join(name, str(key)[:80])}{hint}")
    given = {key: _or_empty_text(hints[key], entry) for key, entry in value.items()}
    return kind(**{key: _convert(hints[key], entry, _join(name, key)) for key, entry in given.items()})


def _or_empty_text(kind: Any, value: Any) -> Any:
    """The empty text for a null where `kind` takes a text and no null: YAML reads a null from `key=`."""
    kinds = [kind, *typing.get_args(kind)]
    return "" if value is None and (str in kinds or "" in kinds) and types.NoneType not in kinds else value


def _convert_union(kind: Any, value: Any, name: str) -> Any:
    choices = typing.get_args(kind)
    given = [choice for choice in choices if choice is not types.NoneType]
    if value is None and len(given) < len(choices):
        return None
    if len(given) == 1:  # X | None: report the error of X
        return _convert(given[0], value, name)
    for choice in given:
        if dataclasses.is_dataclass(choice) and isinstance(value, dict):
            return _convert_section(choice, value, name)
        if typing.get_origin(choice) is list and isinstance(value, list):
            return _convert(choice, value, name)
    for choice in given:
        if isinstance(choice, type) and isinstance(value, choice):
            return _convert(choice, value, name)
    raise UserError(f"{name} must be {' or '.join(map(_type_name, given))}, not {_shown(value)}.")


def _convert_scalar(kind: type, value: Any, name: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # YAML parses 1e-4 as a string
            value = float(value)
    if type(value) is not kind:
        raise UserError(f"{name} must be {_type_name(kind)}, not {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value}.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{name} must be at most {LARGEST}, not {_shown(value)}.")
    if isinstance(value, str) and ("\0" in value or not _is_text(value)):
        raise UserError(f"{name} must be valid Unicode text without NUL characters, not {_shown(value)}.")
    return value


def _check_limit(limit: Any, value: Any, name: str) -> None:
    """Raise UserError if a converted value violates the `Range` or `Length` of its annotation."""
    if isinstance(limit, Range) and value not in limit:
        raise UserError(f"{name} must be {limit}, not {value}.")
    if isinstance(limit, Pattern) and not re.fullmatch(limit.expression, value):
        raise UserError(f"{name} must consist of {limit.words}, not {_shown(value)}.")
    if isinstance(limit, Length) and len(value) != limit.items:
        raise UserError(f"{name} must be a list of {limit.items}, not {_shown(value)}.")


def _is_text(value: str) -> bool:
    """Whether the string can be written as UTF-8, counting surrogate escapes of file names as text."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _type_name(kind: Any) -> str:
    """A type as error messages name it."""
    if typing.get_origin(kind) is list:
        return "a list"
    return "a section" if dataclasses.is_dataclass(kind) else TYPES[kind]


def _shown(value: Any) -> str:
    """A value as error messages show it, shortened."""
    return "null" if value is None else reprlib.repr(value)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)
