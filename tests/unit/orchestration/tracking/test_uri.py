"""Addresses of MLflow that cannot work are refused before a program starts."""

from __future__ import annotations

import base64
import http.server
import socket
import threading

import pytest

from orchestration.tracking.uri import TrackingError, check_tracking
from tests.tracking import free_port


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://host/db", "must be http"),
        ("postgresql://user:secret@host/db", "must not contain a password.*PGPASSWORD"),
        ("http://user:secret@host:5000", "must not contain a password.*MLFLOW_TRACKING_PASSWORD"),
        ("./mlruns", "must be http"),
        ("sqlite://", "must be http"),
        ("sqlite:///:memory:", "must be http"),
        ("http://127.0.0.1:{free_port}", "cannot be reached.*refused"),
        ("http://", "cannot be reached"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be written.*choose a writable folder"),
        ("sqlite:///{file}/mlflow.db", "cannot be written"),
        ("sqlite:///{folder}", "cannot be written"),
        ("sqlite:///{file}", "must be an SQLite database"),
    ],
)
def test_check_tracking_refuses(uri, message, tmp_path):
    (tmp_path / "file").write_text("Some text, longer than a header.")
    uri = uri.format(free_port=free_port(), file=tmp_path / "file", folder=tmp_path)
    with pytest.raises(TrackingError, match=f"^tracking_uri = .*: .*{message}") as caught:
        check_tracking(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_tracking_accepts_a_database_to_come(tmp_path):
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert list((tmp_path / "new").iterdir()) == []


def test_check_tracking_does_not_wait_for_a_silent_server():
    silence = pytest.raises(TrackingError, match=r"no answer within 0\.5 s")
    with socket.create_server(("127.0.0.1", 0)) as silent, silence:
        check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)


def test_check_tracking_recognises_other_servers():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(TrackingError, match="answers 501 to GET /health, unlike an MLflow server"):
        check_tracking(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


class WithPassword(http.server.BaseHTTPRequestHandler):
    """A proxy with passwords before an MLflow server, whose health anybody may ask."""

    ALLOWED = ("Basic " + base64.b64encode(b"ann:right").decode(), "Bearer token")

    def do_GET(self):
        self._answer(200, b"OK")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if self.headers["Authorization"] in self.ALLOWED else 401, b"{}")

    def _answer(self, status: int, content: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def with_password(monkeypatch, tmp_path):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithPassword)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("environment", "who"),
    [
        ({}, "a request without a password"),
        ({"USERNAME": "ann", "PASSWORD": "wrong"}, "user ann"),
        ({"TOKEN": "wrong"}, "the token"),
        ({"USERNAME": "ann", "PASSWORD": "right"}, None),
        ({"TOKEN": "token"}, None),
    ],
)
def test_a_refused_password_is_found_at_the_start(with_password, monkeypatch, environment, who):
    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    if who is None:
        check_tracking(with_password)
    else:
        with pytest.raises(TrackingError, match=rf"refuses {who} \(401 Unauthorized\); set MLFLOW"):
            check_tracking(with_password)


def test_mlflow_s_file_of_passwords_is_read(with_password, tmp_path):
    (tmp_path / ".mlflow").mkdir()
    text = "[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = right\n"
    (tmp_path / ".mlflow" / "credentials").write_text(text)
    check_tracking(with_password)


def test_a_proxy_in_the_way_is_named(with_password, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(TrackingError, match=rf"through the proxy http://\*\*\*@127\.0\.0\.1:{port} \(NO_PROXY"):
        check_tracking(with_password)
