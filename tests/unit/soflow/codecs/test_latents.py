"""Latents: their HDF5 file, the autoencoder around them, and the shards in which they are encoded."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image
from safetensors.torch import load_file, save_file

from orchestration.encode.run import ATTEMPTS, Encoder, encode, share
from orchestration.encode.shards import Setup, Shards
from soflow import codecs
from soflow.codecs import latents
from soflow.codecs.latents import LATENT_SCALE, WEIGHTS, Latents, load_vae, moments
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import DataError
from soflow.data.config import DatasetConfig
from soflow.data.image_folder import read_image
from soflow.data.latents import write_latents
from soflow.data.loading import EpochOrder, batches

AMOUNT, SIDE = 40, 4
RANDOM = np.random.default_rng(0)
MOMENTS = np.concatenate(
    [RANDOM.normal(0, 5, (AMOUNT, 4, SIDE, SIDE)), RANDOM.uniform(0, 1, (AMOUNT, 4, SIDE, SIDE))], axis=1
).astype(np.float32)
LABELS = RANDOM.permutation(np.arange(AMOUNT) % 7)


# The file.


def write_as_the_authors(path: Path, **changed) -> Path:
    """A file of SoFlow's authors' layout, with data sets replaced, or left out where they are None."""
    contents = {"latents": MOMENTS, "labels": LABELS, "amount": np.int64(AMOUNT), "latent_size": np.int64(SIDE)}
    with h5py.File(path, "w") as file:
        for name, content in (contents | changed).items():
            if content is not None:
                file.create_dataset(name, data=content)
    return path


def config(path: Path | None, image_size: int = 8 * SIDE) -> DatasetConfig:
    return DatasetConfig(name="latents", root=path, image_size=image_size)


@pytest.fixture
def path(tmp_path) -> Path:
    return write_as_the_authors(tmp_path / "latents.h5")


def test_a_batch_is_what_its_indices_say(path):
    source = open_source(config(path))
    assert len(source) == AMOUNT
    indices = np.array([5, 0, 39, 5, 17, 17, 3])  # unsorted and repeated, as across epochs
    found, labels = source.batch(indices)
    assert (found.dtype, labels.dtype) == (np.float32, np.int64)
    assert np.array_equal(found, MOMENTS[indices])
    assert np.array_equal(labels, LABELS[indices])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype, tmp_path):
    source = open_source(config(write_as_the_authors(tmp_path / "f.h5", latents=MOMENTS.astype(dtype))))
    found, _ = source.batch(np.arange(3))
    assert np.array_equal(found, MOMENTS[:3].astype(dtype).astype(np.float32))


def test_what_is_written_has_the_authors_layout(path, tmp_path):
    parts = [MOMENTS[:16], MOMENTS[16:17], MOMENTS[17:]]
    write_latents(tmp_path / "ours.h5", parts, LABELS, SIDE, num_classes=9)
    with h5py.File(path) as theirs, h5py.File(tmp_path / "ours.h5") as ours:
        assert sorted(ours) == sorted(theirs)
        for name in theirs:
            assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape)
            assert ours[name].chunks is None
            assert np.array_equal(ours[name][()], theirs[name][()])
    assert open_source(config(path)).num_classes == 7  # the largest label + 1
    assert open_source(config(tmp_path / "ours.h5")).num_classes == 9  # as stated


def test_equal_contents_are_equal_files(tmp_path):
    for name in ("one.h5", "two.h5"):
        write_latents(tmp_path / name, [MOMENTS], LABELS, SIDE, num_classes=7)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"latents": None}, "has no dataset latents"),
        ({"labels": None}, "has no dataset labels"),
        ({"amount": None}, "has no dataset amount"),
        ({"latent_size": None}, "has no dataset latent_size"),
        ({"latents": MOMENTS[:, :4]}, "must be floats [N, 8, H, H]"),
        ({"latents": MOMENTS[..., :2]}, "must be floats [N, 8, H, H]"),
        ({"latents": MOMENTS.astype(int)}, "must be floats [N, 8, H, H]"),
        ({"latents": MOMENTS[0]}, "must be floats [N, 8, H, H]"),
        ({"latents": MOMENTS[:0]}, "must be floats [N, 8, H, H]"),
        ({"labels": LABELS[:-1]}, "contradict each other"),
        ({"amount": np.int64(AMOUNT + 1)}, "contradict each other"),
        ({"latent_size": np.int64(SIDE * 8)}, "contradict each other"),
        ({"labels": LABELS - 1}, "labels run from -1 to 5"),
        ({"labels": LABELS.astype(float)}, "labels of float64 must be integers"),
        ({"latents": -MOMENTS}, "logarithms of variances?"),
        ({"latents": np.full_like(MOMENTS, np.nan)}, "must be finite"),
    ],
)
def test_an_unusable_file_is_refused_by_name(change, fault, tmp_path):
    path = write_as_the_authors(tmp_path / "bad.h5", **change)
    with pytest.raises(DataError, match=re.escape(f"{path}: ")) as caught:
        open_source(config(path))
    assert fault in str(caught.value)
    assert "encode_latents.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_stated_classes_are_refused(tmp_path):
    write_latents(tmp_path / "f.h5", [MOMENTS], LABELS, SIDE, num_classes=6)
    with pytest.raises(DataError, match=re.escape("labels run from 0 to 6, must be in 0 to 5")):
        open_source(config(tmp_path / "f.h5"))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused_by_name(kept, path):
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match=re.escape(f"{path}: cut short, damaged or no HDF5 file")) as caught:
        open_source(config(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no HDF5", b"\x89PNG\r\n\x1a\n" + bytes(1000)])
def test_a_file_of_another_kind_is_refused_by_name(content, tmp_path):
    path = tmp_path / "latents.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: cut short, damaged or no HDF5 file")):
        open_source(config(path))


def test_damage_that_shows_only_when_read_names_the_file(tmp_path):
    path = tmp_path / "packed.h5"
    with h5py.File(path, "w") as file:
        chunks = file.create_dataset("latents", data=MOMENTS, chunks=(1, 8, SIDE, SIDE), compression="gzip")
        file.create_dataset("labels", data=LABELS)
        file.create_dataset("amount", data=np.int64(AMOUNT))
        file.create_dataset("latent_size", data=np.int64(SIDE))
        chunk = chunks.id.get_chunk_info(1)  # not among the samples that opening looks at
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    source = open_source(config(path))
    assert np.array_equal(source.batch(np.array([0, 2]))[0], MOMENTS[[0, 2]])
    with pytest.raises(DataError, match=re.escape(f"{path}: cut short, damaged")):
        source.batch(np.array([0, 1, 2]))


@pytest.mark.parametrize("root", [None, "nowhere.h5", "."])
def test_no_file_is_refused_by_name(root, tmp_path):
    root = root and tmp_path / root
    with pytest.raises(DataError, match=re.escape(f"dataset.root = {root}: must be an HDF5 file")):
        open_source(config(root))


def test_another_image_size_is_refused_with_both(path):
    with pytest.raises(
        DataError, match=re.escape(f"{path}: contains latents of side 4, of images of 32 pixels, but")
    ) as e:
        open_source(config(path, image_size=64))
    assert "dataset.image_size = 64" in str(e.value)


def test_the_fingerprint_changes_with_the_data(tmp_path):
    def fingerprint(name: str, seconds: float = 1e9, **changed) -> str:
        path = write_as_the_authors(tmp_path / name, **changed)
        os.utime(path, (seconds, seconds))
        return open_source(config(path)).fingerprint

    before = fingerprint("before")
    assert fingerprint("same") == before
    last = MOMENTS.copy()
    last[-1] += 1
    others = [
        fingerprint("other latents", latents=last),
        fingerprint("other order", labels=LABELS[::-1]),
        fingerprint("other labels", labels=np.roll(LABELS, 1)),
    ]
    assert len({before, *others}) == 4
    assert fingerprint("other time", seconds=2e9) == before  # a copy's


@pytest.mark.parametrize("opened", [False, True], ids=["before", "after the parent has read"])
def test_loading_processes_read_through_handles_of_their_own(opened, path):
    """Two forked processes and their parent read at the same time."""
    source = open_source(config(path))
    if not opened:
        source = pickle.loads(pickle.dumps(source))
    order = EpochOrder(AMOUNT, 16, seed=0)
    for step, (found, labels) in enumerate(batches(source, order, range(25), CPU, processes=2)):
        indices = order.indices(step)
        assert np.array_equal(found.numpy(), MOMENTS[indices])
        assert np.array_equal(labels.numpy(), LABELS[indices])
        assert np.array_equal(source.batch(indices[:3])[0], MOMENTS[indices[:3]])
    assert step == 24


def read_in_child(source, connection) -> None:
    inherited = source._file
    was_open = bool(inherited)
    found, _ = source.batch(np.arange(AMOUNT))
    connection.send((was_open, source._file is inherited, found))


def test_a_fork_does_not_read_through_its_parent_s_handle(path):
    source = open_source(config(path))
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=read_in_child, args=(source, sender))
    process.start()
    was_open, same, found = receiver.recv()
    process.join()
    assert (was_open, same) == (True, False)
    assert np.array_equal(found, MOMENTS)
    assert np.array_equal(source.batch(np.arange(AMOUNT))[0], MOMENTS)


# The autoencoder.


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> Path:
    """A tiny autoencoder of Stable Diffusion's kind with random weights, as diffusers saves it."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
        )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(vae_folder):
    return load_vae(str(vae_folder), CPU)


