"""Command-line flags of a configuration model: one per field, named by its path."""

from __future__ import annotations

import difflib
import types
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from soflow.config import NAMED_SECTIONS
from soflow.config_base import ConfigError, Section
from soflow.objectives.registry import OBJECTIVES


@dataclass(frozen=True)
class Flag:
    """A field of the configuration as a flag."""

    path: str
    kind: str
    """Its values in words, e.g. "an integer" or "one of fp32, tf32, bf16"."""
    help: str
    default: Any
    many: bool = False
    """Takes any number of values."""
    is_bool: bool = False
    words: tuple[str, ...] = ()
    """Values that it takes beside true and false."""
    optional: bool = False
    """Takes none."""

    @property
    def name(self) -> str:
        """The flag as written on the command line."""
        return f"--{self.path.replace('_', '-')}"


def flags_of(model: type[Section], objective: str | None = None, prefix: str = "") -> dict[str, Flag]:
    """Return all flags of a model by path.

    Args:
        objective: name of the chosen objective, whose fields are the section `objective`.
    """
    flags: dict[str, Flag] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Section):
            section = type(default)
            if name == "objective" and objective:
                with suppress(KeyError, ConfigError):  # validation says why
                    section = OBJECTIVES[objective].config
            flags |= flags_of(section, objective, f"{prefix}{name}.")
        else:
            flags[prefix + name] = _flag(prefix + name, field, default)
    return flags


def _flag(path: str, field: FieldInfo, default: Any) -> Flag:
    annotation, optional = _without_none(field.annotation)
    many = get_origin(annotation) is tuple
    element = _without_none(get_args(annotation)[0])[0] if many else annotation
    is_bool = annotation is bool
    words = _words(field.annotation) if is_bool else ()
    kind = f"one of true, false, {', '.join(words)}" if words else _kind(element)
    return Flag(path, kind, field.description or "", default, many, is_bool, words, optional)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Strip Annotated and None from an annotation; also return whether None was allowed."""
    if hasattr(annotation, "__metadata__"):
        return _without_none(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _without_none(options[0])[0], len(options) < len(get_args(annotation))
    return annotation, False


def _words(annotation: Any) -> tuple[str, ...]:
    """Return the literal values among the types of a union."""
    literals = [option for option in get_args(annotation) if get_origin(option) is Literal]
    return tuple(word for literal in literals for word in get_args(literal))


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    return names.get(annotation, "a path" if getattr(annotation, "__name__", "") == "Path" else "a text")


def suggestion(unknown: str, flags: dict[str, Flag], objective: str | None) -> str:
    """Return the rest of an error message that suggests the flag that was meant."""
    section, _, leaf = unknown.rpartition(".")
    others = [
        name
        for name, spec in OBJECTIVES.included.items()
        if section == "objective" and leaf in spec.config.model_fields
    ]
    if others:
        return f" for objective {objective or 'soflow'}; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    same_leaf = [path for path in flags if path.rsplit(".", 1)[-1] == leaf]
    close = same_leaf or difflib.get_close_matches(unknown, [*flags, *NAMED_SECTIONS, "config", "help"], n=1)
    if not close:
        leaves = {path.rsplit(".", 1)[-1]: path for path in flags}
        close = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)]
    options = " or ".join(f"--{path.replace('_', '-')}" for path in close[:3])
    return f"; did you mean {options}?" if options else "; --help all lists all flags"
