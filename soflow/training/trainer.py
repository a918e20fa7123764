"""Training loop: data order, optimizer steps, moving average, measurements, and the state required to resume."""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from soflow.config import RunConfig
from soflow.data.base import DataSource
from soflow.profiling.clock import StepClock
from soflow.profiling.memory import AllocationPeak, PeakResidentMemory, bytes_of
from soflow.profiling.phases import phase
from soflow.training.build import build_network, build_objective, build_optimizer
from soflow.training.compilation import (
    CompileClock,
    check_derivative,
    check_flash_attention,
    compiled,
    disturbed,
)
from soflow.training.compile_choice import choose
from soflow.training.ema import evaluated_average, power_averages
from soflow.training.inputs import StepInputs
from soflow.training.interval import NEVER, Interval
from soflow.training.loss_module import LossModule, accumulate_gradients
from soflow.training.out_of_memory import StepOutOfMemory, is_out_of_memory
from soflow.training.teacher import attach_teacher

LOG = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """Diverged training: the loss or its gradient became infinite or NaN."""


class Trainer:
    """Training state and loop on one of `world_size` data-parallel workers, which all have the same weights.

    Args:
        micro_batches: number of micro-batches per step and worker, for gradient accumulation. More of them need less
            memory; up to rounding and dropout masks the step is the same.

    Attributes:
        step: number of optimizer steps done.
        curve: points of the last `advance` at every log_every-th step: names to values, means since the point before.
        network, ema: trained weights and their moving average (ema.module, in the configured dtype).
        power_averages: further averages by their length, for snapshots.
        train_s: seconds spent in optimizer steps since the start of the run, including before resuming; without
            compilation.
        compile_choice: choice of training.compile = auto, if this trainer made it, and its reason; else "".
    """

    def __init__(
        self,
        config: RunConfig,
        source: DataSource,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ):
        self.config, self.source, self.device = config, source, device
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        check_flash_attention(config, device)
        with device if device.type == "meta" else nullcontext():  # skips the initialization of meta weights
            self.network = build_network(config, source.num_classes).to(device)
        self.objective = build_objective(config, source.num_classes)
        attach_teacher(self.objective, config, device)
        self.inputs = StepInputs(config, source, self.objective, device, rank, world_size, micro_batches)
        self.codec = self.inputs.codec
        self.ema = evaluated_average(self.network, config.training)
        self.power_averages = power_averages(self.network, config.training)
        self.optimizer = build_optimizer(config, self.network)
        self._loss = LossModule(self.network, self.objective)
        self.module = DistributedDataParallel(self._loss) if world_size > 1 else self._loss
        self.step, self.train_s = 0, 0.0
        self._interval: Interval | None = None
        """Measurements since the last report, while `advance` runs or after a checkpoint made by it was loaded."""
        self._since = 0.0, 0.0
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.compile_choice = ""
        self._undecided = config.training.compile == "auto" and device.type != "meta"
        self._compile_clock = CompileClock(False)
        self._clock, self._process = StepClock(device), PeakResidentMemory()
        if device.type != "meta":
            if config.training.compile is True:
                self._compile()
            self._check_derivative()

    def advance(
        self,
        steps: int,
        due: Callable[[], bool] = lambda: False,
        save: Callable[[], None] = lambda: None,
        save_snapshot: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Take optimizer steps and return metrics over them, equal on all workers except for times.

        If the state was restored from a checkpoint between reports, the metrics include the steps before it.

        Losses are means over samples. "gradient/norm" is the median over steps of the norm of the full gradient,
        "gradient/spike" the maximum divided by the median.

        Args:
            due: asked after every step but the last whether to save a checkpoint now.
            save: saves it, from `state_dict`.
            save_snapshot: called after every step with a snapshot; saves `power_averages`.

        Raises:
            NonFiniteLoss: if a loss was infinite or NaN; the message names the first such step.
            StepOutOfMemory: if a step did not fit into memory; the trainer is unusable afterwards.
        """
        with self._memory_named():
            if self._undecided:
                self._choose_compilation()
            return self._advance(steps, due, save, save_snapshot)

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StepOutOfMemory(
                f"training.batch_size = {self.config.training.batch_size}: a step does not fit into memory with "
                f"{self.micro_batch} samples at a time on each of {self.world_size} workers "
                f"({' '.join(str(error).split())[:200]})"
            ) from None

    @property
    def micro_batch(self) -> int:
        """Largest number of samples per network call on this worker."""
        return -(-self.config.training.batch_size // (self.world_size * self.micro_batches))

    def _advance(
        self, steps: int, due: Callable[[], bool], save: Callable[[], None], save_snapshot: Callable[[], None]
    ) -> dict[str, float]:
        self.network.train()
        self._process.reset()
        self._interval = interval = self._interval or Interval.after(self.step, self.device)
        self._since = time.perf_counter(), self._compile_clock.seconds
        memory, persistent_bytes = AllocationPeak(self.device), 0
        for step in range(steps):
            self._clock.start_step()
            measured = step == steps - 1  # the last step only: recording allocations is slow on the CPU
            if measured:
                self.optimizer.zero_grad()
                persistent_bytes = bytes_of(self.persistent_tensors())
            with memory if measured else nullcontext():
                loss, terms = self.take_step()
            norm = get_total_norm([w.grad for w in self.network.parameters() if w.grad is not None])
            interval.gradients.append(norm)
            # No host synchronization in the loop: sums and the first bad step (counted from 1) stay on the device.
            first_bad, finite = interval.first_bad, loss.isfinite() & norm.isfinite()
            interval.first_bad = torch.where(finite, first_bad, first_bad.clamp(max=self.step))
            interval.totals.add(terms)
            if self.step % self.config.training.log_every == 0:
                interval.totals.mark(self.step)
            if self.snapshot_due:
                self._pause_for(save_snapshot)
            if not measured and due():
                self._pause_for(save)
        self._clock.stop()
        self._count_time()
        self._interval = None
        self._check_finite(interval.first_bad)
        norms = torch.stack(interval.gradients)
        self.curve = interval.totals.curve(self.reduce, norms, interval.begin)
        for step, values in self.curve:
            values["train/learning_rate"] = self._learning_rate(step - 1)
        return (
            interval.totals.means(self.reduce)
            | {
                "gradient/norm": norms.median().item(),
                "gradient/spike": (norms.max() / norms.median()).item(),
                "time/step_ms": self._clock.median_ms(),
                "time/train_s": self.train_s,
                "throughput/images_per_s": self.config.training.batch_size * 1e3 / self._clock.median_ms(),
                "memory/peak_mib": (persistent_bytes + memory.peak_bytes) / 2**20,
                "memory/process_mib": self._process.mib(),
            }
            | self._compile_clock.metrics()
        )

    @property
    def snapshot_due(self) -> bool:
        """True after the steps with a snapshot: every snapshot_every-th and the last."""
        training = self.config.training
        every = training.snapshot_every
        return every is not None and (self.step % every == 0 or self.step == training.total_steps)

    def _pause_for(self, save: Callable[[], None]) -> None:
        """Save something, which counts as no time of training."""
        self._clock.pause()
        self._count_time()
        save()
        self._since = time.perf_counter(), self._compile_clock.seconds

    def _count_time(self) -> None:
        """Add the time since `_since` to `train_s`, without compilation."""
        began, compile_s = self._since
        self.train_s += time.perf_counter() - began - (self._compile_clock.seconds - compile_s)

    def take_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one optimizer step; return its loss and the objective's per-sample terms, on the device."""
        training = self.config.training
        with phase("batch"):
            data, labels = self.inputs.batch(self.step)
            shares = self.inputs.draws(self.step, (data, labels))
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        self.optimizer.zero_grad()
        loss, terms = accumulate_gradients(self.module, data, labels, shares, self.world_size)
        with phase("optimizer"):
            self.optimizer.step()
        self.step += 1
        if self.step % training.ema_every == 0:
            with phase("ema"):
                for average in (self.ema, *self.power_averages.values()):
                    average.update_parameters(self.network)
        return loss, terms

    @property
    def compiled(self) -> bool:
        """True if the network is compiled, as configured or chosen unless no compiler works."""
        return self._loss.compiled

    @property
    def approximates_derivative(self) -> bool:
        """True if the loss contains a derivative that is compiled or a finite difference."""
        return self._loss.approximates_derivative

    def _compile(self) -> None:
        """Train with the compiled network from now on, if a compiler works."""
        self._loss.network = compiled(self.network, self.config, self.device)
        self._compile_clock = CompileClock(self.compiled)

    def _check_derivative(self) -> None:
        if self.approximates_derivative:
            with disturbed(self.network):
                check_derivative(self.derivative_error(), self.config)

    def _choose_compilation(self) -> None:
        """Choose between compiled and eager steps, measured with the current step's; nothing else changes."""
        self._undecided = False
        self.network.train()
        total = functools.partial(self.reduce, operation="SUM")
        choice, self._compile_clock = choose(self.module, self.inputs, self.step, self.derivative_error, total)
        self.compile_choice = str(choice)
        if not self.rank:
            LOG.info("training.compile = auto: %s", choice)

    def derivative_error(self) -> float:
        """Measure the relative error of the derivative in the loss, which is compiled or a finite difference.

        Uses the first micro-batch of the current step, whose shapes are compiled already, with the data's first images.
        """
        draws = self.inputs.draws(self.step)[0]
        data, labels = self.inputs.example(len(draws.t))
        with self._memory_named():
            return self.objective.derivative_error(self._loss.network, data, labels, draws)

    def persistent_tensors(self) -> list[Tensor]:
        """Return the tensors kept between steps: weights, their moving average and optimizer moments."""
        modules = (self.network, self.ema.module, *(average.module for average in self.power_averages.values()))
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [tensor for tensor in (*tensors, *moments) if isinstance(tensor, Tensor)]

    def averaged_network(self) -> nn.Module:
        """Return the network with averaged weights, for evaluation and sampling."""
        if self.config.training.ema_dtype == "float32":
            return self.ema.module.eval()
        return copy.deepcopy(self.ema.module).float().eval()

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` others."""
        optimizer = self.config.optimizer
        return optimizer.learning_rate * min(1.0, (step + 1) / (optimizer.warmup_steps + 1))

    def range_of(self, step: int) -> tuple[int, int]:
        """Return the minimum and the maximum of `step` over all workers."""
        low, minus_high = self.reduce(torch.tensor([step, -step], device=self.device), "MIN").tolist()
        return low, -minus_high

    def _check_finite(self, first_bad: Tensor) -> None:
        step = int(self.reduce(first_bad, "MIN"))
        if step < NEVER:
            raise NonFiniteLoss(
                f"the loss or its gradient became infinite or NaN at step {step}; try a lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate:g}) or a longer optimizer.warmup_steps"
            )

    def reduce(self, value: Tensor, operation: str) -> Tensor:
        """All-reduce a tensor over the workers in place, with operation "SUM" or "MIN"."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, operation))
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return the state for an exact resume; random numbers depend on seed and step only, so none are stored.

        Between reports all workers must call it, as it contains what each has measured.
        """
        further = {length: average.module.state_dict() for length, average in self.power_averages.items()}
        return {
            "step": self.step,
            "train_s": self.train_s,
            "compiled": self.compiled,
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({"power_averages": further} if further else {}),
            **({"interval": self._gathered(self._interval.state())} if self._interval else {}),
        }

    def _gathered(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Collect an object from all workers, in the order of their ranks."""
        if self.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(states, state)
        return states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`, and with training.compile = auto its choice, if it has been made."""
        self.step, self.train_s = state["step"], state["train_s"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        for length, average in self.power_averages.items():
            average.module.load_state_dict(state["power_averages"][length])
        for average in (self.ema, *self.power_averages.values()):
            average.n_averaged.fill_(self.step // self.config.training.ema_every)
        self.inputs.restart()
        intervals = state.get("interval")
        self._interval = Interval.of_state(intervals[self.rank], self.device) if intervals else None
        # The optimizer keeps references to the loaded tensors and updates them in place.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self._undecided and "compiled" in state:
            self._undecided = False
            if state["compiled"]:
                self._compile()
                self._check_derivative()
