"""Options of a command from the fields of a msgspec Struct: each declares its name, type, bounds, default and help once."""
from __future__ import annotations

import argparse
import math
import typing
from typing import Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from saccade.errors import SaccadeError

S = TypeVar("S", bound=Struct)


def add_options(parser: argparse.ArgumentParser, settings: type[Struct]) -> None:
    """Add an option for each field; what is given is checked by `settings_from`."""
    hints = typing.get_type_hints(settings, include_extras=True)
    for field in msgspec.structs.fields(settings):
        kind, meta = typing.get_args(hints[field.name])
        assert isinstance(meta, Meta)
        flag = f"--{field.name.replace('_', '-')}"
        text = f"{meta.description} (default: {_shown(field.default)})".replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=meta.description)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", metavar=field.name[0].upper(), help=text)
        else:
            choices = typing.get_args(kind) or None
            parser.add_argument(flag, choices=choices, metavar=None if choices else field.name[0].upper(), help=text)


def settings_from(options: argparse.Namespace, settings: type[S]) -> S:
    """Return the settings that the options ask for; raises SaccadeError for a value out of bounds."""
    fields = [field.name for field in msgspec.structs.fields(settings)]
    given = {name: value for name in fields if (value := getattr(options, name)) is not None}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')} {' '.join(value) if isinstance(value, list) else value}"
        try:
            converted = getattr(msgspec.convert({name: value}, settings, strict=False), name)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at")[0]
            raise SaccadeError(f"{flag}: {reason[:1].lower()}{reason[1:]}") from error
        if isinstance(converted, float) and not math.isfinite(converted):
            raise SaccadeError(f"{flag}: give a finite number")
    return msgspec.convert(given, settings, strict=False)


def _shown(default: Any) -> str:
    return " ".join(str(each) for each in default) if isinstance(default, tuple) else str(default) or "none"
