"""Training options: what each changes, and that the rest stays as it was."""

from __future__ import annotations

import pytest
import torch
from helpers import CPU, relative_error, tiny_config

from soflow.data import open_source
from soflow.training import checkpoints
from soflow.training.trainer import Trainer

UNET = {"name": "U-Net-XS"}


@pytest.fixture(scope="module")
def digits():
    return open_source(tiny_config().dataset)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def trained(digits, steps: int = 3, **sections) -> Trainer:
    trainer = Trainer(tiny_config(**sections), digits, CPU)
    trainer.advance(steps)
    return trainer


@pytest.mark.parametrize(("dtype", "every"), [("float32", 1), ("float64", 1), ("float64", 2)])
def test_the_average_follows_its_formula(dtype, every, digits):
    decay = 0.9
    config = tiny_config(training={"total_steps": 6, "ema_decay": decay, "ema_dtype": dtype, "ema_every": every})
    trainer = Trainer(config, digits, CPU)
    seen = []
    for _ in range(6):
        trainer.advance(1)
        seen.append(weights(trainer).double())
    expected = seen[every - 1]  # the first update takes the weights as they are
    for n, value in enumerate(seen[2 * every - 1 :: every], start=1):
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
    average = torch.cat([parameter.flatten() for parameter in trainer.ema.module.parameters()])
    assert average.dtype == getattr(torch, dtype)
    # Six roundings at the most, half a unit in the last place each.
    assert relative_error(average, expected) < 6 * torch.finfo(average.dtype).eps
    used = trainer.averaged_network()
    assert not used.training
    assert all(parameter.dtype == torch.float32 for parameter in used.parameters())


@pytest.mark.parametrize("network", [{"name": "DiT-XXS/4"}, UNET | {"dropout": 0.3}], ids=["DiT", "U-Net"])
@pytest.mark.parametrize("name", ["soflow", "meanflow"])
def test_recomputing_activations_changes_nothing(name, network, digits):
    plain, saving = (
        trained(digits, objective={"name": name}, network=network | {"gradient_checkpointing": on})
        for on in (False, True)
    )
    assert torch.equal(weights(plain), weights(saving))


def test_recomputing_activations_keeps_fewer_of_them(digits):
    def saved_bytes(on: bool) -> int:
        config = tiny_config(network={"name": "DiT-XXS/4", "gradient_checkpointing": on})
        trainer, total = Trainer(config, digits, CPU), 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        x = torch.randn(8, 1, 8, 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.network(x, torch.rand(8), torch.zeros(8), torch.zeros(8, dtype=torch.int64))
        return total

    assert saved_bytes(True) < saved_bytes(False) / 2


@pytest.mark.parametrize("name", ["soflow", "meanflow"])
def test_a_run_with_dropout_and_augmentation_resumes_bit_for_bit(name, digits, tmp_path):
    options = {
        "objective": {"name": name},
        "network": UNET | {"dropout": 0.3},
        "dataset": {"augmentation": 0.5},
        "training": {"total_steps": 4, "batch_size": 8, "ema_every": 2, "ema_dtype": "float64"},
    }
    whole = trained(digits, 4, **options)
    first = trained(digits, 2, **options)
    path = checkpoints.save(first.state_dict(), tmp_path, 2)
    torch.manual_seed(77)  # whatever the new process did before
    resumed = Trainer(first.config, digits, CPU)
    resumed.load_state_dict(checkpoints.load(path))
    resumed.advance(2)
    assert torch.equal(weights(resumed), weights(whole))
    pairs = zip(resumed.ema.module.parameters(), whole.ema.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_network_is_told_how_its_images_were_augmented(digits):
    config = tiny_config(network=UNET, dataset={"augmentation": 1.0})
    trainer, seen = Trainer(config, digits, CPU), []
    trainer.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    trainer.advance(1)
    data, labels, _ = seen[0]
    classes = labels[:, 0].long()
    images, expected = digits.batch(trainer.inputs.order.indices(0))
    assert torch.equal(classes, torch.from_numpy(expected))
    assert labels.shape == (8, 10)
    assert (labels[:, 1:] != 0).any()
    assert not torch.allclose(data, torch.from_numpy(images) / 127.5 - 1)


def test_bfloat16_trains_about_as_float32_does(digits):
    full, mixed = (trained(digits, 6, training={"total_steps": 6, "precision": name}) for name in ("fp32", "bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in mixed.network.parameters())
    assert torch.isfinite(weights(mixed)).all()
    assert not torch.equal(weights(full), weights(mixed))


@pytest.mark.slow  # C++ takes half a minute, and minutes for a transformer
@pytest.mark.parametrize("network", ["Perceptron", pytest.param("one_block", marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["soflow", "meanflow"])
def test_a_compiled_network_trains_alike(name, network, digits):
    eager, compiled = (
        trained(
            digits,
            6,
            objective={"name": name},
            network={"name": f"tests.networks:{network}"},
            training={"total_steps": 6, "compile": on},
            seed=1,
        )
        for on in (False, True)
    )
    start = weights(Trainer(eager.config, digits, CPU))
    # Fused kernels sum in another order: a few hundred roundings of 2^-24, which Adam's division by the gradient's
    # size lets through, against steps of the learning rate.
    assert relative_error(weights(compiled) - start, weights(eager) - start) < 0.01
    assert not any(name.startswith("_orig_mod") for name in compiled.state_dict()["network"])
