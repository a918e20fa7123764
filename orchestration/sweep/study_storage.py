"""Where a sweep's Optuna study is stored: a journal in its folder, or a database."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from orchestration.storage import STUDY_FILE
from orchestration.sweep.config import SweepConfig
from soflow.config_base import ConfigError, without_password
from soflow.files import patiently


def study_name(config: SweepConfig, folder: Path) -> str:
    """Return the name of a sweep's study: the sweep's name, or what the journal in its folder says."""
    if config.study_storage is None and (folder / STUDY_FILE).exists():
        return first_study(open_storage(None, folder)) or folder.name
    return folder.name


def first_study(journal: BaseStorage) -> str | None:
    """Return the name of the first study in a journal, which was the sweep's name then."""
    return next((study.study_name for study in journal.get_all_studies()), None)


class _Journal(JournalFileBackend):
    """Journal that waits while its disk is full or away, and leaves no half line before the next one."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        size = path.stat().st_size

        def append() -> None:
            try:
                super(_Journal, self).append_logs(logs)
            except OSError:
                with suppress(OSError):
                    os.truncate(path, size)
                raise

        patiently(append, path, say=lambda text: print(text, flush=True))


def open_journal(path: Path) -> JournalStorage:
    return JournalStorage(_Journal(str(path)))


def repair_journal(path: Path) -> None:
    """Remove the lock and the incomplete last line that a process killed while writing may have left.

    Only for the sweep's process, which is the only writer.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@functools.cache
def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage of a sweep's study, once per process because reading a long journal takes seconds.

    Raises:
        ConfigError: if the database cannot be opened.
    """
    if url is None:
        return open_journal(folder / STUDY_FILE)
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's and each driver's errors
        reason = without_password(str(error).splitlines()[0])
        raise ConfigError(f"study_storage = {url}: cannot be opened ({reason})") from None


def load_study(config: SweepConfig, folder: Path) -> optuna.Study:
    """Open the study of an existing sweep for reading."""
    return optuna.load_study(study_name=study_name(config, folder), storage=open_storage(config.study_storage, folder))
