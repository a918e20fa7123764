"""Four workers measure what one does, and none of them ever sees the others' images."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, tiny_config
from torch import distributed
from torch_fidelity.metric_fid import fid_features_to_statistics

from soflow.config import parse, to_dict
from soflow.data.in_memory import InMemorySource
from soflow.diagnostics import fid_by_nfe
from soflow.evaluation import metrics
from soflow.evaluation.fidelity import Evaluator
from soflow.evaluation.moments import Moments, Rows, Workers
from soflow.training.run import TrainingRun

pytestmark = pytest.mark.slow  # starts processes

WORKERS = 4
NUM_SAMPLES, BATCH = 110, 20  # six batches, the last of them smaller: two workers make two, two make one
CONFIG = tiny_config(
    network={"name": "DiT-XXS/4"},
    training={"total_steps": 2, "report_every": 1},
    evaluation={
        "num_samples": NUM_SAMPLES,
        "batch_size": BATCH,
        "nfe": (1, 2),
        "precision_recall": True,
        "inception_score": True,
        "diagnostics": ("fid_by_nfe",),
    },
)
FEW = parse(to_dict(CONFIG) | {"evaluation": {"num_samples": 16, "batch_size": 10, "nfe": (1,)}})  # 2 workers idle


def disturb(network: torch.nn.Module) -> None:
    """Random weights everywhere: a fresh network's output is zero."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)


def source() -> InMemorySource:
    """Images with bright bars: four batches of references, and one too many for two halves."""
    random = np.random.default_rng(0)
    images = random.integers(0, 64, (501, 1, 8, 8), np.uint8)
    images[np.arange(501), 0, random.integers(0, 8, 501)] += 190
    return InMemorySource(images, np.arange(501) % 10, num_classes=10)


def features(rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Correlated float32 features whose mean is large beside their spread; a worker's share is not an even one."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=random) / 16
    everything = 1000 + torch.randn(1000, 256, generator=random) @ mixing
    bounds = [0, 100, 101, 400, 1000] if world_size == WORKERS else [0, 1000]
    return everything[bounds[rank] : bounds[rank + 1]]


def merged_moments(workers: Workers) -> dict[str, torch.Tensor]:
    moments = Moments(256, CPU)
    for part in features(workers.rank, workers.size).split(64):
        moments.add(part)
    moments.merge(workers)
    return {name: torch.from_numpy(values) for name, values in moments.statistics().items()}


class Watch:
    """Counts the images that this process's feature network sees, and notes what it exchanges with others."""

    def __init__(self):
        self.seen, self.exchanged, self._all_reduce = 0, [], distributed.all_reduce

    def all_reduce(self, tensor: torch.Tensor, *arguments):
        self.exchanged.append((str(tensor.dtype), list(tensor.shape)))
        return self._all_reduce(tensor, *arguments)

    def count(self, module, inputs) -> None:
        self.seen += len(inputs[0])

    def taken(self) -> tuple[int, list]:
        found = self.seen, self.exchanged
        self.seen, self.exchanged = 0, []
        return found


def everything(directory: Path, workers: Workers) -> dict:
    """One worker's results: statistics, reference, metrics, diagnostics, reports, images seen and tensors exchanged."""
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "all_reduce", watch.all_reduce)
        patch.setattr(fid_by_nfe, "NFE", (1, 2))  # more take longer and say no more here
        return {"moments": merged_moments(workers)} | evaluations(directory, workers, watch)


