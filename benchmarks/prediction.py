"""Compare the predictions of experiments/predict_cost.py for this machine with measured steps.

Prints measured over predicted operations, peak memory and time, for three objectives at two sizes. Time is predicted in
two ways, from the machine's measured rates: from products alone, and from every kernel at its roofline.

$ python benchmarks/prediction.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics

import torch

from orchestration.cost_study.config import VARIANTS
from soflow.config import RunConfig
from soflow.cost.accelerators import measured
from soflow.cost.measure import count_step, peak_bytes, time_steps
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.training.trainer import Trainer

OBJECTIVES = ("flow_matching", "soflow", "meanflow_c")
NETWORKS = ("DiT-XS/2", "DiT-S/2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = measured(device, memory_bytes=0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {options.threads} threads"
    rates = f"{here.flops_per_s['fp32'] / 1e9:.0f} GFLOP/s, {here.bytes_per_s / 1e9:.1f} GB/s"
    print(f"{name}, torch {torch.__version__}, fp32, batch {options.batch}; {rates}")
    print("measured / predicted        operations  memory  time by products  time by kernels")
    for network in NETWORKS:
        for objective in OBJECTIVES:
            config = RunConfig.model_validate(
                {
                    "objective": VARIANTS[objective],
                    "network": {"name": network},
                    "training": {"batch_size": options.batch, "total_steps": 10**6},
                }
            )
            prediction = predict(config)
            trainer = Trainer(config, synthetic_source(config.dataset), device)
            trainer.take_step()
            arithmetic = count_step(trainer)  # the predicted step; other steps guide other numbers of samples
            time_steps(trainer, 2)
            step_s = statistics.median(step["step"] for step in time_steps(trainer, options.steps)) / 1e3
            ratios = (
                sum(arithmetic.flops.values()) / prediction.flops,
                peak_bytes(trainer) / prediction.peak_bytes,
                step_s / prediction.arithmetic_s(here),
                step_s / prediction.roofline_s(here),
            )
            print(f"{network:9} {objective:15}" + "".join(f"{ratio:14.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
