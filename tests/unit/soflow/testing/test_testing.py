"""The checks of plug-ins: what is right passes, and each fault fails the check that is about it."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from helpers import REPOSITORY

from soflow.config import parse
from soflow.data.digits import open_source
from soflow.networks.dit import DiT
from soflow.objectives.config import SoFlowFields
from soflow.objectives.soflow import SoFlow
from soflow.testing import KINDS, checks
from soflow.testing.__main__ import main


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "examples"))


CORRECT = {
    **{("objective", name): {"objective": {"name": name}} for name in ("soflow", "meanflow", "flow_matching")},
    ("objective", "my_lab"): {"objective": {"name": "my_lab:AnnealedSoFlow"}},
    ("network", "DiT-XXS/4"): {},
    ("network", "my_lab"): {"network": {"name": "my_lab:TinyNetwork"}},
    ("dataset", "digits"): {},
    ("dataset", "my_lab"): {"dataset": {"name": "my_lab:Stripes"}},
}


@pytest.mark.parametrize(("kind", "name"), CORRECT)
def test_what_is_right_passes(kind, name):
    for check in checks(parse(CORRECT[kind, name]), kind):
        check()


class Config(SoFlowFields):
    name: str = "faulty"


class UnorderedTimes(SoFlow):
    def draw(self, noise, progress, generator):
        draws = super().draw(noise, progress, generator)
        object.__setattr__(draws, "s", draws.t + 0.1)
        return draws


class GlobalRandomness(SoFlow):
    def draw(self, noise, progress, generator):
        return super().draw(noise, progress, torch.Generator().manual_seed(torch.randint(1000, ()).item()))


class MeanOfBatch(SoFlow):
    def losses(self, network, data, labels, draws):
        losses = super().losses(network, data, labels, draws)
        return type(losses)(losses.loss * losses.loss.detach().mean(), losses.terms)


class HiddenNoise(SoFlow):
    def losses(self, network, data, labels, draws):
        return super().losses(network, data + torch.randn_like(data), labels, draws)


class WrongBoundary(SoFlow):
    def solution(self, network, x, t, s, labels):
        return 1.01 * super().solution(network, x, t, s, labels)


class WrongVelocity(SoFlow):
    def velocity(self, network, x, t, labels):
        return -super().velocity(network, x, t, labels)


class NoGradient(SoFlow):
    def losses(self, network, data, labels, draws):
        losses = super().losses(network, data, labels, draws)
        return type(losses)(losses.loss * 0, losses.terms)


class Counting(SoFlow):
    """Its draws depend on how often it was asked, which a resumed run does not know."""

    def draw(self, noise, progress, generator):
        self.asked = getattr(self, "asked", 0) + 1
        return super().draw(noise + self.asked, progress, generator)


class Small(DiT):
    def __init__(self, image_size, channels, num_classes):
        super().__init__(image_size, channels, num_classes, patch=4, width=32, depth=1, heads=2)


class BatchMean(Small):
    def forward(self, x, t, s, labels):
        return super().forward(x - x.mean(0), t, s, labels)


class Timeless(Small):
    def forward(self, x, t, s, labels):
        return super().forward(x, t, torch.zeros_like(s) + (t - t), labels)


class NoNull(Small):
    def __init__(self, image_size, channels, num_classes):
        super().__init__(image_size, channels, num_classes - 1)

    def forward(self, x, t, s, labels):
        return super().forward(x, t, s, labels)


class SinglePrecision(Small):
    def forward(self, x, t, s, labels):
        return super().forward(x, t, s, labels).float()


class Unused(Small):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.extra = torch.nn.Linear(2, 2)


class RandomWeights(Small):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        seed = np.random.default_rng().integers(2**31)
        torch.nn.init.normal_(self.x_embedder.proj.weight, generator=torch.Generator().manual_seed(int(seed)))


class NoForwardMode(Small):
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient

    def forward(self, x, t, s, labels):
        return super().forward(self.Identity.apply(x), t, s, labels)


def digits(**changes):
    """The digits, changed, as a dataset class."""

    class Source:
        channels, image_size, num_classes = 1, 8, 10
        feature_network = "digits-cnn"

        def __init__(self, root, image_size, download):
            source = open_source()
            self.labels, self.fingerprint, self.images = source.labels, source.fingerprint, source.images
            for name, change in changes.items():
                setattr(self, name, change(getattr(self, name)))

        def __len__(self):
            return len(self.images)

        def batch(self, indices):
            return self.images[indices], self.labels[indices]

    return Source


FAULTY = {
    "draws: ordered times": ("objective", UnorderedTimes),
    "draws: a function of the generator": ("objective", GlobalRandomness),
    "losses: no hidden randomness": ("objective", HiddenNoise),
    "losses: finite gradients": ("objective", NoGradient),
    "losses: two workers": ("objective", MeanOfBatch),
    "solution: the identity": ("objective", WrongBoundary),
    "velocity: the solution's": ("objective", WrongVelocity),
    "training: a resumed": ("objective", Counting),
    "output: shape and type": ("network", SinglePrecision),
    "output: samples are independent": ("network", BatchMean),
    "output: depends on": ("network", Timeless),
    "output: knows the null": ("network", NoNull),
    "weights: a function of the seed": ("network", RandomWeights),
    "weights: all are used": ("network", Unused),
    "Jacobian-vector product": ("network", NoForwardMode),
    "batches: uint8": ("dataset", digits(images=lambda images: images / 255)),
    "labels: whole numbers": ("dataset", digits(labels=lambda labels: labels + 1)),
    "fingerprint: a function": ("dataset", digits(fingerprint=lambda digest: f"{np.random.default_rng().random()}")),
}


@pytest.fixture
def config_of(monkeypatch):
    """A function (kind, class) → configuration with the class as plug-in."""
    module = types.ModuleType("faulty_lab")
    monkeypatch.setitem(sys.modules, "faulty_lab", module)

    def make(kind, plugin):
        plugin.Config = Config
        name = f"Plugin{id(plugin)}"
        setattr(module, name, plugin)
        return parse({kind: {"name": f"faulty_lab:{name}"}})

    return make


@pytest.mark.parametrize("law", FAULTY)
def test_a_fault_fails_the_check_that_is_about_it(law, config_of):
    kind, plugin = FAULTY[law]
    (check,) = (check for check in checks(config_of(kind, plugin), kind) if str(check).startswith(law))
    with pytest.raises((AssertionError, IndexError, RuntimeError)) as error:
        check()
    assert str(error.value)


def test_every_check_has_a_fault():
    tested = tuple(FAULTY)
    missing = {
        description
        for table in KINDS.values()
        for description in table
        if not description.startswith(tested) and description not in ("losses: a finite value per sample",)
    }
    assert missing == {"output: finite in bfloat16"}


def test_the_program_lists_what_passed_and_failed(capsys, config_of):
    assert main(["network", "my_lab:TinyNetwork"]) == 0
    assert "passed  Jacobian-vector product: exact\n" in capsys.readouterr().out
    name = config_of("network", Unused).network.name
    assert main(["network", name]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        "FAILED  weights: all are used: not used, which DistributedDataParallel refuses: extra.weight, extra.bias"
        in lines
    )
    assert lines[-1] == f"{name}: 1 of 9 checks failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: python -m soflow.testing objective|network|dataset PACKAGE.MODULE:NAME"),
        (["network", "nowhere:Net"], "error: network.name = nowhere:Net: there is no module nowhere"),
        (["dataset", "cifar10"], "error: "),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)