IMAGES = torch.from_numpy(RANDOM.integers(0, 256, (20, 3, 32, 32), np.uint8))


def test_what_training_sees(path):
    """(mean + std · noise) · 0.18215, in float64 by hand; no autoencoder is needed."""
    codec = codecs.build(config(path), CPU)
    stored, noise = torch.from_numpy(MOMENTS), torch.randn(AMOUNT, 4, SIDE, SIDE)
    mean, std = MOMENTS[:, :4].astype(float), MOMENTS[:, 4:].astype(float)
    expected = (mean + std * noise.double().numpy()) * 0.18215
    found = codec.encode(stored, noise)
    assert found.dtype == torch.float32
    # float32: three operations on values below 30 times the scale, 6e-8 each.
    assert np.abs(found.numpy() - expected).max() < 3 * 30 * 0.18215 * 6e-8
    assert np.abs(codec.encode(stored).numpy() - mean * 0.18215).max() < 30 * 0.18215 * 6e-8


def test_moments_are_mean_and_standard_deviation(vae):
    found = moments(vae, IMAGES)
    assert (found.shape, found.dtype, found.requires_grad) == ((20, 8, 4, 4), torch.float32, False)
    with torch.no_grad():
        mean, log_variance = vae.quant_conv(vae.encoder(IMAGES / 127.5 - 1)).chunk(2, dim=1)
    assert torch.allclose(found[:, :4], mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found[:, 4:], torch.exp(log_variance / 2), rtol=1e-5)


