"""The ledger of claims: every claim with its source, its test, and the design of the study that tests it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from dashboards.comparison.exponents import PREDICTED
from orchestration.sweep.hypotheses import read_hypothesis
from soflow.config import describe
from soflow.config_base import ConfigError, Section
from soflow.config_files import load_yaml
from soflow.sequential import Spending
from soflow.statistics import FEWEST_SEEDS, LEVEL, POWER, ROUNDING

_EXPONENT = re.compile(rf"k = {PREDICTED:g}: (.+) \((.+)\)")
EffectRatio = Annotated[float, Field(gt=1)]


class Published(Section):
    """A published pair of values of a claim's two sides."""

    left: float
    right: float
    where: str

    def __str__(self) -> str:
        return f"{self.left:g} against {self.right:g} ({self.where})"


class Claim(Section):
    """A sentence with its source and its test."""

    claim: str
    source: str
    test: str
    """METRIC(CASE) < …, or "k = 0.5: RELATION (CASE)" for an exponent."""
    published: tuple[Published, ...] = ()
    scale: str = ""
    """Why the verdict may be another one at the published scale; empty if nothing suggests that."""
    smallest_effect: EffectRatio | None = None
    """Default: the study's."""

    @field_validator("test")
    @classmethod
    def _reads(cls, test: str) -> str:
        if not _EXPONENT.fullmatch(test):
            read_hypothesis(test)
        return test

    @property
    def exponent(self) -> tuple[str, str] | None:
        """The relation's name and the case whose exponent is tested; None for a ratio."""
        match = _EXPONENT.fullmatch(self.test)
        return (match[1], match[2]) if match else None


class Study(Section):
    """An experiment with its claims and the design that was stated before the run."""

    experiment: str
    question: str
    """What its claims together answer."""
    looks: tuple[Annotated[int, Field(ge=FEWEST_SEEDS)], ...]
    """Number of seeds at each look at the results; no seed is added after the last."""
    smallest_effect: EffectRatio
    """Ratio above 1 that is worth finding. Two cases whose ratio is nearer to 1 count as equivalent."""
    family_error: Annotated[float, Field(gt=0, le=LEVEL)]
    """Probability of at least one wrong verdict on the study's claims, at most; each has an equal part of it."""
    power: Annotated[float, Field(ge=0.5, lt=1)] = POWER
    """Probability with which all planned seeds find the ratio that the page calls detectable."""
    spending: Spending = "pocock"
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @field_validator("looks")
    @classmethod
    def _grow(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if not looks or any(later <= earlier for earlier, later in itertools.pairwise(looks)):
            raise ValueError("must be growing numbers of seeds")
        return looks

    @property
    def level(self) -> float:
        """Share of the error rate of each claim."""
        return self.family_error / len(self.claims)

    def smallest_of(self, claim: Claim) -> float:
        return claim.smallest_effect or self.smallest_effect


class Ledger(Section):
    studies: tuple[Study, ...]

    @field_validator("studies")
    @classmethod
    def _differ(cls, studies: tuple[Study, ...]) -> tuple[Study, ...]:
        names = [study.experiment for study in studies]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"must have one study of {repeated[0]}")
        if (total := sum(study.family_error for study in studies)) > LEVEL + ROUNDING:
            raise ValueError(f"must have family_error of at most {LEVEL:g} together, not {total:g}")
        return studies

    def only(self, experiments: tuple[str, ...]) -> Ledger:
        """Return the ledger of some experiments; of all if none is named.

        Raises:
            ConfigError: if an experiment has no study.
        """
        known = [study.experiment for study in self.studies]
        if unknown := [name for name in experiments if name not in known]:
            raise ConfigError(f"experiments = {unknown[0]}: must be among {', '.join(known)}")
        return Ledger(studies=tuple(study for study in self.studies if study.experiment in (experiments or known)))


def read_ledger(path: Path) -> Ledger:
    """Read a ledger from YAML, a list of studies.

    Raises:
        ConfigError: naming the file and the field.
    """
    try:
        studies: Any = load_yaml(path.read_text())
        return Ledger.model_validate({"studies": studies})
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, Ledger)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from None
