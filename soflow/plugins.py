"""Registries that other packages extend without a change in this one.

A registry knows three kinds of names: short names of what is included here, entry points of installed packages in the
group "soflow.<kind>", and references, "package.module:Name". The last two are imported when they are first looked up.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from soflow.config_base import ConfigError

Entry = TypeVar("Entry")

_roots: dict[str, Path] = {}
"""Folder or file of the top-level package or module of each reference that was loaded from outside this package."""


class PluginError(ConfigError):
    """Reference that cannot be imported, or names something unsuitable; the message says why, without the reference."""


class Registry(Mapping[str, Entry]):
    """Entries by name.

    Args:
        kind: plural noun; "soflow.<kind>" is the group of its entry points.
        included: entries of this package.
        make_entry: function (reference, imported object) → entry of a plug-in.

    Raises:
        PluginError: from a lookup, `in` included, of a plug-in that cannot be used.
    """

    def __init__(self, kind: str, included: Mapping[str, Entry], make_entry: Callable[[str, Any], Entry]):
        self.kind, self.included, self._make_entry = kind, included, make_entry
        self._plugins: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        if name in self.included:
            return self.included[name]
        if name not in self._plugins:
            reference = name if ":" in name else self._entry_points[name]
            self._plugins[name] = self._make_entry(reference, load(reference))
        return self._plugins[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.included, *(name for name in self._entry_points if name not in self.included)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    @functools.cached_property
    def _entry_points(self) -> dict[str, str]:
        return {point.name: point.value for point in importlib.metadata.entry_points(group=f"soflow.{self.kind}")}


def load(reference: str) -> Any:
    """Import what a reference "package.module:Name" names, also from the current working directory.

    Raises:
        PluginError: if it cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    top = module_name.partition(".")[0]
    if top != __package__ and os.getcwd() not in sys.path:  # a program in experiments/ has that folder on it instead
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise PluginError(f"importing {module_name} failed ({error})") from error
        raise PluginError(
            f"there is no module {error.name}; start the program in the folder that contains it, or add that folder "
            "to PYTHONPATH (a run's folder has a copy of its plug-ins in code/)"
        ) from None
    except Exception as error:  # whatever the module's code raises
        raise PluginError(f"importing {module_name} failed ({type(error).__name__}: {error})") from error
    try:
        loaded = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        close = difflib.get_close_matches(name, vars(module), n=1)
        raise PluginError(f"{module_name} has no {name}{f'; did you mean {close[0]}?' if close else ''}") from None
    if top != __package__ and (root := _root(sys.modules[top])):
        _roots[reference] = root
    return loaded


def loaded_roots() -> list[Path]:
    """Return folder or file of each top-level package or module that this process loaded plug-ins from."""
    return list(dict.fromkeys(_roots.values()))


def save_plugins(references: Iterable[str], folder: Path) -> None:
    """Copy the Python files of plug-ins into a folder, from which PYTHONPATH loads them again; skip other names."""
    for root in dict.fromkeys(_roots[reference] for reference in references if reference in _roots):
        folder.mkdir(parents=True, exist_ok=True)
        if root.is_dir():
            shutil.copytree(root, folder / root.name, ignore=_other_files, dirs_exist_ok=True)
        else:
            shutil.copy(root, folder)


def _other_files(folder: str, names: list[str]) -> set[str]:
    """Choose what is no Python file and no folder with one."""
    hidden = {name for name in names if name.startswith((".", "__pycache__"))}
    return hidden | {name for name in names if not name.endswith(".py") and not (Path(folder) / name).is_dir()}


def _root(module: ModuleType) -> Path | None:
    """Return the folder of a package or the file of a module; None for an installed one, or a notebook's."""
    if hasattr(module, "__path__"):
        root = Path(next(iter(module.__path__)))
    elif file := getattr(module, "__file__", None):
        root = Path(file)
    else:
        return None
    return None if "site-packages" in root.parts else root


def label(name: str) -> str:
    """Return the short form of a name for metrics and titles: what follows the colon of a reference."""
    return name.rpartition(":")[2]
