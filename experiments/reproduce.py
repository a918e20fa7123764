"""Does a checkpoint reach its published FID? Sample 50,000 images, measure each NFE by each FID protocol, compare.

NAME is a preset of experiments/presets with a published figure. The checkpoint is a file of the SoFlow authors, or a
run or checkpoint of this project. Images are generated in groups whose moments are kept: the same command resumes. The
sampling error is that of FID over sets of as many images (delete-a-group jackknife).

$ python experiments/reproduce.py soflow-imagenet256-xl2 --checkpoint 1200000.pt --references VIRTUAL_imagenet256.npz
$ python experiments/reproduce.py soflow-cifar10 --checkpoint 800000.pt --references cifar10.npz --num-samples 10000
$ python experiments/reproduce.py soflow-imagenet256-b2 --checkpoint 400000.pt --protocols adm jax \\
      --references adm.npz jax.npz --reference-sha256 3f0c9d21 77ab01ce
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dashboards.comparison.published import FIDS
from experiments.launch import PRESETS
from orchestration.config import Folder
from orchestration.store.runs import StoredCheckpoint
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.terminal.format import plain_console
from soflow.config_base import ConfigError, Count, InputPath, Section, one_of
from soflow.evaluation.config import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from soflow.config import RunConfig
    from soflow.evaluation.groups import FidEstimate
    from soflow.models import Model

SETTINGS_FILE, TABLE_FILE = "reproduction.json", "table.md"


class ReproduceOptions(Section):
    run: Annotated[str, Field(validate_default=True)]
    """Preset with a published FID, e.g. soflow-imagenet256-xl2."""
    checkpoint: StoredCheckpoint
    """Checkpoint file of the SoFlow authors, or a run or checkpoint of this project."""
    references: tuple[InputPath, ...]
    """File of reference statistics of each protocol, in their order."""
    reference_sha256: tuple[str, ...] = ()
    """Beginning of the SHA-256 of each file; needed for adm and jax."""
    protocols: tuple[Protocol, ...] = ("torch-fidelity",)
    """FID protocols: torch-fidelity, adm, jax. All measure the same images."""
    nfe: tuple[Count, ...] | None = None
    """Numbers of function evaluations. Default: those with a published FID."""
    num_samples: Annotated[int, Field(ge=32)] = 50_000
    """Generated images per NFE."""
    num_groups: Annotated[int, Field(ge=4)] = 20
    """Groups of images for the sampling error; an interruption loses at most one."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes of the images: equally many of each, or drawn at random."""
    feature_network: str | None = None
    """Feature network. Default: the preset's, inception."""
    inception_weights: InputPath | None = None
    """File with torch-fidelity's Inception weights."""
    vae: str | None = None
    """Folder or hub id of the autoencoder of latents. Default: the preset's."""
    batch_size: Count | None = None
    """Images generated at a time. Default: the preset's."""
    seed: int = 0
    """Seed of the noise."""
    storage: Folder = Path("results")
    """Folder in which the reproduction's folder is made."""
    name: str | None = None
    """Name of that folder. Default: that of the preset, with -reproduced."""

    _run = field_validator("run")(one_of(FIDS))

    @model_validator(mode="after")
    def _references_belong_to_protocols(self) -> ReproduceOptions:
        if len(self.references) != len(self.protocols) or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(
                f"references: {len(self.references)} files for {len(self.protocols)} protocols, "
                f"{', '.join(self.protocols)}; give one for each, in their order"
            )
        if self.reference_sha256 and len(self.reference_sha256) != len(self.references):
            raise ValueError("reference_sha256: must be given for each of the references, or for none")
        return self

    @property
    def folder(self) -> Path:
        return self.storage / (self.name or f"{self.run}-reproduced")


