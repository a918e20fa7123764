"""Measure a checkpoint again: more samples, other NFE, another feature network or reference.

$ python experiments/evaluate.py results/NAME/trials/0003 --num-samples 50000
$ python experiments/evaluate.py results/NAME --best --nfe 1 2 4 --precision-recall --out measured.json
$ python experiments/evaluate.py results/NAME --also-protocol adm --also-reference FILE --also-reference-sha256 SHA256
$ python experiments/evaluate.py checkpoint-00001200.pt --feature-network inception --reference cifar10.npz

Settings that are not given are the run's; without any, the figures are those of the checkpoint's report.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestration.config import Folder
from orchestration.store.runs import StoredCheckpoint
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.terminal.views import finite
from soflow.config_base import ConfigError, Count, Fraction, InputPath, OutputPath, Positive, Section
from soflow.data.base import DataError
from soflow.evaluation.config import Protocol, Sampler
from soflow.posthoc_ema import TRAINED

EVALUATION = (
    *("num_samples", "nfe", "sampler", "feature_network", "feature_weights", "reference", "labels", "batch_size"),
    *("precision_recall", "inception_score", "protocol", "reference_sha256"),
    *("times", "temperature", "guidance", "guidance_interval"),
)
"""Options that replace fields of the run's `evaluation`."""


SAMPLING = {"times", "temperature", "guidance", "guidance_interval"}
"""Fields of `evaluation` that change the images, besides NFE and sampler."""


class EvaluateOptions(Section):
    checkpoint: StoredCheckpoint
    """Checkpoint file, or folder of a run or trial."""
    best: bool = False
    """Of a folder, use the checkpoint with the lowest FID instead of the newest."""
    ema: str = TRAINED
    """Average of the weights: trained, or made from the run's snapshots with a relative length such as 0.1."""
    num_samples: Annotated[int, Field(ge=16)] | None = None
    """Number of generated samples per FID."""
    nfe: tuple[Count, ...] | None = None
    """NFE values to evaluate."""
    sampler: Sampler | None = None
    """Sampler for NFE above 1."""
    feature_network: str | None = None
    """digits-cnn, fashion-cnn, inception, dinov2, clip, or a file made by experiments/train_feature_network.py."""
    feature_weights: InputPath | None = None
    """File with the weights of dinov2 or clip, or of torch-fidelity's Inception where it cannot be downloaded."""
    reference: InputPath | None = None
    """File of reference statistics, used instead of the data's features. The data must be there all the same, for their
    classes; reproduce.py needs none."""
    reference_sha256: str | None = None
    """Beginning of that file's SHA-256; another file is refused."""
    protocol: Protocol | None = None
    """FID protocol: torch-fidelity, adm or jax; the last two need reference and reference_sha256."""
    also_protocol: Protocol | None = None
    """Further FID protocol for the same images; its figures are named fid@adm."""
    also_reference: InputPath | None = None
    """File of reference statistics of the further protocol."""
    also_reference_sha256: str | None = None
    """Beginning of that file's SHA-256."""
    labels: Literal["balanced", "data", "random"] | None = None
    """Classes of the samples: equally many of each, in the proportions of the data, or drawn at random."""
    times: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Times between the steps, decreasing."""
    temperature: Positive | None = None
    """Factor of the noise."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Strength of classifier-free guidance at sampling."""
    guidance_interval: tuple[Fraction, Fraction] | None = None
    """Least and greatest t of guided network evaluations."""
    batch_size: Count | None = None
    """Samples generated per batch; does not change them."""
    precision_recall: bool | None = None
    """Also compute precision, recall, density and coverage."""
    inception_score: bool | None = None
    """Also compute the Inception score."""
    seed: int | None = None
    """Seed of the noise."""
    root: InputPath | None = None
    """Folder of the dataset, if it was moved."""
    storage: Folder = Path("results")
    """Folder of runs, whose cached reference features are reused."""
    format: Literal["lines", "json"] = "lines"
    """Print a line per NFE, or one JSON object: metrics and the protocol that they follow."""
    out: OutputPath | None = None
    """JSON file to write, with the same content."""

    @model_validator(mode="after")
    def _further_reference_has_a_protocol(self) -> EvaluateOptions:
        if self.also_reference is not None and self.also_protocol is None:
            raise ValueError(f"also_reference = {self.also_reference}: needs also_protocol")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the given values by their path in the run's configuration."""
        values = self.model_dump(mode="json")
        paths = {name: f"evaluation.{name}" for name in EVALUATION} | {"seed": "seed", "root": "dataset.root"}
        return {path: values[name] for name, path in paths.items() if values[name] is not None}

    def further(self) -> dict[str, Any]:
        """Return the changes for the further protocol; empty without one.

        Metrics that need the features of the data, and the Inception score, are computed for the first protocol only.
        """
        if self.also_protocol is None:
            return {}
        values = self.model_dump(mode="json")
        names = ("protocol", "reference", "reference_sha256")
        paths = {f"evaluation.{name}": values[f"also_{name}"] for name in names}
        return paths | {"evaluation.precision_recall": False, "evaluation.inception_score": False}


