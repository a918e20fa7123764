"""CIFAR-10 as its authors publish it: the binary version and the one for Python, whole and damaged."""

from __future__ import annotations

import hashlib
import pickle
import re
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from soflow.data import cifar10, open_source
from soflow.data.base import DataError
from soflow.data.config import DatasetConfig

FILES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
RANDOM = np.random.default_rng(0)
IMAGES = [RANDOM.integers(0, 256, (count, 3, 32, 32), np.uint8) for count in (3, 1, 2, 4, 2, 3)]
LABELS = [RANDOM.integers(0, 10, len(images)) for images in IMAGES]


def write_binary(folder: Path) -> None:
    """Six small files, written value by value as the data set's page describes them."""
    folder.mkdir(parents=True)
    for name, images, labels in zip(FILES, IMAGES, LABELS, strict=True):
        with (folder / f"{name}.bin").open("wb") as file:
            for image, label in zip(images, labels, strict=True):
                file.write(bytes([label]))
                for plane in image:  # red, green, blue
                    for row in plane:
                        file.write(row.tobytes())


def write_pickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six small files and their index for Python, which are then the published ones as far as their MD5s tell."""
    folder.mkdir(parents=True)
    contents = {
        name: {"data": images.reshape(-1, 3072), "labels": labels.tolist()}
        for name, images, labels in zip(FILES, IMAGES, LABELS, strict=True)
    }
    md5 = {}
    for name, content in (contents | {"batches.meta": {"label_names": list("abcdefghij")}}).items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})


def config(root: Path | None, **fields) -> DatasetConfig:
    return DatasetConfig(name="cifar10", root=root, **fields)


@pytest.mark.parametrize("kind", ["binary", "pickled"])
@pytest.mark.parametrize("inside", [False, True], ids=["folder that holds it", "the folder itself"])
def test_both_published_versions(kind, inside, tmp_path, monkeypatch):
    folder = tmp_path / {"binary": "cifar-10-batches-bin", "pickled": "cifar-10-batches-py"}[kind]
    write_binary(folder) if kind == "binary" else write_pickled(folder, monkeypatch)
    given = config(folder if inside else tmp_path)
    source = open_source(given)
    images, labels = source.batch(np.arange(len(source)))
    assert np.array_equal(images, np.concatenate(IMAGES[:5]))
    assert labels.tolist() == np.concatenate(LABELS[:5]).tolist()
    assert (images.dtype, labels.dtype, source.num_classes) == (np.uint8, np.int64, 10)
    assert images.flags.c_contiguous
    assert given.image_shape == images.shape[1:]
    test = cifar10.open_split(given.root, "test")
    assert np.array_equal(test.batch(np.arange(3))[0], IMAGES[5])
    assert len(test) == 3


def test_both_versions_are_the_same_data(tmp_path, monkeypatch):
    write_binary(tmp_path / "one" / "cifar-10-batches-bin")
    write_pickled(tmp_path / "two" / "cifar-10-batches-py", monkeypatch)
    assert open_source(config(tmp_path / "one")).fingerprint == open_source(config(tmp_path / "two")).fingerprint


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_binary_file_that_is_cut_short_is_refused_by_name(size, tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=re.escape(f"{path}: {size} bytes")):
        open_source(config(tmp_path))


def test_a_missing_binary_file_is_named(tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_5.bin"
    path.unlink()
    with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read")):
        open_source(config(tmp_path))


def test_a_label_beyond_nine_is_refused(tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin"
    content = bytearray(path.read_bytes())
    content[3073] = 10  # the second record's label
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: has a label 10")):
        open_source(config(tmp_path))


@pytest.mark.parametrize("root", [None, "here"])
def test_missing_files_are_named_with_the_ways_out(root, tmp_path):
    root = root and tmp_path / root
    with pytest.raises(DataError, match=re.escape(f"dataset.root = {root}: ")) as caught:
        open_source(config(root))
    assert "cifar-10-batches-bin" in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_pickle_of_a_stranger_is_never_executed(name, tmp_path, monkeypatch):
    folder, trace = tmp_path / "cifar-10-batches-py", tmp_path / "executed"
    write_pickled(folder, monkeypatch)
    (folder / name).write_bytes(pickle.dumps(Evil(trace)))
    pickle.loads((folder / name).read_bytes())
    assert trace.exists()  # it would execute
    trace.unlink()
    with pytest.raises(DataError, match=re.escape(f"{folder / name}: is not the published file")):
        open_source(config(tmp_path))
    assert not trace.exists()


def test_a_missing_pickled_file_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_pickled(folder, monkeypatch)
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=re.escape(f"{folder / 'data_batch_3'}: is missing")):
        open_source(config(tmp_path))


def test_only_the_published_pickles_are_opened(tmp_path, monkeypatch):
    """Well-formed files of the right names are not enough."""
    folder = tmp_path / "cifar-10-batches-py"
    write_pickled(folder, monkeypatch)
    monkeypatch.undo()  # back to the checksums of the real files
    with pytest.raises(DataError, match=re.escape(f"{folder / 'data_batch_1'}: is not the published file")):
        open_source(config(tmp_path))


@pytest.fixture
def server(tmp_path):
    """The URL of a web server on this machine that serves tmp_path / "server"."""
    handler = partial(QuietHandler, directory=tmp_path / "server")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_it_is_fetched_only_when_asked(server, tmp_path, monkeypatch):
    write_pickled(tmp_path / "server" / "cifar-10-batches-py", monkeypatch)
    archive = tmp_path / "server" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "server" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", f"{server}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    root = tmp_path / "new"
    with pytest.raises(DataError):
        open_source(config(root))
    assert not root.exists()
    assert len(open_source(config(root, download=True))) == 12
    monkeypatch.setattr(CIFAR10, "url", f"{server}/nowhere")
    assert len(open_source(config(root, download=True))) == 12  # it is there already
    with pytest.raises(
        DataError, match=re.escape(f"dataset.root = {tmp_path / 'other'}: CIFAR-10 cannot be downloaded")
    ):
        open_source(config(tmp_path / "other", download=True))
