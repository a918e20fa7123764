"""CIFAR-10 with the U-Net and latents with a DiT, as users train them, on data small enough for a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from session import ROOT, Session, wait_for_line

pytestmark = pytest.mark.slow

# Random weights: the published ones cannot be fetched everywhere, and what they would say is not looked at here.
INCEPTION = """
import sys, torch
from pathlib import Path
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

torch.manual_seed(0)
torch.save({}, "empty.pth")
Inception.load_state_dict = lambda self, state: None
torch.save(Inception("inception-v3-compat", ["2048"], "empty.pth").state_dict(), sys.argv[1])
"""


@pytest.fixture
def flags(session: Session) -> list[str]:
    """Few steps, few samples, Inception with random weights."""
    subprocess.run([sys.executable, "-c", INCEPTION, "inception.pth"], cwd=session.storage, check=True, timeout=120)
    return [
        *("--evaluation.inception-weights", "inception.pth", "--evaluation.num-samples", "16"),
        *("--evaluation.batch-size", "8", "--training.batch-size", "8", "--training.total-steps", "4"),
        *("--training.report-every", "2", "--name", "run"),
    ]


def interrupt(session: Session, *arguments: str) -> None:
    """Train to the first report, then Ctrl-C."""
    process = session.start("train.py", *arguments)
    wait_for_line(process, "step 2")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output


def train_and_sample(session: Session, *arguments: str) -> None:
    """Train to the end and draw samples; every report's figures are recorded once."""
    code, output = session.run("train.py", *arguments)
    assert code == 0, output
    steps = [step for step, _ in session.history("run", "fid")]
    assert steps == [2, 4]
    assert all(np.isfinite(value) for _, value in session.history("run", "fid"))
    code, output = session.run(
        "sample.py", "run", "--nfe", "2", "--rows", "1", "--npz", "samples.npz", "--num-samples", "8"
    )
    assert code == 0, output
    with np.load(session.storage / "samples.npz") as file:
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_0"].shape[0] == 8
        assert file["arr_0"].shape[-1] == 3
    session.assert_nothing_left()


def test_cifar10_trains_with_the_unet(session, flags):
    random = np.random.default_rng(0)
    folder = session.storage / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"):
        records = random.integers(0, 256, (16, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    interrupt(
        session,
        *("--dataset", "cifar10", "--dataset.root", "data", "--dataset.augmentation", "0.12", "--network", "U-Net-XS"),
        *("--network.dropout", "0.3", "--training.ema-every", "2", "--training.ema-dtype", "float64", *flags),
    )
    train_and_sample(session, "--resume", str(session.storage / "run"))


def test_images_are_encoded_trained_on_as_latents_decoded_and_measured(session, flags):
    from diffusers import AutoencoderKL

    random = np.random.default_rng(0)
    for i in range(24):
        path = session.storage / "images" / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (70, 80, 3), np.uint8)).save(path)
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(**blocks, block_out_channels=(16,) * 4, norm_num_groups=4).save_pretrained(session.storage / "vae")
    encode = [sys.executable, str(ROOT / "experiments" / "encode_latents.py"), "--root", "images", "--vae", "vae"]
    process = session.launch([*encode, "--image-size", "64", "--out", "latents.h5", "--num-workers", "1"])
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert Path(session.storage / "latents.h5").exists()
    train_and_sample(
        session,
        *("--dataset", "latents", "--dataset.root", "latents.h5", "--dataset.vae", "vae", "--dataset.image-size", "64"),
        *("--dataset.loading-processes", "1", "--network", "DiT-XXS/2", *flags),
    )
