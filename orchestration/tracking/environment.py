"""Tags of a run's code version, libraries and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path


def environment_tags() -> dict[str, str]:
    """Return the tags of a run's code version, libraries and hardware, without the host name."""
    versions = {f"version.{name}": _version(name) for name in ("torch", "ray", "mlflow", "optuna")}
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "mlflow.source.name": Path(sys.argv[0]).name,  # without the arguments, which may contain a password
        "mlflow.source.type": "LOCAL",
        "git_commit": git_commit(Path(__file__).parent),
        "version.python": platform.python_version(),
        **versions,
        "hardware.cpu": _cpu_model(),
        "hardware.cpu_cores": str(os.cpu_count()),
        "hardware.memory_gib": f"{memory_bytes / 2**30:.1f}",
    }


def git_commit(folder: Path) -> str:
    """Return the commit of a folder's repository, with "-dirty" if tracked files changed; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()
