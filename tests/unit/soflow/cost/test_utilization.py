"""Utilization: counted arithmetic over measured time and peak; data sheets by a device's name."""

from __future__ import annotations

import pytest
from helpers import CPU, tiny_config

from soflow.cost import utilization
from soflow.cost.accelerators import ACCELERATORS, published
from soflow.cost.predict import predict
from soflow.cost.utilization import Utilization, peak_flops_per_s


def test_utilization_is_counted_arithmetic_over_measured_time_and_peak():
    config = tiny_config("soflow")
    achieved = Utilization(config, CPU, world_size=2).metrics(8, step_ms=100)
    rate = predict(config, 7).flops / 0.1
    assert achieved["throughput/gflop_per_s"] == pytest.approx(rate / 1e9)
    assert achieved["throughput/peak_share"] == pytest.approx(rate / (2 * peak_flops_per_s(CPU, "fp32")))


def test_alpha_flows_arithmetic_is_counted_again_as_it_changes():
    config = tiny_config("alpha_flow", objective={"flow_matching_fraction": 0.25, "alpha_clamp": 0.1})
    counted = Utilization(config, CPU, world_size=1)
    begin, middle, end = (
        counted.metrics(step, 100)["throughput/gflop_per_s"]
        for step in (1, config.training.total_steps // 2, config.training.total_steps)
    )
    assert begin < middle < end  # no target, one forward pass, a Jacobian-vector product


@pytest.mark.parametrize(
    ("name", "accelerator"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla T4", None),
    ],
)
def test_a_devices_data_sheet_is_found_by_its_cuda_name(name, accelerator):
    assert published(name) is (ACCELERATORS[accelerator] if accelerator else None)


def test_operations_that_cannot_be_counted_fail_no_run(monkeypatch, caplog):
    def fails(config, after):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(utilization, "predict", fails)
    assert Utilization(tiny_config("soflow"), CPU, world_size=1).metrics(8, step_ms=100) == {}
    assert "cannot be counted (NotImplementedError: no meta kernel)" in caplog.text
