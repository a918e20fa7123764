"""How much time and memory does a training step take on other hardware? Predicts both without running a step.

A step runs on meta tensors while operations and bytes are counted. "products" is the time of the matrix products at the
accelerator's peak rate, which no step undercuts. "step" is the range to expect: from all kernels at the peak rate of
arithmetic or memory, whichever limits them, to 3 times that, a little more than the slowest step measured. Memory is
the peak of all tensors on one accelerator; the largest batch that fits is predicted as well.

$ python experiments/predict_cost.py
$ python experiments/predict_cost.py soflow-imagenet256-xl2 --accelerators H100 H200 --num-workers 8
$ python experiments/predict_cost.py results/NAME/best.yaml --accelerators here
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.terminal.format import table_console, three_digits
from orchestration.terminal.views import finite
from soflow.config import RunConfig, override, parse
from soflow.config_base import ConfigError, Count, OutputPath, Section
from soflow.config_files import read_yaml

PRESETS = Path(__file__).parent / "presets"
HERE = "here"


class PredictOptions(Section):
    runs: tuple[str, ...] = ()
    """Presets by name, or configuration files. Default: all presets."""
    accelerators: tuple[str, ...] = ("A100-80GB", "H100", "RTX-4090")
    """Accelerators by name, or `here` to measure the peak rates of this machine."""
    num_workers: Count = 1
    """Accelerators that share the batch."""
    batch_size: Count | None = None
    """Samples per step. Default: the configured number."""
    format: Literal["table", "json"] = "table"
    """Print a table, or a JSON list with an object per row."""
    out: OutputPath | None = None
    """CSV file to write the table to."""


def main() -> int:
    options = read_command_line(PredictOptions, __doc__, positional="runs")
    try:
        runs = {name: _read(name, options) for name in options.runs or _presets()}
        accelerators = _accelerators(options.accelerators)
    except ConfigError as error:
        fail(error)
    rows = [row for name, config in runs.items() for row in _predict(name, config, accelerators, options.num_workers)]
    if options.format == "json":
        print(json.dumps(finite(rows), indent=2))
    else:
        _show(rows)
    if options.out:
        import pandas as pd

        from soflow.files import write_atomic

        write_atomic(options.out, pd.DataFrame(rows).to_csv(index=False))
        print(f"table: {options.out}", file=sys.stderr)
    return 0


def _presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read(name: str, options: PredictOptions) -> RunConfig:
    """Read a preset or a file as the run of one worker, with its share of the batch.

    Raises:
        ConfigError: if the file is missing or invalid.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PRESETS / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"runs = {name}: must be a file or a preset, one of {', '.join(_presets())}")
    of_programs = {*TrainConfig.model_fields, *SweepConfig.model_fields} - set(RunConfig.model_fields)
    values = {key: value for key, value in read_yaml(path).items() if key not in of_programs}
    batch = options.batch_size or parse(values).training.batch_size
    if batch % options.num_workers:
        raise ConfigError(f"num_workers = {options.num_workers}: must divide the batch size, {batch}")
    return parse(override(values, {"training.batch_size": batch // options.num_workers}))


def _accelerators(names: tuple[str, ...]) -> dict:
    import os

    import torch

    from soflow.cost.accelerators import ACCELERATORS, measured

    accelerators = {}
    for name in names:
        if name == HERE:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if device.type == "cuda":
                memory = torch.cuda.get_device_properties(device).total_memory
            accelerators[name] = measured(device, memory)
        elif name in ACCELERATORS:
            accelerators[name] = ACCELERATORS[name]
        else:
            raise ConfigError(f"accelerators = {name}: must be {HERE} or one of {', '.join(ACCELERATORS)}")
    return accelerators


def _predict(name: str, config: RunConfig, accelerators: dict, num_workers: int) -> list[dict]:
    from soflow.cost.predict import memory_by_batch, predict

    print(f"counting the operations of a step of {name}", file=sys.stderr)
    prediction, memory = predict(config), memory_by_batch(config)
    precision = config.training.precision
    return [
        {
            "run": name,
            "parameters": prediction.parameters,
            "batch": config.training.batch_size * num_workers,
            "precision": precision,
            "accelerator": accelerator_name if num_workers == 1 else f"{num_workers} × {accelerator_name}",
            "flops": prediction.flops * num_workers,
            "products_s": prediction.arithmetic_s(accelerator),
            **dict(zip(("least_s", "most_s"), prediction.range_s(accelerator), strict=True)),
            "peak_bytes": prediction.peak_bytes,
            "fits": prediction.peak_bytes <= accelerator.memory_bytes,
            "largest_batch": memory.largest_batch(accelerator.memory_bytes) * num_workers,
        }
        for accelerator_name, accelerator in accelerators.items()
    ]


def _show(rows: list[dict]) -> None:
    from rich.table import Table

    table = Table("run", "parameters", "batch", "accelerator", "TFLOP", "products", "step", "memory", "largest batch")
    for previous, row in zip([None, *rows], rows, strict=False):
        first = previous is None or previous["run"] != row["run"]
        table.add_row(
            row["run"] if first else "",
            f"{row['parameters'] / 1e6:.1f} M" if first else "",
            str(row["batch"]) if first else "",
            f"{row['accelerator']}, {row['precision']}",
            three_digits(row["flops"] / 1e12),
            f"≥ {three_digits(row['products_s'] * 1e3)} ms",
            f"{three_digits(row['least_s'] * 1e3)}–{three_digits(row['most_s'] * 1e3)} ms",
            f"{row['peak_bytes'] / 2**30:.1f} GiB" + ("" if row["fits"] else " ✗"),
            str(row["largest_batch"]),
        )
    table_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
