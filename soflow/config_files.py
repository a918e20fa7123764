"""Read and write configurations as YAML files, including those of the SoFlow authors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from soflow.config import RunConfig, merge, override, to_dict
from soflow.config_base import ConfigError, Section
from soflow.interop import authors_config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; translate it if it is a configuration of the SoFlow authors.

    Raises:
        ConfigError: if the file cannot be read, does not contain a mapping or cannot be translated.
    """
    values = _mapping(path)
    return authors_config.translate(values, path) if authors_config.is_authors(values) else values


def read_layers(layers: Iterable[str | Path | dict[str, Any]], model: type[Section] = RunConfig) -> dict[str, Any]:
    """Read layers, of which later ones win: YAML files, and dictionaries, nested or with dotted paths.

    Raises:
        ConfigError: if a file cannot be read, or a section is no mapping.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, override({}, layer) if isinstance(layer, dict) else read_yaml(layer), model)
    return values


def unused_keys(path: str | Path) -> dict[str, str]:
    """Return the ignored keys of a SoFlow authors' file, each with the reason; empty for other files.

    Raises:
        ConfigError: if the file cannot be read or does not contain a mapping.
    """
    values = _mapping(path)
    return authors_config.ignored(values) if authors_config.is_authors(values) else {}


def _mapping(path: str | Path) -> dict[str, Any]:
    try:
        values = load_yaml(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of configuration keys, not a {type(values).__name__}")
    return values


def to_yaml(config: BaseModel) -> str:
    """Format a configuration as YAML."""
    return dump_yaml(to_dict(config))


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2, in which 16:32, on and off are text and 1e-4 is a number (PyYAML reads YAML 1.1)."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back unchanged."""


_CORE_SCHEMA = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
"""Plain scalars by type and their first characters (YAML 1.2, section 10.3.2), and the merge key of YAML 1.1."""
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, (_pattern, _first) in _CORE_SCHEMA.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def load_yaml(text: str) -> Any:
    """Parse a YAML 1.2 document.

    Raises:
        yaml.YAMLError: if it is none.
    """
    return yaml.load(text, _Loader)


def dump_yaml(values: Any) -> str:
    """Format values as YAML; `load_yaml` returns them unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
