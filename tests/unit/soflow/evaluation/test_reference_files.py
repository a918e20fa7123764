"""Files of reference statistics: written, read by us and by torch-fidelity, and everything that is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from helpers import CPU, tiny_config

from experiments import reference_statistics
from soflow.config import parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.config import DatasetConfig
from soflow.evaluation import reference_files
from soflow.evaluation.fidelity import Evaluator
from soflow.files import sha256
from soflow.training.run import TrainingRun
from tests.unit.soflow.evaluation.test_fidelity import Images, all_of, measure, noisy, torch_bytes


@pytest.fixture(scope="module")
def digits():
    return open_source(DatasetConfig())


@pytest.fixture(scope="module")
def evaluator(digits, tmp_path_factory):
    return Evaluator(digits, parse({}), CPU, tmp_path_factory.mktemp("cache"))


def configured(path: Path, **evaluation):
    return parse({"evaluation": {"reference": str(path)} | evaluation})


def statistics(dimension: int = 64) -> dict[str, np.ndarray]:
    samples = np.random.default_rng(0).normal(1, 1, (200, dimension))
    return {"mu": samples.mean(0), "sigma": np.cov(samples, rowvar=False)}


def test_npz_files_come_back_as_they_were(tmp_path):
    written = statistics()
    reference_files.write_npz(tmp_path / "folder" / "reference.npz", written, {"feature_network": "digits-cnn"})
    read = reference_files.read_configured(configured(tmp_path / "folder" / "reference.npz"))
    for name, values in written.items():
        assert np.array_equal(read[name], values)
        assert read[name].dtype == np.float64
    with np.load(tmp_path / "folder" / "reference.npz", allow_pickle=False) as file:
        assert json.loads(str(file["made"])) == {"feature_network": "digits-cnn"}


def test_npz_files_of_other_programs_are_read(tmp_path):
    """ADM's hold more arrays, others float32 ones."""
    given = statistics()
    np.savez(tmp_path / "adm.npz", **given, mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=np.zeros((2, 8, 8, 3)))
    np.savez(tmp_path / "float32.npz", **{name: values.astype(np.float32) for name, values in given.items()})
    for name, tolerance in (("adm", 0), ("float32", 1e-6)):
        read = reference_files.read_configured(configured(tmp_path / f"{name}.npz"))
        assert np.abs(read["sigma"] - given["sigma"]).max() <= tolerance


def test_a_run_compares_with_a_file(digits, evaluator, tmp_path):
    """With the data's own statistics in a file FID is what it is against the data, and what needs features is gone."""
    path = tmp_path / "digits.npz"
    reference_files.write_npz(path, evaluator.reference.statistics, {"feature_network": "digits-cnn"})
    from_file = Evaluator(digits, configured(path, inception_score=True), CPU, tmp_path / "cache")
    images, labels = all_of(digits)
    found = measure(from_file, noisy(images, 30), labels)
    expected = measure(evaluator, noisy(images, 30), labels)
    assert set(found) == {"fid", "class_consistency", "inception_score"}
    assert found["fid"] == expected["fid"]
    assert from_file.floor() == {}
    assert not (tmp_path / "cache").exists()  # the data were not looked at
    assert from_file.protocol() == {
        "feature_network": "digits-cnn",
        "feature_weights_sha256": evaluator.weights_sha256[:12],
        "num_samples": 2000,
        "labels": "balanced",
        "reference": "digits.npz",
        "reference_fingerprint": sha256(path)[:12],
        "torch_fidelity_version": torch_fidelity.__version__,
    }
    config = tiny_config(training={"total_steps": 1, "report_every": 1}, evaluation={"reference": str(path)})
    run = TrainingRun(config, digits, tmp_path / "run", CPU, Evaluator(digits, config, CPU, tmp_path / "cache"))
    report = run.advance()
    assert report.facts["fid_reference"] == "digits.npz"
    assert {"fid", "fid_2nfe"} == {name for name in report.metrics if "fid" in name}


