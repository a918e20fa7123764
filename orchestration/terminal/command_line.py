"""From the command line and YAML files to a validated configuration, or one clear line and exit code 2."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from pydantic import ValidationError
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from soflow.config import describe, flatten, override
from soflow.config_base import ConfigError, Section
from soflow.config_files import read_yaml, unused_keys
from soflow.data.base import DataError
from soflow.data.registry import SOURCES
from soflow.networks.registry import NETWORKS
from soflow.objectives.registry import OBJECTIVES

Config = TypeVar("Config", bound=Section)
NAMES = {"objective": OBJECTIVES, "dataset": SOURCES, "network": NETWORKS}


def read_command_line(
    model: type[Config],
    description: str,
    arguments: list[str] | None = None,
    layers: Sequence[dict[str, Any]] = (),
) -> Config:
    """The configuration from defaults, then `layers`, then `--config` files in order, then flags.

    Ends the program with exit code 2 after one line on stderr if anything is wrong with them.

    Args:
        layers: a program's own defaults, as nested dictionaries, the later ones over the earlier ones.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _read(model, description, arguments, layers)
    except (ConfigError, DataError) as error:
        fail(error)


def fail(error: Exception | str) -> NoReturn:
    """Say what is wrong and exit with code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _read(model: type[Config], description: str, arguments: list[str], layers: Sequence[dict[str, Any]]) -> Config:
    short = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    short.add_argument("--config", action="append", default=[])
    for name in NAMES:
        short.add_argument(f"--{name}")
    chosen, arguments = short.parse_known_args(arguments)

    values: dict[str, Any] = {}
    defaults = {name: getattr(model(), name).name for name in NAMES}
    for layer in layers:
        values = _merge(values, layer, defaults)
    for file in chosen.config:
        values = _merge(values, read_yaml(file), defaults)
        for key, reason in unused_keys(file).items():
            print(f"note: {file}: {key} is not used: {reason}", file=sys.stderr)
    for name, known in NAMES.items():
        if (wanted := getattr(chosen, name)) is not None:
            if wanted not in known:
                raise ConfigError(f"{name} = {wanted}: must be one of {', '.join(sorted(known))}")
            values = _merge(values, {name: {"name": wanted}}, defaults)

    default = _unvalidated(model, values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tyro's on lists where a tuple is declared; YAML has only lists
        given, unknown = tyro.cli(
            model,
            args=arguments,
            default=default,
            description=f"{description}\n\n{SHORT_FORMS}",
            registry=_sections_as_dictionaries(),
            return_unknown_args=True,
        )
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown flag or stray value; --help lists what there is")
    # `given` holds every known key; what is left of `values` below it is unknown and has to be found.
    return validate(model, override(values, flatten(given)))


SHORT_FORMS = (
    f"Short forms: --objective {{{','.join(OBJECTIVES)}}}, --dataset {{{','.join(SOURCES)}}} and --network NAME "
    "choose by name; --config FILE reads YAML (repeatable; later files and flags win). Every other flag is a path into "
    "the configuration tree, the same in YAML files and search spaces."
)


def validate(model: type[Config], values: dict[str, Any]) -> Config:
    """Raises ConfigError with one line per fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, model)) from None


def _merge(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, str]) -> dict[str, Any]:
    """`new` over `old`, section by section; an objective, data set or network of another name replaces the old one.

    Args:
        defaults: what their names are where none is given.
    """
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key, {})
        for section in (before, value):
            if key in defaults and not isinstance(section, dict):
                raise ConfigError(f"{key} = {section}: must be a mapping of configuration keys")
        if isinstance(value, dict) and isinstance(before, dict):
            name = defaults.get(key)
            same = key not in defaults or value.get("name") in (None, before.get("name", name))
            merged[key] = (before if same else {}) | value
        else:
            merged[key] = value
    return merged


def _unvalidated(model: type[Section], values: dict[str, Any], path: str = "") -> Section:
    """`values` over the model's defaults, checked only as far as the command line's flags need."""
    model = OBJECTIVES[values["name"]].config if path == "objective" and values.get("name") in OBJECTIVES else model
    filled = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        value = values.get(name, default)
        filled[name] = tuple(value) if isinstance(value, list) else value  # tyro wants what the field declares
        if isinstance(default, Section):
            if not isinstance(filled[name], (dict, Section)):
                raise ConfigError(f"{name} = {filled[name]}: must be a mapping of configuration keys")
            given = dict(values.get(name, {}))
            if given.get("name") in (None, getattr(default, "name", None)):  # a study's defaults are not its sections'
                given = dict(default) | given
            filled[name] = _unvalidated(type(default), given, name)
    return model.model_construct(**filled)


def _sections_as_dictionaries() -> ConstructorRegistry:
    """Let tyro return nested dictionaries: then every fault is found and worded in one place, `describe`."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def section(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not isinstance(info.default, Section):
            return None
        fields = []
        for name, field in type(info.default).model_fields.items():
            value = getattr(info.default, name)
            kind = type(value) if isinstance(value, Section) else field.annotation
            fields.append(StructFieldSpec(name=name, type=kind, default=value, helptext=field.description))
        return StructConstructorSpec(instantiate=lambda **values: values, fields=tuple(fields))

    return registry