def evaluations(directory: Path, workers: Workers, watch: Watch) -> dict:
    def start(config, name: str, evaluator: Evaluator) -> tuple[TrainingRun, torch.nn.Module]:
        run = TrainingRun(config, data, directory / name, CPU, evaluator, rank=workers.rank, world_size=workers.size)
        network = run.trainer.averaged_network()
        disturb(network)
        return run, network

    data = source()
    evaluator = Evaluator(data, CONFIG, CPU, directory / "cache", workers)
    cached = Evaluator(data, CONFIG, CPU, directory / "cache", workers)  # finds what the first one left
    evaluator.extractor.register_forward_pre_hook(watch.count)
    watch.taken()
    run, network = start(CONFIG, "run", evaluator)
    result = {"metrics": run.evaluate(network)}
    result["seen"], result["exchanged"] = watch.taken()
    run.evaluator = cached
    result["cached"] = run.evaluate(network)
    run.evaluator = evaluator
    result["diagnostics"] = run.diagnose(network)
    few, few_network = start(FEW, "few", Evaluator(data, FEW, CPU, directory / "cache", workers))
    result["few"] = few.evaluate(few_network)
    result["reports"] = [sorted(report.metrics) if (report := run.advance()) else None for _ in range(2)]
    if workers.rank == 0:
        result["reference"] = {name: torch.from_numpy(v) for name, v in evaluator.reference.statistics.items()}
        result["features"] = evaluator.reference.features
    else:
        assert evaluator.reference is None
    return result