def test_torch_fidelity_s_cache_files_are_written_as_it_reads_them(evaluator, digits, tmp_path):
    path = reference_files.write_torch_fidelity(tmp_path, "my-digits", "digits-cnn", evaluator.reference.statistics)
    generated = noisy(all_of(digits)[0], 30)[:1000]
    seen = []

    class MustNotBeRead(Images):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    found = torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=MustNotBeRead(generated),
        input2_cache_name="my-digits",
        cache_root=str(tmp_path),
        feature_extractor="digits-cnn",
        fid=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert not seen
    assert list(tmp_path.iterdir()) == [path]
    # torch-fidelity keeps means in float32.
    expected = measure(evaluator, generated)["fid"]
    assert found["frechet_inception_distance"] == pytest.approx(expected, rel=1e-6)


def test_cache_files_that_torch_fidelity_wrote_are_read(evaluator, digits, tmp_path):
    images, _ = all_of(digits)
    generated = noisy(images, 30)[:1000]
    expected = torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=Images(images),
        input2_cache_name="written-there",
        cache_root=str(tmp_path),
        feature_extractor="digits-cnn",
        fid=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    path = tmp_path / "written-there-digits-cnn-stat-fid-features.pt"
    from_file = Evaluator(digits, configured(path), CPU, tmp_path / "cache")
    found = measure(from_file, generated)
    assert found == {"fid": pytest.approx(expected["frechet_inception_distance"], rel=1e-6)}


def changed(**changes) -> dict[str, np.ndarray]:
    return statistics() | changes


def not_finite(name: str) -> dict[str, np.ndarray]:
    found = statistics()
    found[name].flat[5] = np.nan
    return found


ASYMMETRIC = statistics()["sigma"] + np.triu(np.full((64, 64), 0.1), 1)
FAULTS = {
    "other features": (
        statistics(2048),
        "contains statistics of 2048 features, but .*feature_network = digits-cnn has 64",
    ),
    "images": ({"arr_0": np.zeros((4, 8, 8, 3), np.uint8)}, r"must contain the arrays mu and sigma, not \['arr_0'\]"),
    "no sigma": ({"mu": np.zeros(64)}, r"must contain the arrays mu and sigma, not \['mu'\]"),
    "shapes": (changed(sigma=np.eye(63)), r"mu must have shape \(D,\) and sigma \(D, D\), not \(64,\) and \(63, 63\)"),
    "a scalar": (changed(mu=np.array(1.0)), r"mu must have shape \(D,\)"),
    "mu with NaN": (not_finite("mu"), "mu and sigma must be finite"),
    "sigma with NaN": (not_finite("sigma"), "mu and sigma must be finite"),
    "asymmetric": (changed(sigma=ASYMMETRIC), "sigma must be a covariance, symmetric"),
    "negative": (changed(sigma=-np.eye(64)), "sigma must be a covariance, .* not negative"),
    "text": (changed(mu=np.full(64, "x")), "mu and sigma must contain numbers"),
    "another network": (
        changed(made=np.array(json.dumps({"feature_network": "fashion-cnn"}))),
        "was made with fashion-cnn, not evaluation.feature_network = digits-cnn",
    ),
}


def refusal(path: Path, **evaluation) -> str:
    with pytest.raises(ConfigError) as error:
        reference_files.read_configured(configured(path, **evaluation))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_npz_files_that_cannot_serve_are_refused_by_name(fault, tmp_path):
    content, expected = FAULTS[fault]
    path = tmp_path / "reference.npz"
    np.savez(path, **content)
    message = refusal(path)
    assert message.startswith(f"evaluation.reference = {path}: ")
    assert re.search(expected, message), message


@pytest.mark.parametrize("kind", [".npz", ".pt"])
@pytest.mark.parametrize("content", [None, b"", b"neither zip nor pickle", "cut"])
def test_files_that_are_missing_or_damaged_are_refused_by_name(kind, content, tmp_path):
    path = tmp_path / f"reference{kind}"
    if content == "cut":
        np.savez(tmp_path / "whole.npz", **statistics())
        torch.save(statistics(), tmp_path / "whole.pt")
        content = (tmp_path / f"whole{kind}").read_bytes()[:-100]
    if content is not None:
        path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"evaluation.reference = {path}: ")
    assert ("no such file" if content is None else "cannot be read as") in message


