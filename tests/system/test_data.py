"""Image folders encoded to latents through all interruptions and trained on; CIFAR-10 with a U-Net."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from session import Program, Session

from soflow import codecs
from soflow.codecs.latents import load_vae, moments
from soflow.data import open_source
from soflow.data.config import DatasetConfig
from soflow.data.image_folder import read_image
from soflow.data.loading import EpochOrder, batches

# Random weights: the published ones cannot be fetched everywhere, and their FID values are not checked here.
INCEPTION = """
import sys, torch
from pathlib import Path
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

torch.manual_seed(0)
torch.save({}, "empty.pth")
Inception.load_state_dict = lambda self, state: None
torch.save(Inception("inception-v3-compat", ["2048"], "empty.pth").state_dict(), sys.argv[1])
"""

IMAGES_PER_PART, NUM_IMAGES, SIZE, BATCH = 64, 400, 64, 16
CPU = torch.device("cpu")


@pytest.fixture
def flags(session: Session) -> list[str]:
    """Few steps, few samples, Inception with random weights."""
    subprocess.run([sys.executable, "-c", INCEPTION, "inception.pth"], cwd=session.storage, check=True, timeout=120)
    # Statistics of a reference of no meaning; Inception takes a minute and a half to measure the images.
    np.savez(session.storage / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    return [
        *("--evaluation.reference", "reference.npz"),
        *("--evaluation.feature-weights", "inception.pth", "--evaluation.num-samples", "16"),
        *("--evaluation.batch-size", "8", "--training.batch-size", "8", "--training.total-steps", "4"),
        *("--training.report-every", "4", "--evaluation.nfe", "1", "--name", "run"),
    ]


@pytest.fixture
def inputs(session: Session) -> list[str]:
    """Images, of which class 2's folder is empty, and an autoencoder; what the command needs to know of them."""
    from diffusers import AutoencoderKL

    random = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        path = session.storage / "images" / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (80, 70, 3), np.uint8)).save(path)
    (session.storage / "images" / "class2").mkdir()
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(**blocks, block_out_channels=(16,) * 4, norm_num_groups=4).save_pretrained(session.storage / "vae")
    return ["--root", "images", "--vae", "vae", "--image-size", str(SIZE), "--batch-size", str(BATCH)]


def wait_for_parts(folder: Path, count: int, process: Program) -> list[Path]:
    deadline = time.monotonic() + 180
    while len(found := sorted(folder.glob("*.npy"))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no part was finished"
        time.sleep(0.005)
    return found


def end(process: Program) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.soak
def test_encoding_survives_interruptions_bad_images_and_lost_workers(session, inputs):
    storage, parts = session.storage, session.storage / "made" / "latents.h5.shards"
    arguments = [*inputs, "--out", "made/latents.h5", "--num-workers", "1"]

    process = session.start("encode_latents.py", *arguments)
    first, *_ = wait_for_parts(parts, 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    code, output = end(process)
    assert code == 130, output
    assert output.splitlines()[-1].startswith("interrupted; the same command resumes")
    session.assert_nothing_left()
    marked = np.load(first) + 1
    np.save(first, marked)  # to see that finished parts are not made again

    done = {int(part.name.split("-")[1]) for part in parts.glob("*.npy")}  # in any order
    missing = next(number for number in range(len(done) + 1) if number not in done)
    path = sorted((storage / "images").rglob("*.png"))[IMAGES_PER_PART * missing]
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    code, output = session.run("encode_latents.py", *arguments)
    assert code == 2, output
    assert output.splitlines()[-1].startswith(f"error: {path}: cannot be read as an image")
    assert "Traceback" not in output
    session.assert_nothing_left()
    path.write_bytes(content)

    process = session.start("encode_latents.py", *arguments)
    wait_for_parts(parts, len(list(parts.glob("*.npy"))) + 1, process)
    session.kill("ray::MapWorker")
    code, output = end(process)
    assert code == 0, output
    assert [path.name for path in (storage / "made").iterdir()] == ["latents.h5"]
    session.assert_nothing_left()

    expected = directly(storage)
    begin = IMAGES_PER_PART * int(first.name.split("-")[1])
    expected[begin : begin + len(marked)] += 1
    with h5py.File(storage / "made" / "latents.h5") as file:
        latents = file["latents"][()]
        assert file["labels"][()].tolist() == [0] * 200 + [1] * 200
    assert np.array_equal(latents[begin : begin + len(marked)], marked)
    # The order of a convolution's sums, and so the last bits, depends on where in memory a process has its arrays.
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    check_that_training_can_use(storage / "made" / "latents.h5", storage / "vae", latents)


@pytest.mark.soak  # the part above checks the batches that training gets
def test_a_network_trains_on_encoded_latents(session, inputs, flags):
    session.succeed("encode_latents.py", *inputs, "--out", "made/latents.h5", "--num-workers", "1")
    train_and_sample(
        session,
        *("--dataset", "latents", "--dataset.root", "made/latents.h5", "--dataset.vae", "vae"),
        *("--dataset.image-size", "64", "--dataset.loading-processes", "1", "--network", "DiT-XXS/2", *flags),
    )


def directly(storage: Path) -> np.ndarray:
    """Moments [N, 8, h, w] in the same batches, without Ray or parts."""
    vae = load_vae(str(storage / "vae"), CPU)
    paths = sorted((storage / "images").rglob("*.png"))
    found = []
    for begin in range(0, NUM_IMAGES, IMAGES_PER_PART):
        part = torch.from_numpy(np.stack([read_image(path, SIZE) for path in paths[begin : begin + IMAGES_PER_PART]]))
        found += [moments(vae, batch) for batch in part.split(BATCH)]
    return torch.cat(found).numpy()


def check_that_training_can_use(path: Path, vae: Path, expected: np.ndarray) -> None:
    config = DatasetConfig(name="latents", root=path, image_size=SIZE, vae=str(vae))
    source, codec = open_source(config), codecs.build(config, CPU)
    assert (len(source), source.num_classes) == (NUM_IMAGES, 2)
    order = EpochOrder(len(source), 32, seed=0)
    for step, (stored, labels) in enumerate(batches(source, order, range(3), CPU, processes=1)):
        indices = order.indices(step)
        assert np.array_equal(stored.numpy(), expected[indices])
        assert np.array_equal(labels.numpy(), indices // 200)
        samples = codec.encode(stored, torch.randn(32, *config.sample_shape))
        assert samples.shape == (32, 4, 8, 8)
    assert codec.decode(samples[:2]).shape == (2, *config.image_shape)


def train_and_sample(session: Session, *arguments: str) -> None:
    """Train to the end, evaluate once, which takes Inception half a minute, and draw samples."""
    session.succeed("train.py", *arguments)
    [(step, fid)] = session.history("run", "fid")
    assert step == 4
    assert np.isfinite(fid)
    flags = ["run", "--nfe", "2", "--rows", "1", "--npz", "samples.npz", "--num-samples", "8"]
    session.succeed("sample.py", *flags)
    with np.load(session.storage / "samples.npz") as file:
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_0"].shape[0] == 8
        assert file["arr_0"].shape[-1] == 3


@pytest.mark.soak
def test_cifar10_trains_with_the_unet(session, flags):
    random = np.random.default_rng(0)
    folder = session.storage / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"):
        records = random.integers(0, 256, (16, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    train_and_sample(
        session,
        *("--dataset", "cifar10", "--dataset.root", "data", "--dataset.augmentation", "0.12", "--network", "U-Net-XS"),
        *("--network.dropout", "0.3", "--training.ema-every", "2", "--training.ema-dtype", "float64", *flags),
    )