def test_images_of_latents(vae, vae_folder):
    codec = Latents(str(vae_folder), CPU)
    stored = moments(vae, IMAGES)
    samples = codec.encode(stored, torch.randn(20, 4, 4, 4))
    found = codec.decode(samples)
    with torch.no_grad():
        values = [vae.decoder(vae.post_quant_conv(sample[None] / LATENT_SCALE))[0] for sample in samples]
    expected = ((torch.stack(values) + 1) * 127.5).clamp(0, 255)
    assert (found.shape, found.dtype) == ((20, 3, 32, 32), torch.uint8)
    assert (found - expected).abs().max() < 0.5 + 1e-3  # rounding, and batches sum in another order
    assert torch.equal(codec.images(stored), codec.decode(LATENT_SCALE * stored[:, :4]))


def test_decoding_ignores_the_network_s_precision(vae_folder):
    codec, samples = Latents(str(vae_folder), CPU), torch.randn(2, 4, 4, 4)
    expected = codec.decode(samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(samples), expected)
    assert torch.equal(codec.decode(samples.double()), expected)


def test_the_autoencoder_is_read_when_something_is_decoded():
    codec = Latents("no/such/folder", CPU)
    assert codec.encode(torch.from_numpy(MOMENTS)).shape == (AMOUNT, 4, SIDE, SIDE)
    with pytest.raises(ConfigError, match=re.escape("dataset.vae = no/such/folder: no such folder")):
        codec.decode(torch.zeros(1, 4, SIDE, SIDE))


