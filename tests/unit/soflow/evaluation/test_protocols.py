"""Named FID protocols: rounding, classes, references by their hash, and sampling errors of FID."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import CPU, tiny_config
from scipy.linalg import sqrtm

import soflow
from soflow.codecs.base import to_uint8
from soflow.config_base import ConfigError
from soflow.evaluation.generated import _labels
from soflow.evaluation.groups import estimate, joined, moments_of, places_of
from soflow.evaluation.metrics import density_coverage
from soflow.evaluation.moments import Moments
from soflow.evaluation.reference_files import read_configured, write_npz
from soflow.files import sha256


def test_each_protocol_rounds_its_way():
    """Levels 127.4, 127.5, 127.6 and 126.5: ties go to the even level, down, and up."""
    pixels = torch.tensor([127.4, 127.5, 127.6, 126.5], dtype=torch.float64) / 127.5 - 1
    assert to_uint8(pixels).tolist() == [127, 128, 128, 126]
    assert to_uint8(pixels, "adm").tolist() == [127, 127, 127, 126]
    assert to_uint8(pixels, "jax").tolist() == [127, 128, 128, 127]
    extremes = torch.tensor([-3.0, -1.0, 1.0, 3.0, float("nan")])
    for protocol in ("torch-fidelity", "adm", "jax"):
        assert to_uint8(extremes, protocol).tolist() == [0, 0, 255, 255, 0]


@pytest.mark.parametrize("protocol", ["adm", "jax"])
def test_rounding_is_the_formula_of_its_code(protocol):
    """guided-diffusion: ((x + 1) * 127.5).clamp(0, 255).to(uint8); MeanFlow: clip(127.5 x + 128, 0, 255) as uint8."""
    x = torch.linspace(-1.1, 1.1, 4001, dtype=torch.float64)
    expected = {"adm": (x + 1) * 127.5, "jax": 127.5 * x + 128}[protocol].clamp(0, 255).to(torch.uint8)
    differing = (to_uint8(x, protocol) != expected).sum().item()
    assert differing <= 2  # of 4001, at the middle between levels, where the last bit decides


def test_random_classes_are_drawn_independently_of_the_number_of_images():
    config = tiny_config(evaluation={"labels": "random", "num_samples": 4000})
    labels = _labels(config, [1] * 10)
    counts = np.bincount(labels, minlength=10)
    assert (np.abs(counts - 400) < 6 * np.sqrt(4000 * 0.1 * 0.9)).all()  # six standard deviations of each count
    assert len(set(counts.tolist())) > 1  # not balanced
    assert torch.equal(labels, _labels(config, [1] * 10))
    other = config.model_copy(update={"seed": 1})
    assert not torch.equal(labels, _labels(other, [1] * 10))


def reference_file(path, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(200, 64)) + seed
    statistics = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}
    write_npz(path, statistics, {"feature_network": "digits-cnn"})
    return statistics


def test_a_swapped_reference_is_refused(tmp_path):
    path = tmp_path / "reference.npz"
    reference_file(path)
    known = sha256(path)
    config = tiny_config(evaluation={"reference": path, "reference_sha256": known[:8]})
    assert set(read_configured(config)) == {"mu", "sigma"}
    reference_file(path, seed=1)
    with pytest.raises(ConfigError, match=rf"is another file than evaluation\.reference_sha256 = {known[:8]} says, it"):
        read_configured(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "adm"}, "protocol = adm: needs reference, "),
        ({"protocol": "jax", "reference": "a.npz"}, "protocol = jax: needs reference_sha256, "),
        ({"reference_sha256": "short"}, "evaluation.reference_sha256 = short: "),
        ({"protocol": "clean"}, "evaluation.protocol = clean: must be 'torch-fidelity', 'adm' or 'jax'"),
        ({"labels": "random"}, "evaluation.labels = random: must be balanced with dataset.conditional = False"),
    ],
)
def test_protocols_that_are_not_complete_are_refused(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_config(evaluation=values, dataset={"conditional": "labels" not in values})
    assert "\n" not in str(caught.value)


def test_two_protocols_measure_the_same_images_in_one_pass(tmp_path):
    config = soflow.load_config(
        {"training.total_steps": 2, "training.batch_size": 8, "evaluation.num_samples": 64, "evaluation.nfe": [1]}
    )
    model = soflow.train(config, tmp_path / "run", progress=False).model(device="cpu")
    path = tmp_path / "reference.npz"
    reference_file(path)
    own = {"reference": str(path), "reference_sha256": sha256(path)}
    calls = []
    model.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))

    def evaluator(protocol):
        changed = config.evaluation.model_validate(config.evaluation.model_dump() | own | {"protocol": protocol})
        return model.evaluator(config.model_copy(update={"evaluation": changed}), tmp_path)

    first, second = evaluator("torch-fidelity"), evaluator("adm")
    ((_, _, found),) = model.measure(model.config, first, also=[second])
    assert sum(calls) == 64
    assert found["fid"] == model.evaluate(tmp_path, **own)["fid"]
    assert found["fid@adm"] == model.evaluate(tmp_path, protocol="adm", **own)["fid"]
    assert found["fid@adm"] != found["fid"]
    assert second.protocol()["protocol"] == "adm"
    assert "protocol" not in first.protocol()


# Sampling errors.

DIMENSION, COUNT, GROUPS = 4, 600, 20


def distance(features: np.ndarray) -> float:
    """FID against the standard normal distribution, from its definition in float64."""
    mean, covariance = features.mean(0), np.cov(features, rowvar=False)
    return float(mean @ mean + np.trace(covariance) + DIMENSION - 2 * np.trace(sqrtm(covariance).real))


def groups_of(features: np.ndarray) -> list[Moments]:
    groups = []
    for part in np.split(features, GROUPS):
        moments = Moments(DIMENSION, CPU)
        moments.add(torch.from_numpy(part))
        groups.append(moments)
    return groups


def test_the_sampling_error_is_the_scatter_of_fid_over_sets_of_images():
    """Against 400 sets: the mean of 40 estimates is known to 1/√(2·19·40) = 2.6 %, the scatter to 1/√800 = 3.5 %.

    The jackknife's own bias is of the order of 1 / GROUPS. Together below 20 % with six deviations.
    """
    random = np.random.default_rng(0)
    sets = [random.normal(size=(COUNT, DIMENSION)) * 1.3 + 0.2 for _ in range(400)]
    scatter = np.std([distance(features) for features in sets], ddof=1)
    standard = {"mu": np.zeros(DIMENSION), "sigma": np.eye(DIMENSION)}
    found = [estimate(groups_of(features), standard) for features in sets[:40]]
    for one, features in zip(found, sets, strict=False):
        assert one.value == pytest.approx(distance(features), rel=1e-6)  # torch-fidelity takes the root otherwise
    assert np.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(scatter, rel=0.2)


def test_groups_are_random_parts_of_all_images():
    """With 10 classes in turn, 8 groups of 50: each class has 5 images in a group on average, hypergeometric."""
    groups = [places_of(group, 8, 400) for group in range(8)]
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(400))
    for group in groups:
        counts = np.bincount(group % 10, minlength=10)
        assert (np.abs(counts - 5) < 6 * np.sqrt(50 * 0.1 * 0.9)).all()
        assert counts.min() > 0 or (counts == 0).sum() <= 2  # consecutive batches would have whole classes missing
    assert torch.equal(groups[3], places_of(3, 8, 400))


def test_a_group_s_moments_are_kept(tmp_path):
    features = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    made = moments_of(tmp_path / "group.safetensors", lambda: features, 3)
    kept = moments_of(tmp_path / "group.safetensors", lambda: [], 3)
    assert (kept.count, kept.mean.tolist(), kept.scatter.tolist()) == (10, made.mean.tolist(), made.scatter.tolist())
    (tmp_path / "group.safetensors").write_bytes(b"damaged")
    again = moments_of(tmp_path / "group.safetensors", lambda: features, 3)
    assert torch.equal(again.scatter, made.scatter)
    whole = joined([made, made])
    np.testing.assert_allclose(whole.statistics()["mu"], torch.cat(features).double().mean(0).numpy(), rtol=1e-12)


def test_protocols_are_in_a_run_s_facts(tmp_path):
    config = soflow.load_config({"training.total_steps": 1, "evaluation.num_samples": 16, "evaluation.nfe": [1]})
    run = soflow.train(config, tmp_path / "run", progress=False)
    facts = json.loads(next((run.folder / "reports").iterdir()).read_text())["facts"]
    assert facts["fid_labels"] == "balanced"
    assert "fid_protocol" not in facts


# Density and coverage.


def by_definition(generated: np.ndarray, real: np.ndarray, neighbors: int = 5) -> tuple[float, float]:
    """From arXiv 2002.09797, equations 5 and 7, image by image in float64."""
    radii = [np.sort(np.linalg.norm(real - one, axis=1))[neighbors] for one in real]
    inside = np.array(
        [[np.linalg.norm(other - one) < radius for one, radius in zip(real, radii, strict=True)] for other in generated]
    )
    return inside.sum() / (neighbors * len(generated)), inside.any(0).mean()


def test_density_and_coverage_are_those_of_their_definition():
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(60, 3)), random.normal(size=(40, 3)) * 0.8 + 0.3
    found = density_coverage(torch.from_numpy(generated), torch.from_numpy(real))
    density, coverage = by_definition(generated, real)
    assert 0.2 < coverage < 0.95
    assert (found["density"], found["coverage"]) == (
        pytest.approx(density, rel=1e-12),
        pytest.approx(coverage, abs=1e-12),
    )


def test_parts_of_the_distances_change_nothing(monkeypatch):
    random = torch.Generator().manual_seed(0)
    real, generated = torch.randn(50, 4, generator=random), torch.randn(70, 4, generator=random)
    whole = density_coverage(generated, real)
    monkeypatch.setattr("soflow.evaluation.metrics.ROWS", 7)
    assert density_coverage(generated, real) == whole


def test_equal_distributions_are_dense_and_covered():
    """Density 1 on average (the paper's lemma 1); coverage 1 − (1 − …) ≈ 0.97 for five neighbors and equal numbers."""
    random = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(2000, 8, generator=random) for _ in range(2))
    found = density_coverage(generated, real)
    # A generated image is in five neighborhoods on average; 2,000 of them, correlated: within 10 %.
    assert found["density"] == pytest.approx(1, abs=0.1)
    # Of six exchangeable draws, none of 2,000 generated ones is among the nearest five with 1/2^5 = 3.1 %, ± 0.4 %.
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=0.025)
