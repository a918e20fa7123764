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

import functools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dashboards.comparison.published import FIDS
from experiments.launch import PRESETS
from orchestration.config import Folder
from orchestration.interruption import exit_code, listen
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
    feature_weights: InputPath | None = None
    """File with the weights of dinov2 or clip, or of torch-fidelity's Inception where it cannot be downloaded."""
    vae: str | None = None
    """Folder or hub id of the autoencoder of latents. Default: the preset's."""
    batch_size: Count | None = None
    """Images generated at a time; does not change them. Default: the preset's."""
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
    listen()
    options = read_command_line(ReproduceOptions, __doc__, positional="run")
    from soflow.training.checkpoints import CheckpointError

    try:
        reproduce(options)
    except (CheckpointError, ConfigError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes")
        return exit_code("KILLED")
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
    _note_settings(options, model, configs[0])
    measured: dict[int, list[FidEstimate]] = {}
    for nfe in options.nfe or tuple(FIDS[options.run]):
        groups = _moments(options, model, configs, nfe)
        for moments in groups:
            if (count := sum(group.count for group in moments)) != options.num_samples:
                folder = options.folder / "moments"
                raise ConfigError(f"{folder}: has {count} images, not {options.num_samples}; delete it")
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

    from soflow.config import flatten, parse, to_dict
    from soflow.config_files import read_yaml
    from soflow.interop import authors_checkpoint
    from soflow.models import Model, best_device, load_model
    from soflow.training import checkpoints
    from soflow.training.build import build_network, build_objective

    path = checkpoints.find(options.checkpoint)
    config = parse(read_yaml(PRESETS / f"{options.run}.yaml"))
    if "ema" in (stored := checkpoints.load(path)):
        model = load_model(path)
        for name in ("dataset.name", "network.name", "objective.name"):
            own, published = (flatten(to_dict(one))[name] for one in (model.config, config))
            if own != published:
                raise ConfigError(f"checkpoint = {path}: has {name} = {own}, but {options.run} has {published}")
        return model
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
        "evaluation.guidance": 1.0,  # published figures are without guidance at sampling
        "evaluation.temperature": 1.0,
        "evaluation.times": [],
        "evaluation.sampler": None,
    }
    given = {
        "evaluation.feature_network": options.feature_network,
        "evaluation.feature_weights": options.feature_weights and str(options.feature_weights),
        "evaluation.batch_size": options.batch_size,
        "dataset.vae": options.vae,
    }
    return parse(override(to_dict(model.config), changes | {path: value for path, value in given.items() if value}))


def _note_settings(options: ReproduceOptions, model: Model, config: RunConfig) -> None:
    """Save what the images and features depend on; refuse a folder in which it differs.

    Raises:
        ConfigError: naming what differs.
    """
    from soflow.evaluation.feature_networks import weights_path
    from soflow.evaluation.reference import decoder_hashes
    from soflow.files import sha256, write_atomic

    # Moments are kept by NFE and protocol, and compared with the references in the end.
    other = {"storage", "name", "nfe", "protocols", "references", "reference_sha256", "batch_size"}
    files = {"checkpoint", "feature_weights", "vae"}
    settings = options.model_dump(mode="json", exclude=other | files) | {
        "checkpoint_sha256": sha256(model.path),
        "features_sha256": sha256(weights_path(config.feature_network, config.evaluation.feature_weights)),
        "vae_sha256": list(decoder_hashes(config.dataset)),
    }
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
    weights = feature_networks.weights_path(first.feature_network, first.evaluation.feature_weights)
    extractor = feature_networks.load(first.feature_network, [info.layer], weights, model.device)
    found: list[list[Any]] = [[] for _ in configs]
    for group in track(range(options.num_groups), f"{nfe} NFE", console=plain_console(), transient=True):
        # All protocols measure the same images, which are generated when the first of them needs them.
        features = functools.cache(partial(_features, options, model, configs, nfe, group, extractor, info.layer))
        for number, protocol in enumerate(options.protocols):
            path = options.folder / "moments" / f"{nfe}nfe-{protocol}-{group:03d}.safetensors"
            rows = partial(_of_protocol, features, number)
            found[number].append(moments_of(path, rows, info.num_features))
    return found


def _of_protocol(features: Callable[[], list[list[Tensor]]], number: int) -> list[Tensor]:
    return features()[number]


def _features(
    options: ReproduceOptions, model: Model, configs: list[RunConfig], nfe: int, group: int, extractor, layer: str
) -> list[list[Tensor]]:
    """Generate a group's images once and compute their features by each protocol, on the CPU."""
    from soflow.evaluation.feature_networks import layers_of
    from soflow.evaluation.generated import generate, sampler_for
    from soflow.evaluation.groups import places_of
    from soflow.evaluation.moments import Workers

    config, also = configs[0], options.protocols[1:]
    workers, counts = Workers(model.device), [1] * model.objective.num_classes
    sampler = sampler_for(config, model.objective, nfe)
    places = places_of(group, options.num_groups, options.num_samples)
    arguments = (model.objective, model.network, model.codec, config, nfe, sampler, workers, counts, also, places)
    features: list[list[Tensor]] = [[] for _ in configs]
    for batch in generate(*arguments):
        for rows, images in zip(features, (batch.images, *batch.others), strict=True):
            rows.append(layers_of(extractor, images, model.device)[layer].cpu())
    return features


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
