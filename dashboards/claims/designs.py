"""Designs as stated before the first results, and a warning if one was changed afterwards."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dashboards.claims.ledger import Ledger, Study
from soflow.files import write_atomic

FILE = "claims-designs.json"


def changed_designs(ledger: Ledger, looked_at: Collection[str], folder: Path) -> list[str]:
    """Compare the designs of studies that have results with those stated before; save the designs of the others.

    The design of a study that has results but no saved design is taken to be the one stated before.

    Args:
        looked_at: experiments with results.
        folder: where FILE is.

    Returns:
        A sentence per study whose design was changed.
    """
    path, now = folder / FILE, {study.experiment: _design_of(study) for study in ledger.studies}
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = now | {name: design for name, design in before.items() if name in looked_at}
    if kept != before:
        write_atomic(path, json.dumps(kept, indent=1))
    changed = {name: [key for key in now[name] if kept[name].get(key) != now[name][key]] for name in now}
    return [
        f"{name}: {' and '.join(keys)} changed after a look at its results; its stated error rate does not hold."
        for name, keys in changed.items()
        if keys
    ]


def _design_of(study: Study) -> dict[str, Any]:
    """Return what verdicts depend on: the design, and the tests with smallest effects of their own."""
    design = study.model_dump(mode="json", include={"looks", "smallest_effect", "family_error", "spending"})
    return design | {"claims": [[claim.test, claim.smallest_effect] for claim in study.claims]}
