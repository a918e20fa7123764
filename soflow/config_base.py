"""What every part of the configuration is made of: the base class, common ranges, registry look-ups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
GapRatio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
InputPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A file or folder to read, made absolute: workers have a working directory of their own."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, its value and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def one_of(names: dict[str, Any]):
    """A field validator that accepts the keys of a registry."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(sorted(names))}")
        return value

    return check
