"""Base class and field types shared by every section of the configuration."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
GapRatio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PrecisionName = Literal["fp32", "tf32", "bf16"]
InputPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""Path of a file or folder to read, made absolute because workers run in another working directory."""


def _output(path: Path) -> Path:
    folder = path
    try:
        is_folder = path.is_dir()
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot be written: {folder}: {error.strerror}") from None
    if is_folder:
        raise ValueError("is a folder; give the name of a file in it")
    return path


OutputPath = Annotated[Path, AfterValidator(_output)]
"""File to write; checked before a long computation. Its folder is created."""


def _checkpoint(path: Path) -> Path:
    if not path.exists():
        raise ValueError("there is no such file or folder; give a checkpoint-*.pt, or a run's or trial's folder")
    return path


CheckpointPath = Annotated[Path, AfterValidator(_checkpoint)]
"""Checkpoint, or folder of a run or trial with checkpoints, that exists."""


class ConfigError(ValueError):
    """Invalid configuration; the message names the field, its value and the allowed values."""


class Section(BaseModel):
    """Group of configuration fields: immutable, without unknown keys, with attribute docstrings as help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


PASSWORD = r"://[^:/@\[\s]*:(?!\d{1,5}[/?#])[^\s/]\S*@"
"""User and password of a URL. A database's password may contain / and @; a number before / is a port."""
SECRETS = r"([?&][\w.-]*(?:password|passwd|pwd|token|secret|sig|key)=)[^&\s]*"
"""Options of a URL with a secret value, e.g. of a store."""


def has_password(url: str) -> bool:
    """Check whether a URL contains a password or token."""
    return bool(re.search(PASSWORD, url) or re.search(SECRETS, url, re.IGNORECASE))


def without_password(text: str) -> str:
    """Replace the user and password, and tokens, of URLs in a text by ***."""
    text = re.sub(PASSWORD, "://***@", text)
    text = re.sub(r"//[^/@\s]+@", "//***@", text)  # a user alone
    return re.sub(SECRETS, r"\1***", text, flags=re.IGNORECASE)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def in_one_line(message: str) -> WrapValidator:
    """Make a validator that answers with one message where a union of types would with one for each type."""

    def check(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(message) from None

    return WrapValidator(check)


def one_of(names: Collection[str]):
    """Make a field validator that accepts the keys of a registry."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(sorted(names))}")
        return value

    return check
