"""From the command line and YAML files to a validated configuration, or one line of error and exit code 2.

Every flag is a path into a tree of pydantic models: `--training.total-steps 100` sets training.total_steps. Values are
converted and checked by pydantic, so that flags, YAML files and search spaces accept the same values and report the
same errors.
"""

from __future__ import annotations

import atexit
import gc
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from orchestration.config import Launch
from orchestration.terminal.flags import Flag, flags_of, suggestion
from orchestration.terminal.help import help_text
from soflow.config import NAMED_SECTIONS, describe, flatten, merge, override
from soflow.config_base import ConfigError, Section, one_of
from soflow.config_files import read_layers, read_yaml, unused_keys
from soflow.data.base import DataError

Config = TypeVar("Config", bound=Section)


def read_command_line(
    model: type[Config],
    description: str,
    arguments: Sequence[str] | None = None,
    layers: Sequence[dict[str, Any]] = (),
    options: type[Section] | None = None,
    positional: str | None = None,
) -> Config:
    """Read the configuration: defaults, then `layers`, then `--config` files in order, then flags.

    Ends the program after --help or --print-completion, and with exit code 2 and one line on stderr after a mistake.

    Args:
        layers: the program's own defaults, as nested dictionaries; later ones win.
        options: the program's own flags, read before by `read_options`; shown by --help.
        positional: field that takes the values without a flag.
    """
    # Python's last garbage collection would go through all objects of torch, Ray and MLflow, which takes seconds.
    atexit.register(gc.freeze)
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _has_greek(stream.encoding):
            stream.reconfigure(errors="replace")  # λ and ≤ become ?
    try:
        given = split_arguments(arguments)
        if any(argument.flag in ("help", "h") for argument in given):
            everything = any(argument.values == ["all"] for argument in given if argument.flag == "help")
            print(help_text(model, description, read_layers(layers, model), options, positional, everything))
            raise SystemExit(0)
        if any(argument.flag == "print_completion" for argument in given):
            from orchestration.terminal.completion import completion_script

            print(completion_script(model, options))
            raise SystemExit(0)
        return _read(model, given, layers, positional)
    except (ConfigError, DataError) as error:
        fail(error)


def _has_greek(encoding: str) -> bool:
    try:
        "λ≤".encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def read_options(options: type[Config], arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """Read a program's own flags; return them and the remaining arguments.

    Raises:
        ConfigError: if a value is wrong.
    """
    flags, values, rest = flags_of(options), {}, []
    for argument in split_arguments(arguments):
        if argument.flag is not None and (flag := flags.get(argument.flag)):
            value, extra = _value(flag, argument.values)
            values[flag.path] = value
            rest += extra
        else:
            rest += argument.text
    return validate(options, values), rest


def validate(model: type[Config], values: dict[str, Any]) -> Config:
    """Build a configuration from nested dictionaries.

    Raises:
        ConfigError: with one line per fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, model)) from None


def fail(error: Exception | str) -> NoReturn:
    """Print an error and exit with code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


@dataclass(frozen=True)
class Argument:
    """A flag with the values that follow it; `flag` is None for values before the first flag."""

    flag: str | None
    values: list[str]
    text: list[str]
    """As given on the command line."""


def split_arguments(arguments: Iterable[str]) -> list[Argument]:
    """Split arguments at their flags: --flag VALUE…, --flag=VALUE. Dashes and underscores in flags are equal."""
    split = [Argument(None, [], [])]
    for text in arguments:
        if text == "-h" or (text.startswith("--") and text != "--"):
            flag, equals, value = text.lstrip("-").partition("=")
            split.append(Argument(flag.replace("-", "_"), [value] if equals else [], [text]))
        else:
            split[-1].values.append(text)
            split[-1].text.append(text)
    return split if split[0].values else split[1:]


def _read(model: type[Config], given: list[Argument], layers: Sequence[dict], positional: str | None) -> Config:
    values: dict[str, Any] = {}
    for file in (file for argument in given if argument.flag == "config" for file in _files(argument)):
        values = merge(values, read_yaml(file), model)
        for key, reason in unused_keys(file).items():
            print(f"note: {file}: {key} is not used: {reason}", file=sys.stderr)
    # Names first: another objective has other fields.
    for argument in given:
        section = (argument.flag or "").removesuffix(".name")
        if section in NAMED_SECTIONS and section in model.model_fields:
            name = _one(section, argument.values)
            try:
                one_of(NAMED_SECTIONS[section])(name)
            except ValueError as error:
                raise ConfigError(f"{section} = {name}: {error}") from None
            values = merge(values, {section: {"name": name}}, model)
    resuming = any(argument.flag == "resume" for argument in given) and "resume" in model.model_fields
    user, values = values, values if resuming else merge(read_layers(layers, model), values, model)
    objective = values.get("objective", {}).get("name") if isinstance(values.get("objective"), dict) else None
    flags, changes, free = flags_of(model, objective), {}, []
    for argument in given:
        if argument.flag is None:
            free += argument.values
        elif argument.flag != "config" and argument.flag.removesuffix(".name") not in NAMED_SECTIONS:
            flag, value, extra = _find(flags, argument.flag, argument.values, objective)
            changes[flag.path] = value
            free += extra
    if free and positional:
        changes[positional] = free if flags[positional].many else _one(positional, free)
    elif free:
        raise ConfigError(f"{free[0]}: unexpected value; flags start with --, see --help")
    config = validate(model, override(values, changes))
    return config.with_given(flatten(override(user, changes))) if isinstance(config, Launch) else config


def _files(argument: Argument) -> list[str]:
    if not argument.values:
        raise ConfigError("config: needs a YAML file")
    return argument.values


def _find(flags: dict[str, Flag], given: str, values: list[str], objective: str | None) -> tuple[Flag, Any, list[str]]:
    """Look up the flag that was given and convert its values; `--no-x` and `--section.no-x` switch x off."""
    if flag := flags.get(given):
        return flag, *_value(flag, values)
    section, _, name = given.rpartition(".")
    off = flags.get(".".join(filter(None, [section, name.removeprefix("no_")]))) if name.startswith("no_") else None
    if off and off.is_bool and not values:
        return off, False, []
    raise ConfigError(f"--{given.replace('_', '-')}: unknown flag{suggestion(given, flags, objective)}")


def _value(flag: Flag, values: list[str]) -> tuple[Any, list[str]]:
    """Return a flag's value for pydantic, and the values that do not belong to it."""
    if flag.optional and [value.lower() for value in values[:1]] in (["none"], ["null"]):
        return None, values[1:]
    if flag.many:
        return values, []
    if flag.is_bool:
        is_value = values and (flag.words or values[0].lower() in ("true", "false", "yes", "no", "on", "off", "0", "1"))
        return (values[0], values[1:]) if is_value else (True, values)
    if not values:
        raise ConfigError(f"{flag.path}: needs a value, {flag.kind}")
    return values[0], values[1:]


def _one(name: str, values: list[str]) -> str:
    if len(values) != 1:
        raise ConfigError(f"{name} = {' '.join(values)}: must be one value")
    return values[0]