def test_reading_the_autoencoder_leaves_random_numbers_alone(vae_folder):
    before = torch.random.get_rng_state()
    vae = load_vae(str(vae_folder), CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def set_config(folder: Path, **changed) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["decoder.conv_in.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no file"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be read"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "cannot be loaded"),
        (lose_a_weight, "lacks decoder.conv_in.weight"),
        (lambda folder: set_config(folder, scaling_factor=0.13025), "scaling_factor is 0.13025, must be 0.18215"),
        (lambda folder: set_config(folder, latent_channels=16), "latent_channels is 16, must be 4"),
        (lambda folder: set_config(folder, block_out_channels=[8, 8, 8]), "pixels per latent side is 4, must be 8"),
        (lambda folder: set_config(folder, shift_factor=0.1), "shift_factor is 0.1, must be 0"),
    ],
)
def test_an_unusable_autoencoder_is_refused_by_name(damage, fault, vae_folder, tmp_path):
    folder = tmp_path / "vae"
    shutil.copytree(vae_folder, folder)
    damage(folder)
    with pytest.raises(ConfigError, match=re.escape(f"dataset.vae = {folder}: ")) as caught:
        load_vae(str(folder), CPU)
    assert fault in str(caught.value)
    assert "save_pretrained" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_taken_from_the_cache(vae_folder, tmp_path, monkeypatch):
    """Laid out as huggingface_hub keeps what it fetched; nothing is fetched."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=re.escape("dataset.vae = someone/tiny: no such folder here")) as caught:
        latents.vae_folder("someone/tiny")
    assert "\n" not in str(caught.value)
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(vae_folder, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert latents.vae_folder("someone/tiny") == repository / "snapshots" / "0123"


def test_a_missing_package_is_named_with_its_command(vae_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'soflow[latents]'")):
        load_vae(str(vae_folder), CPU)


# Encoding in shards; tests/system/test_data.py does it through Ray.


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten images of two classes."""
    root = tmp_path / "images"
    for i in range(10):
        (root / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (20, 25, 3), np.uint8)).save(root / f"class{i % 2}" / f"{i}.png")
    return root


def shards_of(root: Path, /, **changed) -> Shards:
    setup = {"root": str(root), "vae": "0" * 64, "image_size": 16, "images_per_shard": 4}
    return Shards(root.with_name("shards"), Setup(**setup | changed), sorted(root.rglob("*.png")))


def encode_all(shards: Shards, root: Path, vae_folder: Path) -> list[str]:
    """The faults of encoding every missing shard, as Ray's workers do it."""
    encoder = Encoder(shards, str(vae_folder), batch_size=3, threads=2)
    paths = list(map(str, sorted(root.rglob("*.png"))))
    numbers = shards.start()
    rows = {"shard": np.array(numbers), "paths": [paths[shards.images(number)] for number in numbers]}
    found = encoder(rows)
    assert found["images"] == list(map(shards.size, numbers))
    return found["fault"]


def test_shards_hold_the_moments_of_their_images(folder, vae_folder, vae):
    shards = shards_of(folder)
    assert shards.start() == [0, 1, 2]
    assert encode_all(shards, folder, vae_folder) == ["", "", ""]
    assert shards_of(folder).start() == []
    images = [read_image(path, 16) for path in sorted(folder.rglob("*.png"))]
    for number, expected in enumerate((images[:4], images[4:8], images[8:])):
        # Batches of 3 sum in another order than one of 4.
        assert np.allclose(shards.read(number), moments(vae, torch.from_numpy(np.stack(expected))), atol=1e-4)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_only_what_is_missing_or_damaged_is_encoded_again(damage, folder, vae_folder):
    encode_all(shards_of(folder), folder, vae_folder)
    first, second, third = sorted(folder.with_name("shards").glob("*.npy"))
    damage(second)
    third.write_bytes(third.read_bytes()[:-1])
    stamp = first.stat().st_mtime_ns
    assert shards_of(folder).start() == [1, 2]
    assert encode_all(shards_of(folder), folder, vae_folder) == ["", ""]
    assert first.stat().st_mtime_ns == stamp
    assert shards_of(folder).start() == []