def main() -> int:
    options = read_command_line(ReproduceOptions, __doc__, positional="run")
    from soflow.training.checkpoints import CheckpointError

    try:
        reproduce(options)
    except (CheckpointError, ConfigError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes")
        return 130
    return 0


def reproduce(options: ReproduceOptions) -> str:
    """Measure all NFE by all protocols, write the table, print it and return it.

    Raises:
        CheckpointError: if the checkpoint is unusable.
        ConfigError: if another input is unusable, or the folder belongs to another reproduction.
    """
    from soflow.evaluation import reference_files
    from soflow.evaluation.groups import estimate
    from soflow.files import write_atomic

    model = open_model(options)
    configs = [_config(options, model, number) for number in range(len(options.protocols))]
    references = [reference_files.read_configured(config) for config in configs]
    _note_settings(options, model)
    measured: dict[int, list[FidEstimate]] = {}
    for nfe in options.nfe or tuple(FIDS[options.run]):
        groups = _moments(options, model, configs, nfe)
        pairs = zip(groups, references, strict=True)
        measured[nfe] = [estimate(moments, reference) for moments, reference in pairs]
    table = _table(options, measured)
    write_atomic(options.folder / TABLE_FILE, table)
    print(table)
    print(f"table: {options.folder / TABLE_FILE}")
    return table


def open_model(options: ReproduceOptions) -> Model:
    """Load a checkpoint of this project, or import one of the authors with the preset's network.

    Raises:
        CheckpointError: naming the first weight that does not fit.
    """
    import torch

    from soflow.config import parse
    from soflow.config_files import read_yaml
    from soflow.interop import authors_checkpoint
    from soflow.models import Model, best_device, load_model
    from soflow.training import checkpoints
    from soflow.training.build import build_network, build_objective

    path = checkpoints.find(options.checkpoint)
    if "ema" in (stored := checkpoints.load(path)):
        return load_model(path)
    config = parse(read_yaml(PRESETS / f"{options.run}.yaml"))
    authors_checkpoint.check_network(config, path)
    classes = authors_checkpoint.NUM_CLASSES[config.dataset.name]
    with torch.device("meta"):
        shapes = build_network(config, classes)
    state = authors_checkpoint.import_state(authors_checkpoint.checked(stored, path), shapes, config, path)
    device, network = best_device(), build_network(config, classes)
    network.load_state_dict(state["ema"])
    return Model(path, config, build_objective(config, classes), network.to(device).eval(), device)


def _config(options: ReproduceOptions, model: Model, number: int) -> RunConfig:
    """Return the configuration of one protocol's evaluation."""
    from soflow.config import override, parse, to_dict

    hashes = options.reference_sha256
    batch_size = options.batch_size or model.config.evaluation.batch_size
    batch_size = min(batch_size, options.num_samples // options.num_groups)  # no group may be empty
    changes: dict[str, Any] = {
        "seed": options.seed,
        "evaluation.protocol": options.protocols[number],
        "evaluation.reference": str(options.references[number]),
        "evaluation.reference_sha256": hashes[number] if hashes else None,
        "evaluation.num_samples": options.num_samples,
        "evaluation.labels": options.labels if model.config.dataset.conditional else "balanced",
        "evaluation.precision_recall": False,
        "evaluation.inception_score": False,
        "evaluation.diagnostics": [],
    }
    given = {
        "evaluation.feature_network": options.feature_network,
        "evaluation.inception_weights": options.inception_weights and str(options.inception_weights),
        "evaluation.batch_size": batch_size,
        "dataset.vae": options.vae,
    }
    return parse(override(to_dict(model.config), changes | {path: value for path, value in given.items() if value}))


def _note_settings(options: ReproduceOptions, model: Model) -> None:
    """Save what the images and features depend on; refuse a folder in which it differs.

    Raises:
        ConfigError: naming what differs.
    """
    from soflow.files import sha256, write_atomic

    values = options.model_dump(mode="json", exclude={"storage", "name", "nfe", "checkpoint", "inception_weights"})
    settings = values | {"checkpoint_sha256": sha256(model.path)}
    path = options.folder / SETTINGS_FILE
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in settings.items():
            if value != before.get(name):
                raise ConfigError(f"{name} = {value}: is {before.get(name)} in {options.folder}; choose another --name")
    write_atomic(path, json.dumps(settings, indent=2))


def _moments(options: ReproduceOptions, model: Model, configs: list[RunConfig], nfe: int) -> list[list[Any]]:
    """Return for each protocol the moments of all groups; generate the groups that are missing."""
    from rich.progress import track

    from soflow.evaluation import feature_networks
    from soflow.evaluation.groups import moments_of
    from soflow.evaluation.registry import feature_network_info

    first = configs[0]
    info = feature_network_info(first.feature_network)
    weights = feature_networks.weights_path(first.feature_network, first.evaluation.inception_weights)
    extractor = feature_networks.load(first.feature_network, [info.layer], weights, model.device)
    found: list[list[Any]] = [[] for _ in configs]
    groups = track(range(options.num_groups), f"{nfe} NFE", console=plain_console(), transient=True)
    for group in groups:
        paths = [
            options.folder / "moments" / f"{nfe}nfe-{protocol}-{group:03d}.safetensors"
            for protocol in options.protocols
        ]
        pending = [number for number, path in enumerate(paths) if not path.exists()]
        features = _features(options, model, configs, nfe, group, extractor, info.layer) if pending else None
        for number, path in enumerate(paths):
            rows = features[number] if features else []
            found[number].append(moments_of(path, rows, info.num_features))
    return found


def _features(
    options: ReproduceOptions, model: Model, configs: list[RunConfig], nfe: int, group: int, extractor, layer: str
) -> list[list[Tensor]]:
    """Generate a group's images once and compute their features by each protocol, on the CPU."""
    from soflow.evaluation.feature_networks import layers_of

    features: list[list[Tensor]] = [[] for _ in configs]
    for images in _images(options, model, configs, nfe, group):
        for rows, rounded in zip(features, images, strict=True):
            rows.append(layers_of(extractor, rounded, model.device)[layer].cpu())
    return features


def _images(
    options: ReproduceOptions, model: Model, configs: list[RunConfig], nfe: int, group: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the images of a group batch by batch, as uint8 by each protocol."""
    from soflow import codecs
    from soflow.evaluation.generated import generate, sampler_for
    from soflow.evaluation.moments import Workers

    config = configs[0]
    codec, sampler = codecs.build(config.dataset, model.device), sampler_for(config, model.objective, nfe)
    share = Workers(model.device, group, options.num_groups)  # a group's batches are those of one of many workers
    counts = [1] * model.objective.num_classes
    also = options.protocols[1:]
    for batch in generate(model.objective, model.network, codec, config, nfe, sampler, share, counts, also):
        yield batch.images, *batch.others


def _table(options: ReproduceOptions, measured: dict[int, list[FidEstimate]]) -> str:
    """Format the comparison with the published figures as Markdown."""
    lines = [
        f"{options.run}, {options.num_samples:,} images, {options.labels} classes",
        "",
        "| NFE | protocol | FID | sampling error | published | difference |",
        "|---|---|---|---|---|---|",
    ]
    for nfe, estimates in measured.items():
        published = FIDS[options.run].get(nfe)
        for protocol, found in zip(options.protocols, estimates, strict=True):
            shown, difference = (
                ("–", "–") if published is None else (f"{published:.2f}", f"{found.value - published:+.2f}")
            )
            row = (str(nfe), protocol, f"{found.value:.2f}", f"{found.error:.2g}", shown, difference)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