class Trap:
    """Creates a file when it is unpickled without restriction."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_would_run_code_are_refused_unread(tmp_path):
    trap = Trap(tmp_path / "sprung")
    (tmp_path / "trap.pt").write_bytes(torch_bytes({"mu": trap, "sigma": trap}))
    np.savez(tmp_path / "trap.npz", mu=np.array([trap], object), sigma=np.eye(1))
    for name in ("trap.pt", "trap.npz"):
        assert "cannot be read as" in refusal(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1, 2], {"mu": 1, "sigma": 2}, {"fc.weight": torch.zeros(3)}])
def test_pt_files_of_something_else_are_refused_by_name(content, tmp_path):
    (tmp_path / "reference.pt").write_bytes(torch_bytes(content))
    assert "must contain the arrays mu and sigma, not" in refusal(tmp_path / "reference.pt")


def test_precision_and_recall_need_more_than_statistics(tmp_path):
    message = refusal(tmp_path / "reference.npz", precision_recall=True)
    assert message.startswith("evaluation.precision_recall = True: needs the features of the data; leave it out or")


def test_an_evaluator_refuses_its_file_before_it_loads_a_network(digits, tmp_path):
    # Inception's weights are missing as well, and fetching them may take long.
    config = configured(tmp_path / "none.npz", feature_network="inception", feature_weights=tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=r"evaluation.reference = .*none.npz: no such file"):
        Evaluator(digits, config, CPU, tmp_path)


def reference_config(**values):
    return reference_statistics.ReferenceConfig.model_validate(values)


def test_the_script_writes_both_kinds_of_files(evaluator, tmp_path, capsys):
    config = reference_config(
        out=tmp_path / "a" / "digits.npz", torch_fidelity_cache=tmp_path / "c", name="d", storage=tmp_path / "results"
    )
    written = reference_statistics.write_statistics(config)
    assert written == [tmp_path / "a" / "digits.npz", tmp_path / "c" / "d-digits-cnn-stat-fid-features.pt"]
    for path, tolerance in zip(written, (0, 1e-6), strict=True):  # float64; means in float32
        read = reference_files.read_configured(configured(path))
        for name, values in evaluator.reference.statistics.items():
            assert np.abs(read[name] - values).max() <= tolerance
    with np.load(written[0]) as file:
        made = json.loads(str(file["made"]))
    assert made["dataset"] == "digits"
    assert made["num_references"] == 1797
    assert set(made) == {"dataset", *evaluator.protocol()} - {"num_samples", "labels", "kid_subset_size"}
    assert "features of 1797 images by digits-cnn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "statistics.txt"}, "out = statistics.txt: must end in .npz"),
        ({"name": "digits"}, "torch_fidelity_cache = None, name = digits: must be given together"),
        ({"torch_fidelity_cache": "cache"}, "torch_fidelity_cache = cache, name = None: must be given together"),
        ({"torch_fidelity_cache": "cache", "name": "a/b"}, "name = a/b: must be a plain name without /"),
        (
            {"evaluation": {"reference": "a.npz"}},
            "a.npz: must be left out, because reference.npz is written",
        ),
    ],
)
def test_the_script_s_configuration_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        reference_config(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "statistics.txt"], "error: out = statistics.txt: must end in .npz\n"),
        (["--dataset", "image_folder", "--dataset.image-size", "8"], "error: dataset.root = None: must be a folder"),
        (["--out", "in-the-way/reference.npz"], "error: out = in-the-way/reference.npz, "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in-the-way").touch()
    monkeypatch.setattr(sys, "argv", ["reference_statistics.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        reference_statistics.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_the_script_takes_a_run_s_configuration(tmp_path):
    """The file that a run leaves behind names its data and its feature network."""
    config = reference_config(**to_dict(tiny_config()))
    assert config.dataset == tiny_config().dataset