def test_a_replaced_image_costs_its_shard_only(folder, vae_folder):
    encode_all(shards_of(folder), folder, vae_folder)
    path = sorted(folder.rglob("*.png"))[5]
    Image.new("RGB", (30, 30), (9, 9, 9)).save(path)
    assert shards_of(folder).start() == [1]


@pytest.mark.parametrize("change", [{"vae": "1" * 64}, {"image_size": 24}, {"images_per_shard": 5}, {"root": "/other"}])
def test_shards_of_another_set_up_are_refused(change, folder):
    shards_of(folder)
    (name,) = change
    message = f"{folder.with_name('shards')} contains shards with another {name}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        shards_of(folder, **change)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_foreign_folder_of_shards_is_refused(content, folder):
    folder.with_name("shards").mkdir()
    (folder.with_name("shards") / "setup.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(folder.with_name("shards")))):
        shards_of(folder)


def test_an_unreadable_image_is_named_and_the_other_shards_are_kept(folder, vae_folder):
    path = sorted(folder.rglob("*.png"))[6]
    path.write_bytes(path.read_bytes()[:200])
    shards = shards_of(folder)
    faults = encode_all(shards, folder, vae_folder)
    assert faults[1].startswith(f"{path}: cannot be read as an image")
    assert (faults[0], faults[2], shards.start()) == ("", "", [1])


def test_a_shard_that_loses_its_worker_again_and_again_is_given_up(folder, vae_folder):
    shards, path = shards_of(folder), sorted(folder.rglob("*.png"))[0]
    encoder = Encoder(shards, str(vae_folder), batch_size=3, threads=1)
    for _ in range(ATTEMPTS):
        shards.count_attempt(0)  # and then the process was lost
    rows = {"shard": np.array([0]), "paths": [[str(path)]]}
    assert encoder(rows)["fault"][0].startswith(f"{path}: the worker was lost {ATTEMPTS} times")
    assert shards.start() == [0, 1, 2]  # the same command tries anew
    assert shards.count_attempt(0) == 1


@pytest.mark.parametrize(
    ("num_workers", "cpus", "gpus", "expected"),
    [(None, 8, 0, (8, 0)), (3, 8, 0, (3, 0)), (None, 8, 2, (2, 1)), (3, 8, 2, (3, 0.5)), (1, 8, 2, (1, 1))],
)
def test_workers_share_the_gpus(num_workers, cpus, gpus, expected):
    assert share(num_workers, cpus, gpus) == expected


@pytest.mark.parametrize(("num_workers", "cpus"), [(9, 8), (None, 0)])
def test_more_workers_than_cpus_are_refused(num_workers, cpus):
    with pytest.raises(ConfigError, match=f"num_workers = {num_workers or 1}: must not exceed the {cpus} CPUs"):
        share(num_workers, cpus, 0)


@pytest.mark.parametrize(
    ("change", "error", "fault"),
    [
        ({"image_size": 20}, ConfigError, "image_size = 20: must be a multiple of 8"),
        ({"image_size": 0}, ConfigError, "image_size = 0: must be a multiple of 8"),
        ({"root": Path("nowhere")}, DataError, "nowhere: must be a folder"),
        ({"vae": "no/such/folder"}, ConfigError, "dataset.vae = no/such/folder: no such folder"),
        ({"out": Path(__file__)}, ConfigError, f"out = {__file__}: must not exist"),
        ({"out": Path(__file__) / "latents.h5"}, ConfigError, "cannot save shards"),
        ({"address": "nowhere"}, ConfigError, "address = nowhere"),
    ],
)
def test_what_cannot_be_encoded_is_refused_before_ray_starts(change, error, fault, folder, vae_folder):
    options = {"root": folder, "vae": str(vae_folder), "image_size": 16, "out": folder.with_name("out.h5")}
    with pytest.raises(error, match=re.escape(fault)) as caught:
        encode(**options | {"batch_size": 2} | change)
    assert "\n" not in str(caught.value)
    assert not (folder.with_name("out.h5")).exists()
