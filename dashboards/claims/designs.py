"""Designs as they were before the first look: what changes after it is told, as error rates then do not hold."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dashboards.claims.ledger import Ledger, Study
from soflow.files import write_atomic

FILE = "claims-designs.json"


def changed_designs(ledger: Ledger, looked_at: Collection[str], folder: Path) -> list[str]:
    """Compare the studies that were looked at with their designs before; keep those of studies that were not.

    Args:
        looked_at: experiments with results.
        folder: where designs are kept, in FILE.

    Returns:
        A sentence per study whose design is another one now.
    """
    path, now = folder / FILE, {study.experiment: _design_of(study) for study in ledger.studies}
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = now | {name: design for name, design in before.items() if name in looked_at}
    if kept != before:
        write_atomic(path, json.dumps(kept, indent=1))
    changed = {name: [key for key in now[name] if kept[name].get(key) != now[name][key]] for name in now}
    return [
        f"{name}: {' and '.join(keys)} changed after a look at its results; its error rate is not the stated one."
        for name, keys in changed.items()
        if keys
    ]


def _design_of(study: Study) -> dict[str, Any]:
    """Return what may not change: the design, and the tests with their smallest effects."""
    design = study.model_dump(mode="json", include={"looks", "smallest_effect", "family_error", "power", "spending"})
    return design | {"claims": [[claim.test, study.smallest_of(claim)] for claim in study.claims]}
