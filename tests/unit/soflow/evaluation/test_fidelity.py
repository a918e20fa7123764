"""Evaluation: known answers against torch-fidelity's public interface, the shipped weights, the cache, bad input."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_fidelity
from helpers import REPOSITORY
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from experiments import train_feature_network
from experiments.reference_statistics import ReferenceConfig, write_statistics
from experiments.train_feature_network import RECIPES, accuracy, read_split, train
from orchestration.preflight import check_inputs
from soflow import codecs, files
from soflow.config import override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import DataError
from soflow.data.in_memory import InMemorySource
from soflow.data.registry import SOURCES
from soflow.evaluation import feature_networks, metrics, reference
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.evaluation.moments import Workers
from soflow.evaluation.registry import FEATURE_NETWORKS, WEIGHTS, metadata

CPU = torch.device("cpu")
CONFIG = parse({})


class Images(Dataset):
    """What torch_fidelity.calculate_metrics takes: one uint8 tensor per image."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return open_source(CONFIG.dataset)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def evaluator(digits, cache):
    return Evaluator(digits, CONFIG, CPU, cache)


def all_of(source):
    images, labels = source.batch(np.arange(len(source)))
    return torch.tensor(images), torch.tensor(labels)


def measure(evaluator, images, labels=None):
    """All images in one batch."""
    return evaluator.evaluate([Batch(torch.arange(len(images)), images, labels)])


def noisy(images, level, seed=0):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + level * noise).clamp(0, 255).round().to(torch.uint8)


def read_fashion():
    try:
        return read_split("fashion-cnn")
    except DataError as error:
        pytest.skip(f"Fashion-MNIST is not installed: {error}")


def test_fid_and_kid_equal_those_of_calculate_metrics(evaluator, digits):
    images, _ = all_of(digits)
    generated = noisy(images, 40)[:1500]
    found = measure(evaluator, generated)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=Images(images),
        feature_extractor="digits-cnn",
        fid=True,
        kid=True,
        kid_subsets=10,
        kid_subset_size=1000,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert set(found) == {"fid", "kid", "kid_error"}


def test_precision_recall_and_inception_score_equal_those_of_calculate_metrics(digits, cache):
    images, _ = all_of(digits)
    generated = noisy(images, 40)[:1500]
    config = parse({"evaluation": {"precision_recall": True, "inception_score": True}})
    found = measure(Evaluator(digits, config, CPU, cache), generated)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=Images(images),
        feature_extractor="digits-cnn",
        prc=True,
        isc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert 0.1 < expected["precision"] < 0.9  # neither of them says nothing
    assert 0.1 < expected["recall"] < 0.9
    # Features of batches of another size may differ in their last bit, and one image then changes sides.
    assert found["precision"] == pytest.approx(expected["precision"], abs=1 / 1500 + 1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1 / 1797 + 1e-6)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert set(found) == {"fid", "kid", "kid_error", "precision", "recall", "density", "coverage", "inception_score"}


def test_fid_alone_is_that_of_the_whole_evaluation(evaluator, digits):
    generated = noisy(all_of(digits)[0], 20)
    batch = Batch(torch.arange(len(generated)), generated)
    assert evaluator.fid([batch]) == evaluator.evaluate([batch])["fid"]


def test_images_may_come_in_any_order_and_in_any_parts(evaluator, digits):
    """Metrics that draw images at random do so by their places, not by when they came."""
    images, labels = all_of(digits)
    images = noisy(images, 20)
    parts = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(500)
    found = evaluator.evaluate([Batch(places, images[places], labels[places]) for places in parts])
    expected = measure(evaluator, images, labels)
    # Parts of another size change the last bits of float32 features, and with them the metrics.
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_features_are_kept_of_10000_images_at_most_and_statistics_of_all(monkeypatch, digits, tmp_path):
    whole = Evaluator(digits, CONFIG, CPU, tmp_path / "whole").reference
    monkeypatch.setattr(reference, "MANY", 1000)
    some = Evaluator(digits, CONFIG, CPU, tmp_path / "some").reference
    assert some.features.shape == (1000, 64)
    assert whole.features.shape == (1797, 64)
    rows = {row.numpy().tobytes() for row in whole.features}
    assert {row.numpy().tobytes() for row in some.features} <= rows
    assert not torch.equal(some.features, whole.features[:1000])  # a folder's images come class by class
    for name in ("mu", "sigma"):
        assert np.array_equal(some.statistics[name], whole.statistics[name])
    assert some.floor["fid_floor"] == whole.floor["fid_floor"]
    assert some.floor["kid_floor"] != whole.floor["kid_floor"]


