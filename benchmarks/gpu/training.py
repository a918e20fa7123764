"""Does training work on a device? Precision of gradients, exact resume, predicted memory, a step out of memory."""

from __future__ import annotations

import functools
import gc
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import numerics
from benchmarks.gpu.results import Figure
from orchestration.cost_study.config import VARIANTS
from orchestration.memory_fit import ERROR
from orchestration.workers.follow import FollowedRun
from orchestration.workers.messages import Answer, Request
from orchestration.workers.training import TrainingWorker
from soflow.config import RunConfig, flatten, override, parse
from soflow.cost.measure import peak_bytes
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.objectives.soflow import SoFlow
from soflow.training import checkpoints
from soflow.training.trainer import Trainer

STEPS = 6
ROUNDINGS = 10
PRECISION_REASON = (
    f"{ROUNDINGS} units of roundoff over the gap ratio r, which amplifies them: a network rounds a few times in a row; "
    "on the CPU the errors are at most 6 units (docs/numerics.md)"
)
RESUME_REASON = (
    "random numbers depend on seed and step only, and torch's deterministic algorithms sum in a fixed order; without "
    "them some kernels add in the order in which threads finish, so that two runs may differ"
)
MEMORY_REASON = f"memory of a trial is planned with a relative error of {ERROR:g} (orchestration/memory_fit.py)"
PARTS_REASON = (
    "the losses of three steps are equal but for roundings in float32 of sums in another order; a limit of memory for "
    "half of the activations refuses the whole batch"
)


def precision(device: torch.device, steps: int = 300, ratios: Iterable[float] = numerics.RATIOS) -> list[Figure]:
    """Measure the errors of SoFlow's gradient by precision and gap ratio, on a network trained for some steps."""
    case = numerics.trained("euler", 0, steps, device)
    return [
        Figure(f"{name}, r = {ratio:g}", case.error(SoFlow, name, ratio), ROUNDINGS * unit / ratio)
        for name, unit in numerics.ROUNDING_UNITS.items()
        for ratio in ratios
    ]


RESUMED: dict[str, dict[str, Any]] = {
    "soflow": {"objective": {"name": "soflow"}},
    "meanflow": {"objective": {"name": "meanflow"}},
    "soflow, U-Net with dropout and augmentation": {
        "network": {"name": "U-Net-XS", "dropout": 0.1},
        "dataset": {"augmentation": 0.5},
    },
}


def resume(device: torch.device, cases: Iterable[str] = tuple(RESUMED)) -> list[Figure]:
    """Count the values that differ between a run and one that was interrupted halfway."""
    figures = []
    for name in cases:
        config = config_of(**RESUMED[name])
        with deterministic():
            whole = state_after(config, device)
            figures.append(Figure(f"{name}: values that differ", differing(whole, resumed_state(config, device)), 0))
        again = differing(state_after(config, device), state_after(config, device))
        figures.append(Figure(f"{name}: values that differ between two runs without them", again))
    return figures


def config_of(**sections: dict[str, Any]) -> RunConfig:
    """Configure a small run on 8x8 images."""
    return parse({"training": {"total_steps": STEPS, "batch_size": 32}} | sections)


def state_after(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Train from the start to the end; return the final state."""
    trainer = Trainer(config, synthetic_source(config.dataset), device)
    trainer.advance(STEPS)
    return trainer.state_dict()


def resumed_state(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Train halfway, write a checkpoint, train to the end from it; return the final state."""
    source = synthetic_source(config.dataset)
    first, second = Trainer(config, source, device), Trainer(config, source, device)
    first.advance(STEPS // 2)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.save(first.state_dict(), Path(folder), first.step)
        second.load_state_dict(checkpoints.load(path, device))
    second.advance(STEPS - STEPS // 2)
    return second.state_dict()


def tensors(state: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a training state, in order."""
    moments = [value for values in state["optimizer"]["state"].values() for value in values.values()]
    return [*state["network"].values(), *state["ema"].values(), *moments]


def differing(state: dict[str, Any], other: dict[str, Any]) -> int:
    """Count the values that are not equal, bit for bit, in two training states."""
    pairs = zip(tensors(state), tensors(other), strict=True)
    return sum(int((a.cpu() != b.cpu()).sum()) for a, b in pairs)


@contextmanager
def deterministic() -> Iterator[None]:
    """Sum in a fixed order inside the block, where torch has a kernel that does."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MEMORY = {
    "fp32, 16 tokens": {},
    "bf16, 256 tokens": {"dataset": {"name": "latents", "image_size": 256}, "training": {"precision": "bf16"}},
}
"""Settings in which memory is measured: attention is by far the largest tensor where a kernel does not fuse it."""


def memory(
    device: torch.device, network: str = "DiT-S/2", batch: int = 32, settings: Iterable[str] = tuple(MEMORY)
) -> list[Figure]:
    """Compare the peak memory of a step with its prediction."""
    figures = []
    for setting, name in itertools.product(settings, ("flow_matching", "soflow", "meanflow_c")):
        sections = {"objective": VARIANTS[name], "network": {"name": network}}
        training = {"training": {"batch_size": batch, "total_steps": 10}}
        config = parse(override(sections | training, flatten(MEMORY[setting])))
        trainer = Trainer(config, synthetic_source(config.dataset), device)
        trainer.take_step()  # creates the optimizer's moments
        ratio = peak_bytes(trainer) / predict(config).peak_bytes
        figures.append(Figure(f"{name}, {setting}: |measured / predicted − 1|", abs(ratio - 1), ERROR))
    return figures


def micro_batches(
    device: torch.device, limited: Callable[[int], AbstractContextManager[None]] | None = None
) -> list[Figure]:
    """Train in a memory that is too small for the batch, in twice as many micro-batches until it fits.

    Args:
        limited: context manager that refuses memory beyond this number of additional bytes; by default the GPU's.
    """
    sections = {"network": {"name": "DiT-XS/2"}, "evaluation": {"num_samples": 16, "batch_size": 16}}
    training = {"batch_size": 512, "total_steps": 3}
    config = parse({"objective": {"name": "flow_matching"}, "training": training} | sections)
    prediction = predict(config)
    headroom = (prediction.persistent_bytes + prediction.peak_bytes) // 2  # for half of the activations
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        group = OneWorker(device, folder)
        whole = FollowedRun(config, folder / "whole", 1)
        expected = loss_of(whole.next_report(group))
        group = OneWorker(device, folder)
        parts = FollowedRun(config, folder / "parts", 1)
        with (limited or functools.partial(gpu_memory_limited, device))(headroom):
            found = loss_of(parts.next_report(group))
    return [
        Figure("relative difference of the loss", abs(found / expected - 1), 1e-5),
        Figure("batches taken whole in spite of the limit", int(parts.micro_batches == 1), 0),
        Figure("micro-batches", parts.micro_batches),
    ]


class OneWorker:
    """Group of one training worker, in this process."""

    def __init__(self, device: torch.device, folder: Path):
        self.worker = TrainingWorker(str(folder / "reference"), device, 0, 1)

    def ask(self, request: Request) -> Answer:
        return self.worker.serve(request)


def loss_of(answer: Answer) -> float:
    """Return the loss of a report; RuntimeError with the reason if the training failed."""
    if answer.failure:
        raise RuntimeError(answer.failure)
    return answer.reported.metrics["loss/flow_matching"]


@contextmanager
def gpu_memory_limited(device: torch.device, headroom: int) -> Iterator[None]:
    """Refuse GPU memory beyond `headroom` bytes more than this process uses now."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + headroom) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
