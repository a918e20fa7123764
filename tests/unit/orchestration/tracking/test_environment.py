"""What is recorded of the machine and of the code."""

from __future__ import annotations

import socket
import subprocess

from orchestration.tracking.environment import environment_tags, git_commit


def test_environment_tags(tmp_path):
    tags = environment_tags()
    assert tags["version.python"].startswith("3.")
    assert all(tags[f"version.{name}"][0].isdigit() for name in ("torch", "ray", "mlflow", "optuna"))
    assert float(tags["hardware.memory_gib"]) > 0
    assert socket.gethostname() not in " ".join(tags.values())


def test_git_commit(tmp_path):
    assert git_commit(tmp_path) == "unknown"
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "file").touch()
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "m"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("changed")
    assert git_commit(tmp_path) == f"{commit}-dirty"
