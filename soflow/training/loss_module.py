"""Loss of a batch as one module, and its gradients, averaged over data-parallel workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from soflow.objectives.base import Draws, Objective
from soflow.profiling.phases import phase


class LossModule(nn.Module):
    """Module that computes the complete loss in its forward, so that DistributedDataParallel sees all network calls.

    Attributes:
        network: the network as the loss calls it: compiled, if it is. An exchange needs no new DistributedDataParallel,
            since a compiled network has the parameters of the eager one.
    """

    def __init__(self, network: nn.Module, objective: Objective):
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, data: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the per-sample losses, and the objective's per-sample terms."""
        with self.objective.same_dropout(draws):
            losses = self.objective.losses(self.network, data, labels, draws)
        return (draws.weight * losses.loss).sum(), losses.terms

    @property
    def compiled(self) -> bool:
        """True if the network is compiled."""
        return hasattr(self.network, "_orig_mod")

    @property
    def approximates_derivative(self) -> bool:
        """True if the loss contains a derivative that is compiled or a finite difference."""
        return self.objective.approximates_derivative(self.network)


def loss_module_of(module: nn.Module) -> LossModule:
    """Return the LossModule inside DistributedDataParallel, or the module itself."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(inner, LossModule)
    return inner


def without_all_reduce(module: nn.Module) -> AbstractContextManager:
    """Accumulate gradients on this worker inside the block, without averaging over workers."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def accumulate_gradients(
    module: nn.Module, data: Tensor, labels: Tensor, shares: list[Draws], world_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of a batch; return its loss and the objective's per-sample terms.

    Args:
        module: a LossModule, or DistributedDataParallel of one.
        shares: draws of each micro-batch; the n-th has every len(shares)-th sample, starting at n.
    """
    precision, results = loss_module_of(module).objective.forward, []
    for number, draws in enumerate(shares):
        rows = slice(number, None, len(shares))
        with without_all_reduce(module) if draws is not shares[-1] else nullcontext():
            loss, terms = module(data[rows], labels[rows], draws)
            with phase("backward"), precision.backward(data.device):
                # DistributedDataParallel averages gradients over workers, but the sample weights already sum to 1
                # over the global batch.
                (loss * world_size).backward()
        results.append((loss.detach(), terms))
    losses, terms = zip(*results, strict=True)
    return sum(losses), {name: torch.cat([values[name] for values in terms]) for name in terms[0]}