def worker(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'rendezvous'}",
        rank=rank,
        world_size=WORKERS,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(everything(directory, Workers(CPU, rank, WORKERS)), directory / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Everything from one worker, and from each of four: this process and others that share one import."""
    directory = tmp_path_factory.mktemp("workers")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soflow.training.run"])
    others = [context.Process(target=worker, args=(rank, directory)) for rank in range(1, WORKERS)]
    for other in others:
        other.start()
    try:
        single = everything(directory / "single", Workers(CPU))  # while the others import
        worker(0, directory)
        for other in others:
            other.join(60)
            assert other.exitcode == 0
    finally:
        for other in others:
            other.kill()
    return single, [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_merged_statistics_are_those_of_all_features(results):
    found = results[1][0]["moments"]
    expected = features().double().numpy()
    # 1,000 additions of float64. Sums of f fᵀ minus n μμᵀ would lose 1e6 / 1 of the covariance's 16 digits.
    assert relative(found["mu"].numpy(), expected.mean(0)) < 1e-14
    assert relative(found["sigma"].numpy(), np.cov(expected, rowvar=False)) < 1e-13


def test_fid_of_merged_statistics_is_that_of_all_features(results):
    found = {name: value.numpy() for name, value in results[1][0]["moments"].items()}
    expected = fid_features_to_statistics(features().double())
    other = fid_features_to_statistics(features()[:500].double() * 1.001)
    assert metrics.fid(found, other) == pytest.approx(metrics.fid(expected, other), rel=1e-9)


@pytest.mark.soak  # test_fidelity compares Inception's 2,048 features with torch-fidelity
def test_fid_over_2048_features_is_that_of_all_features():
    """Inception's width, four shards joined; twice ten seconds are the eigenvalues'."""
    random = torch.Generator().manual_seed(0)
    shards = [100 + torch.randn(n, 2048, generator=random).cumsum(1) / 32 for n in (10, 500, 1200, 1000)]
    joined = Moments(2048, CPU)
    for shard in shards:
        moments = Moments(2048, CPU)
        moments.add(shard)
        joined.join(moments)
    whole = fid_features_to_statistics(torch.cat(shards).double())
    assert joined.count == 2710
    assert relative(joined.statistics()["sigma"], whole["sigma"]) < 1e-13
    other = {"mu": whole["mu"] + 0.1, "sigma": np.eye(2048)}
    assert metrics.fid(joined.statistics(), other) == pytest.approx(metrics.fid(whole, other), rel=1e-6)


def test_four_workers_measure_what_one_does(results):
    single, several = results
    expected = single["metrics"]
    names = {
        "fid",
        "kid",
        "kid_error",
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score",
        "class_consistency",
    }
    assert set(expected) == names | {f"{name}_2nfe" for name in names} | {"fid_floor", "kid_floor"}
    assert expected["fid"] > 10 * expected["fid_floor"]  # the images are no digits, so the value means something
    for name, value in several[0]["metrics"].items():
        # What is computed of features in their order repeats exactly; sums over workers come in another order.
        assert value == (pytest.approx(expected[name], rel=1e-9) if name.startswith("fid") else expected[name]), name
    assert several[0]["metrics"].keys() == expected.keys()


@pytest.mark.parametrize("what", ["metrics", "diagnostics", "few"])
def test_all_workers_hear_the_same_bits(what, results):
    first, *others = (result[what] for result in results[1])
    for other in others:
        assert other == {name: value for name, value in first.items() if "floor" not in name}


def test_workers_without_images_take_part(results):
    single, several = results
    assert several[0]["few"] == {name: pytest.approx(value, rel=1e-6) for name, value in single["few"].items()}


def test_the_reference_is_measured_in_shards(results):
    single, several = results
    assert torch.equal(several[0]["features"], single["features"])
    for name in ("mu", "sigma"):
        found, expected = (result["reference"][name].numpy() for result in (several[0], single))
        assert relative(found, expected) < 1e-13


def test_the_reference_is_taken_from_the_cache(results):
    for result in (results[0], *results[1]):
        assert result["cached"] == result["metrics"]


def test_no_worker_sees_the_others_images(results):
    single, several = results
    nfes = 2
    assert single["seen"] == nfes * NUM_SAMPLES
    assert [result["seen"] for result in several] == [nfes * n for n in (40, 30, 20, 20)]
    for result in several:
        evaluated = [exchange for exchange in result["exchanged"] if exchange[0] != "torch.int64"]  # steps to resume at
        assert {dtype for dtype, _ in evaluated} == {"torch.float64", "torch.float32"}
        # Of each image only its 64 features and its 10 logits go round.
        tables = [shape for dtype, shape in result["exchanged"] if dtype == "torch.float32"]
        assert tables == nfes * [[NUM_SAMPLES, 64], [NUM_SAMPLES, 10]]


def test_diagnostics_are_taken_after_the_last_step_by_all_workers(results):
    single, several = results
    first, last = several[0]["reports"]
    assert not any(name.startswith("diagnostics/") for name in first)
    taken = {name for name in last if name.startswith("diagnostics/")}
    assert taken == set(single["diagnostics"])
    assert "diagnostics/fid_by_nfe/renoise_2" in taken
    assert single["reports"] == [first, last]
    assert [result["reports"] for result in several[1:]] == (WORKERS - 1) * [[None, None]]


def test_a_diagnostic_s_fid_is_the_evaluation_s(results):
    for result in results[1]:
        assert result["diagnostics"]["diagnostics/fid_by_nfe/renoise_1"] == result["metrics"]["fid"]
        assert result["diagnostics"]["diagnostics/fid_by_nfe/renoise_2"] == result["metrics"]["fid_2nfe"]


def test_rows_come_in_the_order_of_their_places():
    values = torch.arange(12.0).view(6, 2)
    rows = Rows(2, limit=5)
    for places in ([4, 0, 7], [1], [], [3, 2, -1]):
        rows.add(torch.tensor(places, dtype=torch.long), values[places] if 7 not in places else values[[4, 0, 5]])
    assert torch.equal(rows.merge(Workers(CPU), 8), values[:5])


def test_moments_of_nothing_add_nothing():
    moments = Moments(3, CPU)
    moments.add(torch.zeros(0, 3))
    moments.join(Moments(3, CPU))
    assert moments.count == 0
    moments.add(torch.tensor([[1.0, 2.0, 3.0]]))
    moments.add(torch.tensor([[3.0, 2.0, 1.0]]))
    assert moments.statistics()["mu"].tolist() == [2, 2, 2]
    assert moments.statistics()["sigma"].tolist() == [[2, 0, -2], [0, 0, 0], [-2, 0, 2]]
