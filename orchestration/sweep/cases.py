"""Cases: named configurations that a sweep compares instead of searching."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import Field

from soflow.config_base import Section

_SEPARATOR = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)(?![^\[(]*[\])])""")
"""Commas outside quotes and brackets."""


class Case(Section):
    """A named set of changes to the sweep's configuration.

    Attributes:
        changes: new values by dotted path. Another objective.name starts from the defaults of that objective.
    """

    name: str
    changes: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        changes = ", ".join(f"{path} = {value}" for path, value in self.changes.items())
        return f"{self.name}: {changes}" if changes else self.name


def parse_case(text: str) -> Case:
    """Parse NAME or NAME:PATH=VALUE,PATH=VALUE, as written on the command line.

    A value is a number, true, false, null, a [list] or a string; quotes keep commas inside a string.

    Raises:
        ValueError: if the text has another form.
    """
    name, _, assignments = text.partition(":")
    if not name.strip():
        raise ValueError(f"{text} must begin with a name")
    changes = {}
    for assignment in filter(str.strip, _SEPARATOR.split(assignments)):
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"{text} must read NAME or NAME:PATH=VALUE,PATH=VALUE")
        changes[path.strip()] = parse_value(value.strip())
    return Case(name=name.strip(), changes=changes)


def parse_value(text: str) -> Any:
    """Parse a number, true, false, null, a [list] or a quoted string; anything else is a string as it stands."""
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    if text in ("true", "false", "True", "False", "null", "None"):
        return {"true": True, "false": False}.get(text.lower())
    if text[:1] in ("[", '"', "'"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    if text.startswith("(") and text.endswith(")"):
        return parse_value(f"[{text[1:-1]}]")
    return text


def read_cases(cases: Any) -> Any:
    """Convert the forms that YAML files and command lines use to a list of cases.

    Forms: a mapping of names to changes; a list of texts, of `Case` objects or of their dictionaries.

    Raises:
        ValueError: if a name is not a string, or a text has another form.
    """
    if isinstance(cases, dict):
        for name in cases:
            if not isinstance(name, str):
                raise ValueError(f"the name {name} must be a string; put it in quotes")
        return tuple({"name": name, "changes": changes or {}} for name, changes in cases.items())
    if isinstance(cases, (list, tuple)):
        return tuple(parse_case(case) if isinstance(case, str) else case for case in cases)
    return cases
