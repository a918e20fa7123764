"""Compute a data set's reference statistics for FID and write them to a file for runs and other programs.

The .npz file contains the mean `mu` and covariance `sigma` of the features, like ADM's files, and their origin as
`made`. Runs use it with --evaluation.reference FILE. The cache file of torch-fidelity can be written as well.

$ python experiments/reference_statistics.py --out digits.npz
$ python experiments/reference_statistics.py --dataset image_folder --dataset.root FOLDER --dataset.image-size 256
$ python experiments/reference_statistics.py --torch-fidelity-cache ~/.cache/torch/fidelity_cache --name digits
"""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from orchestration.config import Folder
from orchestration.terminal.command_line import fail, read_command_line
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import DataError


class ReferenceConfig(RunConfig):
    """Data source and feature network, with the fields of a run's configuration; its other fields are not used."""

    out: Path = Path("reference.npz")
    """.npz file to write."""
    torch_fidelity_cache: Path | None = None
    """Folder for torch-fidelity's cache file; its programs read it with cache_root and `name`."""
    name: str | None = None
    """Name of the data set in torch-fidelity's cache."""
    storage: Folder = Path("results")
    """Folder of runs, whose cached reference features are reused."""

    @model_validator(mode="after")
    def _check_files(self) -> ReferenceConfig:
        if self.out.suffix != ".npz":
            raise ValueError(f"out = {self.out}: must end in .npz")
        if (self.torch_fidelity_cache is None) != (self.name is None):
            raise ValueError(
                f"torch_fidelity_cache = {self.torch_fidelity_cache}, name = {self.name}: must be given together"
            )
        if self.name is not None and (not self.name or "/" in self.name):
            raise ValueError(f"name = {self.name}: must be a plain name without /")
        if self.evaluation.reference is not None:
            raise ValueError(
                f"evaluation.reference = {self.evaluation.reference}: must be left out, because {self.out} is written"
            )
        return self


def write_statistics(config: ReferenceConfig) -> list[Path]:
    """Compute the statistics of the configured data source and write the files.

    Raises:
        ConfigError, DataError: if the data or the feature network is unusable.
        OSError: if a file cannot be written; folders are created before the computation.
    """
    source = open_source(config.dataset)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if config.torch_fidelity_cache is not None:
        config.torch_fidelity_cache.mkdir(parents=True, exist_ok=True)

    import torch

    from soflow.evaluation import reference_files
    from soflow.evaluation.fidelity import Evaluator

    print(f"{config.dataset.name}: features of {len(source)} images by {config.feature_network}", flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluator = Evaluator(source, config, device, config.storage / "reference")
    protocol, statistics = evaluator.protocol(), evaluator.reference.statistics
    origin = {name: protocol[name] for name in protocol if name not in ("num_samples", "labels", "kid_subset_size")}
    reference_files.write_npz(config.out, statistics, {"dataset": config.dataset.name} | origin)
    if config.torch_fidelity_cache is None:
        return [config.out]
    cache = config.torch_fidelity_cache
    return [
        config.out,
        reference_files.write_torch_fidelity(cache, config.name, config.feature_network, statistics),
    ]


def main() -> int:
    config = read_command_line(ReferenceConfig, __doc__)
    try:
        for path in write_statistics(config):
            print(f"written: {path}")
    except (ConfigError, DataError) as error:
        fail(error)
    except OSError as error:
        fail(f"out = {config.out}, torch_fidelity_cache = {config.torch_fidelity_cache}: cannot be written ({error})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