def test_a_source_s_statistics_are_those_of_its_features(evaluator):
    features = evaluator.reference.features.double().numpy()
    found = evaluator.reference.statistics
    # Both sum 1,797 float64 values of order 1 in another order.
    assert np.abs(found["mu"] - features.mean(0)).max() < 1e-13
    assert np.abs(found["sigma"] - np.cov(features, rowvar=False)).max() < 1e-12


def test_latents_are_compared_as_the_images_that_their_autoencoder_makes(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    for name in ("first", "second"):
        vae = diffusers.AutoencoderKL(
            block_out_channels=(2, 2, 2, 2), layers_per_block=1, latent_channels=4, norm_num_groups=1, **blocks
        )
        vae.save_pretrained(tmp_path / name)
    random = np.random.default_rng(0)
    moments = np.abs(random.normal(size=(20, 8, 2, 2))).astype(np.float32)
    source = InMemorySource(moments, np.arange(20) % 10, num_classes=10)
    projection = torch.randn(3 * 16 * 16, 768, generator=torch.Generator().manual_seed(0))

    def features_of(images):
        assert images.shape[1:] == (3, 16, 16)
        return images.flatten(1).float() @ projection  # CLIP's weights cannot be had everywhere

    def measured(vae):
        dataset = {"name": "latents", "root": "unused.h5", "image_size": 16, "vae": str(tmp_path / vae)}
        evaluation = {"feature_network": "clip"}  # has fewer features than Inception
        config = parse({"dataset": dataset, "network": {"name": "DiT-XXS/2"}, "evaluation": evaluation})
        found = reference.from_data(source, config, features_of, Workers(CPU), tmp_path / "cache", ())
        return found, features_of(codecs.build(config.dataset, CPU).images(torch.tensor(moments)))

    for i, vae in enumerate(("first", "second", "first")):
        found, expected = measured(vae)
        assert torch.equal(found.features, expected)
        assert found.facts["reference"] == "decoded latents"
        assert len(list((tmp_path / "cache").iterdir())) == min(i + 1, 2)


@pytest.mark.parametrize("name", ["digits-cnn", "fashion-cnn"])
def test_the_registry_knows_the_layers_widths(name):
    info = FEATURE_NETWORKS[name]
    network = feature_networks.load(name, [info.layer, info.logits], feature_networks.weights_path(name), CPU)
    layers = network(torch.zeros(2, *info.image_shape, dtype=torch.uint8))
    assert [layer.shape for layer in layers] == [(2, info.num_features), (2, info.num_logits)]


def test_evaluation_repeats_exactly_and_leaves_random_numbers_alone(evaluator, digits, cache):
    generated = noisy(all_of(digits)[0], 20)
    state = torch.get_rng_state()
    first = measure(evaluator, generated)
    Evaluator(digits, CONFIG, CPU, cache)
    assert measure(evaluator, generated) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_real_images_have_distance_zero_and_their_own_classes(evaluator, digits):
    images, labels = all_of(digits)
    found = measure(evaluator, images, labels)
    assert found["fid"] == pytest.approx(0, abs=1e-4)
    assert found["class_consistency"] >= 0.99
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert measure(evaluator, images, shuffled)["class_consistency"] == pytest.approx(0.1, abs=0.03)


def test_fid_and_kid_grow_with_noise(evaluator, digits):
    images, _ = all_of(digits)
    found = [measure(evaluator, noisy(images, level)) for level in (2, 8, 16, 32, 128)]
    for name in ("fid", "kid"):
        values = [each[name] for each in found]
        assert values == sorted(values)
    assert found[-1]["fid"] > 100 * evaluator.floor()["fid_floor"]


def test_lost_classes_and_lost_variety_cost_more_than_the_floor(evaluator, digits):
    images, labels = all_of(digits)
    floor = evaluator.floor()["fid_floor"]
    assert measure(evaluator, images[labels != 3])["fid"] > 10 * floor
    one_each = torch.stack([images[labels == digit][0] for digit in range(10)])
    assert measure(evaluator, one_each[labels])["fid"] > 10 * floor


def test_floor_is_positive_and_far_above_rounding(evaluator):
    floor = evaluator.floor()
    assert 0.01 < floor["fid_floor"] < 0.2
    assert set(floor) == {"fid_floor", "kid_floor"}


def test_the_kid_floor_varies_around_zero():
    """Over all splits of N features into halves, KID's estimate has mean 0: a pair within a half is as likely as one
    across to be any pair. The mean over 200 random orders of the rows is within four standard errors of it. Halves
    balanced over classes miss it by far more."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    features = torch.from_numpy(random.normal(size=(10, 6))[labels] + 0.1 * random.normal(size=(120, 6))).float()
    floors, balanced = [], []
    for _ in range(200):
        order = random.permutation(120)
        floors.append(reference._kid_floor(features[order]))
        half = reference._halves(labels[order])
        balanced.append(metrics.kid(features[order[half == 0]], features[order[half == 1]])[0])
    error = np.std(floors, ddof=1) / math.sqrt(200)
    assert abs(np.mean(floors)) < 4 * error
    assert np.mean(balanced) < -8 * error


def test_the_error_of_kid_is_that_of_a_jackknife_and_of_its_subsets():
    random = torch.Generator().manual_seed(0)
    generated, real = (torch.randn(n, 5, generator=random, dtype=torch.float64) for n in (30, 40))

    def distance(features: torch.Tensor) -> float:
        """The unbiased estimate from all images."""
        own, other, mixed = ((a @ b.mT / 5 + 1) ** 3 for a, b in ((features, features), (real, real), (features, real)))
        means = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (own, other)]
        return (means[0] + means[1] - 2 * mixed.mean()).item()

    without = np.array([distance(torch.cat([generated[:i], generated[i + 1 :]])) for i in range(30)])
    by_images = 29 / 30 * ((without - without.mean()) ** 2).sum()
    assert metrics.kid_error(generated, real, 0.0) == pytest.approx(math.sqrt(by_images), rel=1e-12)
    assert metrics.kid_error(generated, real, 0.3) == pytest.approx(math.sqrt(by_images + 0.3**2 / 9), rel=1e-12)


def test_the_error_of_kid_is_its_deviation_between_sets_of_images(monkeypatch):
    """The variance of 400 sets is known to 7 %, the mean squared error to 2.4 % (9 degrees of freedom): 5 deviations.

    In random order, as torch-fidelity draws the same subsets each time.
    """
    monkeypatch.setattr(metrics, "KID_SUBSET_SIZE", 60)
    random = torch.Generator().manual_seed(1)
    real, found = torch.randn(300, 8, generator=random), []
    for _ in range(400):
        generated = 1.2 * torch.randn(200, 8, generator=random) + 0.2
        shuffled = real[torch.randperm(300, generator=random)]
        distance, spread = metrics.kid(generated, shuffled)
        found.append((distance, metrics.kid_error(generated, shuffled, spread)))
    distances, errors = np.array(found).T
    assert np.mean(errors**2) / np.var(distances, ddof=1) == pytest.approx(1, abs=0.38)


def test_the_kid_floor_ignores_classes_and_the_fid_floor_balances_them(digits, tmp_path):
    images, labels = all_of(digits)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    sources = [InMemorySource(images.numpy(), classes.numpy(), 10) for classes in (labels, shuffled)]
    first, second = (
        Evaluator(source, CONFIG, CPU, tmp_path / str(number)).floor() for number, source in enumerate(sources)
    )
    assert first["kid_floor"] == second["kid_floor"]
    assert first["fid_floor"] < second["fid_floor"]


def test_protocol_names_all_that_the_numbers_depend_on(evaluator, digits):
    assert evaluator.protocol() == {
        "feature_network": "digits-cnn",
        "feature_weights_sha256": files.sha256(WEIGHTS / "digits-cnn.safetensors")[:12],
        "num_samples": 2000,
        "labels": "balanced",
        "reference": "data",
        "num_references": 1797,
        "reference_fingerprint": digits.fingerprint[:12],
        "kid_subset_size": 1000,
        "torch_fidelity_version": torch_fidelity.__version__,
    }


def test_kid_subsets_shrink_to_few_images(evaluator, digits):
    assert np.isfinite(list(measure(evaluator, all_of(digits)[0][:16]).values())).all()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 1, 8, 8), None, "uint8"),
        (torch.full((4, 1, 8, 8), torch.nan), None, "uint8"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, r"\(N, \*\(1, 8, 8\)\), not \(4, 3, 8, 8\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), None, "shape"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, "at least 2"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "labels"),
    ],
)
def test_bad_images_and_labels_are_named(evaluator, images, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(evaluator, images, labels)


@pytest.mark.parametrize("name", ["vgg", "fashion-cnn"])
def test_a_feature_network_that_cannot_serve_is_named(digits, tmp_path, name):
    with pytest.raises(ConfigError, match=f"evaluation.feature_network = {name}: "):
        Evaluator(digits, parse({"evaluation": {"feature_network": name}}), CPU, tmp_path)


def test_a_data_set_too_small_for_halves_is_refused(tmp_path):
    source = InMemorySource(np.zeros((3, 1, 8, 8), np.uint8), np.zeros(3, np.int64), num_classes=10)
    with pytest.raises(ValueError, match="3 images"):
        Evaluator(source, CONFIG, CPU, tmp_path)


def test_cache_is_used_the_second_time_and_changes_with_the_data(digits, tmp_path, monkeypatch):
    images, labels = (array[:200] for array in digits.batch(np.arange(len(digits))))
    first = Evaluator(InMemorySource(images, labels, 10), CONFIG, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    Evaluator(InMemorySource(images[:199], labels[:199], 10), CONFIG, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(reference, "_measure", lambda *args: pytest.fail("the cache was not used"))
    second = Evaluator(InMemorySource(images, labels, 10), CONFIG, CPU, tmp_path)
    generated = noisy(torch.tensor(images), 30)
    assert measure(second, generated) == measure(first, generated)
    assert second.floor() == first.floor()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "tensors missing"])
def test_a_damaged_cache_file_is_computed_again(digits, tmp_path, damage, caplog):
    floor = Evaluator(digits, CONFIG, CPU, tmp_path).floor()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-1000] ^= 1
    else:
        content = b"" if damage == "empty" else b"\x02\0\0\0\0\0\0\0{}"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Evaluator(digits, CONFIG, CPU, tmp_path).floor() == floor
    assert f"{path}: damaged cache file" in caplog.text
    caplog.clear()
    assert Evaluator(digits, CONFIG, CPU, tmp_path).floor() == floor
    assert not caplog.text
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_only_warns(digits, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert Evaluator(digits, CONFIG, CPU, tmp_path / "file").floor()["fid_floor"] > 0
    assert "cannot be written" in caplog.text


def test_evaluation_prints_nothing(digits, tmp_path, capfd):
    measure(Evaluator(digits, CONFIG, CPU, tmp_path), all_of(digits)[0][:100])
    assert capfd.readouterr() == ("", "")


def test_every_data_set_has_a_feature_network_of_its_shape():
    for name, source in SOURCES.items():
        info = FEATURE_NETWORKS[source.feature_network]
        assert source.closed_form or info.dataset in (None, name)
        assert info.image_shape in (None, (source.channels, source.image_size, source.image_size))


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 1e6
    assert {path.stem for path in WEIGHTS.iterdir()} == set(RECIPES) - {"images"}


def load_shipped(name):
    return feature_networks.load(name, ["logits"], feature_networks.weights_path(name), CPU)


def test_digits_cnn_is_as_accurate_as_its_weights_state(digits):
    split = read_split("digits-cnn")
    stated = metadata(feature_networks.weights_path("digits-cnn"))
    assert len(split.test_labels) == 360
    assert (
        accuracy(load_shipped("digits-cnn").classifier, split.test_images, split.test_labels) == stated["test_accuracy"]
    )
    assert stated["test_accuracy"] >= 0.985
    assert stated["data_sha256"] == digits.fingerprint
    assert {name: stated[name] for name in ("seed", "steps")} == {"seed": 0, "steps": RECIPES["digits-cnn"].steps}


def test_fashion_cnn_is_as_accurate_as_its_weights_state():
    split = read_fashion()
    stated = metadata(feature_networks.weights_path("fashion-cnn"))
    found = accuracy(load_shipped("fashion-cnn").classifier, split.test_images, split.test_labels)
    assert found == pytest.approx(stated["test_accuracy"], abs=1e-4)  # one image may turn on another processor
    assert stated["test_accuracy"] >= 0.915
    assert split.facts.items() <= stated.items()


def test_fashion_is_evaluated_with_its_own_network(tmp_path):
    split = read_fashion()
    source = InMemorySource(split.train_images[:4000].numpy(), split.train_labels[:4000].numpy(), 10)
    evaluator = Evaluator(source, parse({"dataset": {"name": "fashion_mnist"}}), CPU, tmp_path)
    unseen = measure(evaluator, split.test_images[:2000], split.test_labels[:2000])
    assert unseen["class_consistency"] > 0.9
    assert unseen["fid"] < 10 * evaluator.floor()["fid_floor"]
    assert measure(evaluator, noisy(split.test_images[:2000], 30))["fid"] > 2 * unseen["fid"]


def test_digits_cnn_trains_the_same_from_the_same_seed(monkeypatch, capsys):
    split = read_split("digits-cnn")
    monkeypatch.setitem(RECIPES, "digits-cnn", type(RECIPES["digits-cnn"])(steps=20, batch_size=64))
    first, second, other = (train("digits-cnn", split, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert "step 20/20" in capsys.readouterr().out


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Folder of colored images in three classes, and a feature network trained on them by the program."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for label in range(3):
        (folder / "images" / f"class{label}").mkdir(parents=True)
        for i in range(30):
            pixels = random.integers(0, 60, (12, 12, 3), np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(folder / "images" / f"class{label}" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "images", type(RECIPES["images"])(steps=20, batch_size=32))
        program = ["train_feature_network.py", "images", "--root", str(folder / "images"), "--out", str(folder)]
        patch.setattr(sys, "argv", program)
        assert train_feature_network.main() == 0
    return folder / "images", folder / "images.safetensors"


def own_config(root: Path, path: Path, **dataset):
    dataset = {"name": "image_folder", "root": str(root)} | dataset
    return parse({"dataset": dataset, "network": {"name": "DiT-XXS/4"}, "evaluation": {"feature_network": str(path)}})


def test_own_images_are_evaluated_with_their_own_network(own, tmp_path):
    config = own_config(*own)
    source = open_source(config.dataset)
    evaluator = Evaluator(source, config, CPU, tmp_path)
    images, labels = (torch.tensor(values) for values in source.batch(np.arange(len(source))))
    same = measure(evaluator, images, labels)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["class_consistency"] > 0.9
    assert measure(evaluator, 255 - images, labels)["fid"] > 10 * evaluator.floor()["fid_floor"]
    assert evaluator.protocol()["feature_network"] == "images.safetensors"
    assert metadata(own[1])["test_accuracy"] > 0.9
    # The classes of a part of the data may be numbered in another way.
    half = InMemorySource(images[::2].numpy(), labels[::2].numpy(), 3)
    assert "class_consistency" not in measure(Evaluator(half, config, CPU, tmp_path), images, labels)


def test_statistics_are_refused_where_the_feature_network_has_other_weights(own, tmp_path):
    dataset = {"name": "image_folder", "root": str(own[0])}
    values = {"dataset": dataset, "evaluation": {"feature_network": str(own[1])}, "storage": tmp_path}
    [path] = write_statistics(ReferenceConfig.model_validate(values | {"out": tmp_path / "own.npz"}))
    with_file = parse(override(to_dict(own_config(*own)), {"evaluation.reference": str(path)}))
    source = open_source(with_file.dataset)
    images, labels = (torch.tensor(values) for values in source.batch(np.arange(len(source))))
    evaluator = Evaluator(source, with_file, CPU, tmp_path)
    assert measure(evaluator, images, labels)["fid"] == pytest.approx(0, abs=1e-6)
    # A network of the same name and shape with one other weight.
    weights = safetensors.torch.load_file(own[1])
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / own[1].name
    changed = weights | {"head.bias": weights["head.bias"] + 1}
    safetensors.torch.save_file(changed, other, {"made": json.dumps(metadata(own[1]))})
    with_other = parse(override(to_dict(with_file), {"evaluation.feature_network": str(other)}))
    expected = rf"{path}: was made with other weights of the feature network \({files.sha256(own[1])[:12]}…, not "
    with pytest.raises(ConfigError, match=expected):
        Evaluator(source, with_other, CPU, tmp_path)
    with pytest.raises(ConfigError, match=expected):  # before any worker starts
        check_inputs(with_other)
    check_inputs(with_file)


def test_a_feature_network_s_file_is_checked_at_the_start(own, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"other")
    shipped = feature_networks.weights_path("digits-cnn")
    missing = own_config(own[0], tmp_path / "none.safetensors")  # sampling from such a run needs no features
    with pytest.raises(ConfigError, match=r"none\.safetensors: there is no such file; experiments"):
        check_inputs(missing)
    for path, message in (
        (tmp_path / "other.safetensors", "is no feature network made by experiments/train_feature_network.py"),
        (shipped, "is no feature network made by .*image_shape"),
        (
            tmp_path / "vgg.pt",
            "must be one of clip, digits-cnn, dinov2, fashion-cnn, inception, or a .safetensors file",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^evaluation.feature_network = {path}: {message}"):
            own_config(own[0], path)
    with pytest.raises(ConfigError, match=r"takes images of shape \(3, 12, 12\), not \(3, 8, 8\)"):
        own_config(*own, image_size=8)


def test_a_classifier_needs_two_classes_of_two_images(own, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "1.png")
    with pytest.raises(DataError, match="needs two classes or more"):
        read_split("images", tmp_path)


def test_many_small_classes_are_tested_with_an_image_each(tmp_path):
    for label in range(12):
        (tmp_path / f"{label:02d}").mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (20 * label, 0, 0)).save(tmp_path / f"{label:02d}" / f"{i}.png")
    split = read_split("images", tmp_path)
    assert (len(split.train_labels), len(split.test_labels)) == (24, 12)
    assert set(split.test_labels.tolist()) == set(range(12))


def test_training_script_explains_itself_at_once():
    script = REPOSITORY / "experiments" / "train_feature_network.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=10, check=True)
    assert "digits-cnn" in shown.stdout
    assert "--seed" in shown.stdout


def test_registration_may_be_repeated():
    importlib.reload(feature_networks)


def test_a_registered_extractor_names_what_it_takes():
    with pytest.raises(ValueError, match=r"digits-cnn takes uint8 images of shape \(1, 8, 8\)"):
        load_shipped("digits-cnn")(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


@pytest.fixture
def _no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        assert 0 < kwargs["timeout"] < 60
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))


@pytest.mark.usefixtures("_no_network")
def test_inception_without_weights_is_one_line_with_the_remedy(digits, tmp_path):
    config = parse({"evaluation": {"feature_network": "inception"}})
    with pytest.raises(ConfigError) as error:
        Evaluator(digits, config, CPU, tmp_path)
    message = str(error.value)
    assert message.startswith("evaluation.feature_weights = None: cannot fetch them to ")
    assert "network is unreachable" in message
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    assert "digits-cnn" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_feature_weights_that_are_missing_or_something_else_are_named(digits, tmp_path):
    path = tmp_path / "weights.pth"
    config = parse({"evaluation": {"feature_network": "inception", "feature_weights": str(path)}})
    unsafe = torch_bytes(Trap(tmp_path / "sprung"))
    for content in (None, b"not a checkpoint", torch_bytes({"fc.bias": torch.zeros(3)}), unsafe):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            Evaluator(digits, config, CPU, tmp_path)
        assert str(error.value).startswith(f"evaluation.feature_weights = {path}: no")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Creates a file when it is unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.usefixtures("_no_network")
def test_a_damaged_download_of_inception_is_refused(monkeypatch):
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda url, timeout: contextlib.closing(io.BytesIO(b"<html>sign in</html>"))
    )
    with pytest.raises(ConfigError, match="the download is damaged"):
        feature_networks.weights_path("inception")


@pytest.mark.slow
def test_inception_measures_grey_images_from_a_given_file(digits, tmp_path, monkeypatch):
    # The published weights cannot be shipped; random ones take the same path.
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        (tmp_path / "empty.pth").write_bytes(torch_bytes({}))
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "empty.pth"))
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    images, labels = (array[:4] for array in digits.batch(np.arange(len(digits))))
    settings = {"feature_network": "inception", "feature_weights": str(path), "inception_score": True}
    config = parse({"evaluation": settings})
    evaluator = Evaluator(InMemorySource(images, labels, 10), config, CPU, tmp_path / "cache")
    assert evaluator.reference.features.shape == (4, 2048)
    gray = torch.tensor(images)
    layers = evaluator._layers(gray)
    assert layers["logits_unbiased"].shape == (4, 1008)
    assert torch.equal(layers["2048"], network(gray.repeat(1, 3, 1, 1))[0])
    assert set(measure(evaluator, gray, torch.tensor(labels))) == {"fid", "kid", "kid_error", "inception_score"}
    assert evaluator.protocol()["feature_weights_sha256"] == files.sha256(path)[:12]
