"""Protocols by which FIDs were measured; only FIDs of the same protocol are compared."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from dashboards.labels import plural, thousands
from dashboards.reading.sweep_data import SweepData
from orchestration.tracking.schema import FID_PROTOCOL, NFE

BEFORE_LABELS = {"fid_labels": "balanced"}
"""Protocol of runs recorded before the distribution of labels could be chosen."""
LABELS = {"data": " in the data's proportions", "random": " of random classes"}
"""How classes other than balanced ones are called."""
COUNTED = re.compile(r"(class_consistency|precision|recall|coverage)(_\d+nfe)?")
"""Metrics that are fractions of images."""
STORED = 10_000
"""Maximum number of images that precision and recall use."""


@dataclass(frozen=True)
class Protocol:
    """A way of measuring FID, with the trials that were measured by it."""

    letter: str
    tags: dict[str, str]
    trials: list[int]

    def __str__(self) -> str:
        tags = {name.removeprefix("fid_"): value for name, value in self.tags.items()}
        network = f"{tags.get('feature_network', 'unnamed')} features"
        if weights := tags.get("feature_weights_sha256"):
            network += f" (weights {weights})"
        samples = f"{thousands(tags.get('num_samples', '?'))} samples{LABELS.get(tags.get('labels', ''), '')}"
        samples += f" by the protocol of {tags['protocol']}" if "protocol" in tags else ""
        references = f"{thousands(tags['num_references'])} real images" if "num_references" in tags else "the reference"
        nfe = f" at {tags[NFE].replace(',', ', ')} NFE" if NFE in tags else ""
        source = ", ".join(tags[name] for name in ("reference", "reference_fingerprint") if name in tags)
        return f"{network}, {samples}{nfe}, against {references}" + (f" ({source})" if source else "")

    def resolution(self, metric: str) -> float:
        """Return the spacing of a metric's possible values: 1 / N for a fraction of N images, else 0."""
        match = COUNTED.fullmatch(metric)
        images = int(
            self.tags.get("fid_num_references" if metric.startswith(("recall", "coverage")) else "fid_num_samples", 0)
        )
        if not match or not images:
            return 0.0
        return 1 / (images if match[1] == "class_consistency" else min(images, STORED))

    @property
    def first_nfe(self) -> str:
        """NFE of the metric `fid`; empty if unknown."""
        return self.tags.get(NFE, "").partition(",")[0]


def is_quality(metric: str) -> bool:
    """Check whether a metric depends on the protocol."""
    depends = "fid|kid|cmmd|class_consistency|precision|recall|density|coverage|inception_score"
    return re.match(f"({depends}|diagnostics/(fid_by_nfe|inference_guidance)/)", metric) is not None


def find_protocols(data: SweepData) -> list[Protocol]:
    """Group the trials that reported quality by protocol."""
    groups: dict[tuple, list[int]] = {}
    for number, run in data.runs.items():
        if any(is_quality(metric) for metric in run.data.metrics):
            logged = BEFORE_LABELS | run.data.tags
            tags = tuple((name, logged[name]) for name in FID_PROTOCOL if name in logged)
            groups.setdefault(tags, []).append(number)
    letters = [*string.ascii_uppercase, *(f"A{number}" for number in range(len(groups)))]
    return [
        Protocol(letter, dict(tags), trials) for letter, (tags, trials) in zip(letters, groups.items(), strict=False)
    ]


def not_comparable(protocols: list[Protocol], consequence: str = "Trials are not ranked") -> str:
    """Explain why values of several protocols are not compared."""
    listed = "; ".join(
        f"{protocol.letter}: {protocol}, {plural(len(protocol.trials), 'trial')}" for protocol in protocols
    )
    return (
        f"{consequence}: their FIDs were measured by {len(protocols)} different protocols and must not be compared "
        f"({listed}). Evaluate all trials by one protocol, or run one sweep per protocol."
    )
