"""Messages to a real server on this machine; and to none, one that refuses and one that never answers."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from orchestration.terminal import webhook
from orchestration.terminal.progress import Row
from orchestration.terminal.webhook import ADDRESS, Webhook


@pytest.fixture
def server(monkeypatch):
    """The messages that a server received; its address is in the environment."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.headers["Content-Type"] == "application/json"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{http.server_port}/secret")
    yield received
    http.shutdown()


def ended(number: int, state: str, fid: float = float("nan"), reason: str = "") -> Row:
    return Row(number, {}, state, fid=fid, reason=reason)


def test_better_and_failed_trials_and_the_end_are_sent_in_order(server):
    hook = Webhook("mine")
    for row in (
        ended(0, "finished", 3.0),
        ended(1, "stopped", 1.0),
        ended(2, "finished", 4.0),
        ended(3, "failed", reason="the loss became infinite"),
        ended(4, "finished", 2.5),
        ended(5, "finished"),  # NaN is not better
    ):
        hook.trial_ended(row)
    hook.sweep_ended("FINISHED", {"best/fid": 2.5, "best/trial": 4})
    assert [message["text"] for message in server] == [
        "mine: trial 0 is the best so far: FID 3",
        "mine: trial 3 failed: the loss became infinite",
        "mine: trial 4 is the best so far: FID 2.5",
        "mine: finished, best FID 2.5",
    ]
    assert [message["event"] for message in server] == ["better trial", "trial failed", "better trial", "sweep ended"]
    assert server[-1]["status"] == "FINISHED"
    assert {message["sweep"] for message in server} == {"mine"}


def test_after_a_resume_only_better_trials_are_sent(server):
    hook = Webhook("mine")
    hook.count_finished(2.0)
    hook.trial_ended(ended(0, "finished", 3.0))
    hook.trial_ended(ended(1, "finished", 1.0))
    hook.sweep_ended("FINISHED", {})
    assert [message["event"] for message in server] == ["better trial", "sweep ended"]
    assert server[0]["trial"] == 1


def test_without_an_address_nothing_is_sent(monkeypatch, capsys):
    monkeypatch.delenv(ADDRESS, raising=False)
    hook = Webhook("mine")
    hook.trial_ended(ended(0, "finished", 3.0))
    hook.sweep_ended("FAILED", {})
    assert capsys.readouterr().out == ""


def test_a_failure_is_one_line_without_the_secret(monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{closed.getsockname()[1]}/secret")
        hook = Webhook("mine")
        hook.trial_ended(ended(0, "finished", 3.0))
        hook.sweep_ended("KILLED", {})
    assert capsys.readouterr().out == "SOFLOW_WEBHOOK: messages cannot be sent (URLError)\n"


def test_a_server_that_never_answers_delays_the_end_by_a_bounded_time(monkeypatch):
    monkeypatch.setattr(webhook, "LAST_MESSAGES_S", 0.5)
    monkeypatch.setattr(webhook, "ANSWERS_WITHIN_S", 3600)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{silent.getsockname()[1]}")
        Webhook("mine").sweep_ended("FINISHED", {})  # returns
