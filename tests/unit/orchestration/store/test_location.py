"""URLs of stores and the local folders that stand for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.config import TrainConfig
from orchestration.store.location import local_folder, on_this_machine, path_of, store_of, url_or_path
from soflow.config import to_dict

URLS = [
    "s3://bucket/a/b",
    "gs://bucket",
    "s3://bucket/a=b%20c",
    "s3://bucket/exp?endpoint_override=127.0.0.1:9000&scheme=http",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("url", URLS)
def test_a_local_folder_knows_its_store(url, cache):
    folder = local_folder(f"{url}/" if "?" not in url else url)
    assert folder.parent == cache / "stores"
    assert store_of(folder).url == url
    assert url_or_path(folder) == url
    trial = folder / "sweep" / "trials" / "0007"
    base, mark, options = url.partition("?")
    assert url_or_path(trial) == f"{base}/sweep/trials/0007{mark}{options}"
    again = path_of(url_or_path(trial))  # its own parent is the store
    assert url_or_path(again) == url_or_path(trial)
    assert "%" not in str(folder)


def test_every_machine_has_its_own_folder(cache):
    other = Path("/home/somebody/.cache/soflow/stores/s3=3A=2F=2Fbucket=2Fexp/sweep/trials/0001")
    expected = cache / "stores" / "s3=3A=2F=2Fbucket=2Fexp" / "sweep" / "trials" / "0001"
    assert on_this_machine(other) == expected
    assert store_of(expected).here(other / "grids" / "a.png") == expected / "grids" / "a.png"
    assert on_this_machine(Path("/a/b")) == Path("/a/b") == store_of(expected).here(Path("/a/b"))


def test_paths_are_no_stores():
    assert store_of(Path("/a/b")) is None
    assert url_or_path(Path("/a/b")) == "/a/b"
    assert path_of("a/b") == Path("a/b")
    assert local_folder("file:///a%20b/c") == Path("/a b/c")


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/a", "s3://bucket/a?secret_key=secret", "abfs://x/y?sv=1&sig=secret"]
)
def test_credentials_are_refused(url):
    with pytest.raises(ValueError, match=r"must not contain a password.*AWS_ACCESS_KEY_ID") as caught:
        local_folder(url)
    assert "secret" not in str(caught.value)


def test_a_long_url_is_refused():
    with pytest.raises(ValueError, match="must have at most 250 bytes as a file name, not 311"):
        local_folder("s3://" + "b" * 300)


def test_a_url_that_became_a_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a URL that has lost a slash; give it as text, not as a Path"):
        TrainConfig(storage=Path("s3://bucket/results"))
    assert TrainConfig(storage="file:///a/b").storage == Path("/a/b")
    assert list(tmp_path.iterdir()) == []


def test_configurations_are_written_with_the_url():
    config = TrainConfig(storage=URLS[0])
    assert store_of(config.storage).url == URLS[0]
    assert to_dict(config)["storage"] == URLS[0]
    assert TrainConfig(**to_dict(config)) == config
    assert config.resolved_tracking_uri == f"sqlite:///{config.storage}/mlflow.db"
