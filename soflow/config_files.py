"""Read and write configurations as YAML files, including those of the SoFlow authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from soflow.config import to_dict
from soflow.config_base import ConfigError
from soflow.interop import authors_config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; translate it if it is a configuration of the SoFlow authors.

    Raises:
        ConfigError: if the file cannot be read, does not contain a mapping or cannot be translated.
    """
    values = _mapping(path)
    return authors_config.translate(values, path) if authors_config.is_authors(values) else values


def unused_keys(path: str | Path) -> dict[str, str]:
    """Return the ignored keys of a SoFlow authors' file, each with the reason; empty for other files.

    Raises:
        ConfigError: if the file cannot be read or does not contain a mapping.
    """
    values = _mapping(path)
    return authors_config.ignored(values) if authors_config.is_authors(values) else {}


def _mapping(path: str | Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of configuration keys, not a {type(values).__name__}")
    return values


def to_yaml(config: BaseModel) -> str:
    """Format a configuration as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
