"""Cases: named configurations that a sweep compares instead of searching."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from pydantic import Field, field_validator

from soflow.config import flatten
from soflow.config_base import Section
from soflow.config_files import load_yaml

_PART = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\[[^\]]*\]|\([^)]*\)|[^,])*""")
"""Text up to the next comma outside quotes and brackets."""


class Case(Section):
    """A named set of changes to the sweep's configuration.

    Attributes:
        changes: new values by dotted path. Another objective.name starts from the defaults of that objective.
    """

    name: str
    changes: dict[str, Any] = Field(default_factory=dict)

    @field_validator("changes", mode="before")
    @classmethod
    def _as_paths(cls, changes: Any) -> Any:
        """Accept nested mappings, as YAML files may have them."""
        return flatten(changes) if isinstance(changes, dict) else changes or {}

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
    for assignment in filter(str.strip, split_values(assignments)):
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"{text} must read NAME or NAME:PATH=VALUE,PATH=VALUE")
        changes[path.strip()] = parse_value(value.strip())
    return Case(name=name.strip(), changes=changes)


def planned_trials(names: Sequence[str], num_seeds: int, additions: Iterable[str]) -> list[tuple[str, int]]:
    """List the trials of a comparison, each a case's name and the index of its seed, in the order in which they run.

    Seed by seed, so that an interrupted comparison has complete pairs, then addition by addition, so that what was
    planned before keeps its place.

    Args:
        names: of all cases.
        additions: each SEEDS or SEEDS:CASE,CASE with the new number of seeds of these cases, by default of all.

    Raises:
        ValueError: if an addition has another form, names a case that there is not, or adds no seed.
    """
    trials = [(name, seed) for seed in range(num_seeds) for name in names]
    counts = dict.fromkeys(names, num_seeds)
    for text in additions:
        total, _, listed = text.partition(":")
        extended = [str(parse_value(name.strip())) for name in split_values(listed)] if listed else list(names)
        if not total.strip().isdecimal():
            raise ValueError(f"more_seeds = {text}: must read SEEDS or SEEDS:CASE,CASE")
        if unknown := [name for name in extended if name not in counts]:
            raise ValueError(f"more_seeds = {text}: {unknown[0]} must be a case: {', '.join(names) or 'none'}")
        least = min((counts[name] for name in extended), default=num_seeds)
        if int(total) <= least:
            raise ValueError(f"more_seeds = {text}: must be more than the {least} seeds before")
        for seed in range(least, int(total)):
            trials += [(name, seed) for name in dict.fromkeys(extended) if counts[name] <= seed]
        counts |= {name: max(counts[name], int(total)) for name in extended}
    return trials


def split_values(text: str) -> list[str]:
    """Split at commas outside quotes and brackets."""
    parts, end = [], -1
    while end < len(text):
        match = _PART.match(text, end + 1)
        assert match is not None  # it matches the empty text as well
        parts.append(match[0])
        end = match.end()
    return parts


def value_text(value: Any) -> str:
    """Return a text that `parse_value` turns into this value, also between commas."""
    if value is None or isinstance(value, (bool, list)):
        return json.dumps(value)
    text = str(value)
    changed = parse_value(text) != text or split_values(text) != [text] or text != text.strip()
    # A quote or bracket would also protect a comma after it.
    if isinstance(value, str) and (changed or re.search(r"""["'()\[\]]""", text)):
        return json.dumps(text, ensure_ascii=False)
    return text


def parse_value(text: str) -> Any:
    """Parse a number, true, false, null, a [list] or a quoted string; anything else is a string as it stands."""
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    if text in ("true", "false", "True", "False", "null", "None"):
        return {"true": True, "false": False}.get(text.lower())
    if text[:1] in ("[", '"', "'"):
        try:
            return load_yaml(text)
        except yaml.YAMLError:
            return text
    if text.startswith("(") and text.endswith(")"):
        return parse_value(f"[{text[1:-1]}]")
    return text


def read_cases(cases: Any) -> Any:
    """Convert the forms that YAML files and command lines use to a list of cases.

    Forms: a mapping of names to changes; a list of texts, such mappings, `Case` objects or their dictionaries.

    Raises:
        ValueError: if a name is not a string, or a text has another form.
    """
    if isinstance(cases, dict):
        cases = [cases]
    if not isinstance(cases, (list, tuple)):
        return cases
    found: list[Any] = []
    for case in cases:
        if isinstance(case, str):
            found.append(parse_case(case))
        elif isinstance(case, dict) and not (isinstance(case.get("name"), str) and set(case) <= {"name", "changes"}):
            found += [_named(name, changes) for name, changes in case.items()]
        else:
            found.append(case)
    return tuple(found)


def _named(name: Any, changes: Any) -> dict[str, Any]:
    if not isinstance(name, str):
        raise ValueError(f"the name {name} must be a string; put it in quotes")
    if not isinstance(changes, (dict, type(None))):
        raise ValueError(f"{name}: {changes} must be a mapping of paths to values")
    return {"name": name, "changes": changes or {}}
