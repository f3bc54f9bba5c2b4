"""Changes of a configuration from the command line: `weights.temporal=0.5`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lib.errors import InputError

Config = TypeVar("Config")


def read_settings(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary. Raises InputError for a text without both, or a name that comes twice."""
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"expected NAME=VALUE, say weights.temporal=0.5, got {text!r}")
        if name in settings:
            raise InputError(f"{name} is set twice, to {settings[name]} and to {value}")
        settings[name] = value
    return settings


def with_settings(config: Config, settings: Mapping[str, str]) -> Config:
    """The configuration with some fields changed, all at once; a dot leads into a part of it.

    Raises InputError for an unknown name, listing what there is, and for a value that is of another type or refused.
    """
    names = {name for name, _ in leaves(config)}
    for name in settings:
        if name not in names:
            raise InputError(f"no setting {name}; there are {', '.join(sorted(names))}")
    try:
        return _changed(config, settings)
    except ValueError as error:
        raise InputError(f"{', '.join(map('='.join, settings.items()))}: {error}") from error


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of all fields of a configuration, those of its parts with dots."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def differences(config: object, other: object) -> dict[str, str]:
    """The settings in which another configuration of the same kind differs, with its values, as texts say them."""
    theirs = dict(leaves(other))
    return {name: _text(theirs[name]) for name, value in leaves(config) if theirs[name] != value}


def _changed(config: Config, settings: Mapping[str, str]) -> Config:
    """The configuration with some of its own fields, and fields of its parts, changed. Raises ValueError."""
    types, of_parts = get_type_hints(type(config)), defaultdict(dict)
    changes = {name: _parsed(text, types[name]) for name, text in settings.items() if "." not in name}
    for name, text in settings.items():
        part, dot, inner = name.partition(".")
        if dot:
            of_parts[part][inner] = text
    changes |= {part: _changed(getattr(config, part), inner) for part, inner in of_parts.items()}
    return replace(config, **changes)


def _parsed(text: str, expected: Any) -> Any:
    """A value of the type that a field has. Raises ValueError."""
    if get_origin(expected) is Literal:
        if text not in get_args(expected):
            raise ValueError(f"expected one of {', '.join(get_args(expected))}")
        return text
    if get_origin(expected) is tuple:
        return tuple(_parsed(part, get_args(expected)[0]) for part in text.split(","))
    if type(None) in get_args(expected):
        return None if text == "none" else _parsed(text, get_args(expected)[0])
    if expected is bool:
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if expected is int:
        return int(text)
    if expected is float:
        if not math.isfinite(number := float(text)):
            raise ValueError("expected a finite number")
        return number
    return text


def _text(value: Any) -> str:
    """What `_parsed` reads as this value."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