def main() -> int:
    options = read_command_line(EvaluateOptions, __doc__, positional="checkpoint")
    from soflow.training.checkpoints import CheckpointError

    try:
        evaluate(options)
    except (CheckpointError, ConfigError, DataError) as error:
        fail(error)
    return 0


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Measure a checkpoint, print the metrics of each NFE and return them, named as in a run's reports.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        ConfigError, DataError: if the data, the feature network or the reference is unusable.
    """
    from rich.console import Console
    from rich.progress import track

    from soflow.config import override, parse, to_dict
    from soflow.evaluation.generated import evaluation_nfe, sampler_for
    from soflow.files import write_atomic
    from soflow.models import load_model

    model = load_model(options.checkpoint, options.best, ema=options.ema)
    config = parse(override(to_dict(model.config), options.changes()))
    cache = options.storage / "reference"
    evaluator, also = model.evaluator(config, cache), []
    if further := options.further():
        also.append(model.evaluator(parse(override(to_dict(config), further)), cache))
    num_batches = -(-config.evaluation.num_samples // config.evaluation.batch_size)
    lines = sys.stdout if options.format == "lines" else sys.stderr
    samples = f"{config.evaluation.num_samples} samples, features of {config.feature_network}"
    print(f"{model.path}: {samples}", file=lines, flush=True)

    def shown(batches, description):
        return track(batches, description, num_batches, transient=True, console=Console(stderr=True))

    metrics: dict[str, float] = {}
    for nfe, sampler, measured in model.measure(config, evaluator, shown, also):
        listed = ", ".join(f"{name} {value:.6g}" for name, value in measured.items())
        print(f"{nfe} NFE ({sampler}): {listed}", file=lines, flush=True)
        metrics |= measured
    metrics |= evaluator.floor()
    for other in also:
        name = other.config.protocol
        metrics[f"fid_difference@{name}"] = difference = metrics[f"fid@{name}"] - metrics["fid"]
        same = "same reference" if other.config.reference == config.evaluation.reference else "other reference"
        print(f"FID by {name} minus FID by {config.evaluation.protocol} ({same}): {difference:.6g}", file=lines)
    all_nfe = evaluation_nfe(config, model.objective)
    protocol: dict[str, Any] = evaluator.protocol() | {"nfe": list(all_nfe), "seed": config.seed}
    if also:
        protocol["others"] = {other.config.protocol: other.protocol() for other in also}
    sampling = config.evaluation.model_dump(mode="json", include=SAMPLING) | {"ema": options.ema}
    samplers = {nfe: sampler_for(config, model.objective, nfe) for nfe in all_nfe}
    content = {"checkpoint": str(model.path), "metrics": metrics, "protocol": protocol}
    content["sampling"] = sampling | {"samplers": samplers}
    text = json.dumps(finite(content), indent=2)
    if options.format == "json":
        print(text)
    if options.out is not None:
        write_atomic(options.out, text)
        print(f"written to {options.out}", file=lines)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
