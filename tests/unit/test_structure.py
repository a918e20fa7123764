"""Package structure: no import circles, the science needs no orchestration, every registered name resolves."""

from __future__ import annotations

import graphlib
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from helpers import REPOSITORY

from soflow.data.base import DataSource
from soflow.data.registry import SOURCES
from soflow.diagnostics.registry import DIAGNOSTICS
from soflow.evaluation.registry import FEATURE_NETWORKS
from soflow.networks.registry import NETWORKS
from soflow.objectives.base import Objective
from soflow.objectives.registry import OBJECTIVES

PACKAGES = ("soflow", "orchestration", "dashboards", "experiments")
REGISTERED = {
    "soflow.data.registry": {info.implementation.split(":")[0] for info in SOURCES.values()},
    "soflow.networks.registry": {spec.implementation.split(":")[0] for spec in NETWORKS.values()},
    "soflow.objectives.registry": {spec.implementation.split(":")[0] for spec in OBJECTIVES.values()},
    "soflow.diagnostics.registry": {reference.split(":")[0] for reference in DIAGNOSTICS.values()},
}
"""Modules that registries name in strings and import when they are used."""


def test_no_module_imports_itself_also_not_through_a_registry():
    """Arrows between packages are checked by import-linter (pyproject.toml); this is about circles between modules."""
    graph = grimp.build_graph(*PACKAGES)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    for registry, named in REGISTERED.items():
        assert named <= graph.modules
        imports[registry] = imports[registry] | named
    try:
        order = tuple(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
    assert len(order) == len(imports) > 150


def modules(package: str) -> list[str]:
    paths = (path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / package).rglob("*.py")))
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]


IMPORT_ALL = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
for name in {names}:
    importlib.import_module(name)
"""


def import_all(names: list[str], blocked: set[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(blocked=blocked, names=names)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow  # another process imports everything
def test_the_science_works_without_orchestration():
    names = modules("soflow")
    assert {"soflow", "soflow.training.trainer", "soflow.evaluation.fidelity", "soflow.networks.dit"} <= set(names)
    result = import_all(names, {"ray", "mlflow", "optuna", "orchestration"})
    assert result.returncode == 0, result.stderr


def test_the_block_blocks():
    result = import_all(["soflow.config", "orchestration.sweep.ray_search"], {"ray", "optuna"})
    assert result.returncode != 0
    assert "is blocked" in result.stderr


def resolve(path: str):
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def test_every_objective_has_a_class_and_a_configuration():
    for name, spec in OBJECTIVES.items():
        objective = resolve(spec.implementation)
        assert issubclass(objective, Objective)
        assert not inspect.isabstract(objective)
        assert spec.config().name == name
        objective(spec.config(), 10, True)


def test_every_data_source_opens_through_its_module_and_names_known_features():
    for info in SOURCES.values():
        open_source = resolve(info.implementation)
        assert list(inspect.signature(open_source).parameters) == ["root", "image_size", "download"]
        assert info.feature_network in FEATURE_NETWORKS
    assert {name for name in vars(DataSource) if not name.startswith("_")} == {"batch"}


def test_every_network_builds_through_its_module():
    for name, spec in NETWORKS.items():
        build = resolve(spec.implementation)
        arguments = {"image_size": 4 * spec.side_multiple, "channels": 1, "num_classes": 10, **spec.size}
        inspect.signature(build).bind(**arguments)
        assert spec.side_multiple >= 1, name


def test_every_file_of_a_registry_is_registered():
    """A forgotten entry would leave an objective or a data source that nobody can choose."""
    helpers = {
        "base",
        "config",
        "registry",
        "in_memory",
        "augmentation",
        "decoding",
        "loading",
        "manifest",
        "weighting",
        "attention",
        "reference",
    }
    for registry, registered in REGISTERED.items():
        package = registry.removesuffix(".registry")
        files = {path.stem for path in Path(REPOSITORY, *package.split(".")).glob("[!_]*.py")} - helpers
        assert {f"{package}.{name}" for name in files} == registered
