"""SIGTERM and SIGHUP end a program like Ctrl-C, with their own exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from orchestration.interruption import is_interruption

ROOT = Path(__file__).parents[3]

PROGRAM = """
import signal, sys, time
from orchestration.interruption import exit_code, listen
listen()
try:
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.1)  # a signal just before a long sleep would be noticed at its end
except KeyboardInterrupt:
    print("resume with: this", flush=True)
    open("ended", "w").close()
    sys.exit(exit_code("KILLED"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_ends_as_an_interruption(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=120)[0] == "resume with: this\n"
    assert process.returncode == 128 + number


def test_a_closed_terminal_does_not_keep_the_program_from_ending_well(tmp_path):
    terminal, program_s = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=program_s, stderr=program_s, cwd=tmp_path)
    os.close(program_s)
    assert os.read(terminal, 100).startswith(b"ready")
    os.close(terminal)  # as when a window is closed: writing fails from here on
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 128 + signal.SIGHUP
    assert (tmp_path / "ended").exists()


def test_a_program_that_does_not_end_in_time_says_its_last_words_and_exits(tmp_path):
    hanging = """
import signal, time
from orchestration import interruption
signal.signal(signal.SIGINT, lambda *_: None)
interruption.GRACE_S = 0.5
interruption.listen()
interruption.set_last_words(lambda: print("resume with: this", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", hanging], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0] == "resume with: this\n"
    assert process.returncode == 128 + signal.SIGTERM


STARTER = f"""
import sys
from experiments.claims import run_program
from orchestration.interruption import listen
listen()
sys.exit(run_program([sys.executable, "-c", {PROGRAM!r}]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_runs_experiments_passes_signals_on(tmp_path, number):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)  # to this process alone, as `kill` does
    assert process.communicate(timeout=120)[0] == "resume with: this\n"
    assert process.returncode == 128 + number


def test_ctrl_c_reaches_an_experiment_once(tmp_path):
    counting = PROGRAM.replace("    sys.exit(", "    time.sleep(1)\n    sys.exit(")  # a second Ctrl-C would end this
    terminal, program_s = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER.replace(repr(PROGRAM), repr(counting))],
        stdin=program_s,
        stdout=program_s,
        stderr=program_s,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(program_s)
    assert b"ready" in os.read(terminal, 100)
    os.write(terminal, b"\x03")
    assert process.wait(120) == 128 + signal.SIGINT
    assert (tmp_path / "ended").exists()
    assert b"Traceback" not in os.read(terminal, 10_000)
    os.close(terminal)


def test_what_nohup_ignores_stays_ignored(tmp_path):
    ignoring = PROGRAM.replace("listen()\n", "signal.signal(signal.SIGHUP, signal.SIG_IGN); listen()\n", 1)
    process = subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM


def test_a_background_process_of_a_shell_ends_too(tmp_path):
    """Shells let it ignore Ctrl-C; some of their parents ignore SIGTERM."""
    ignoring = PROGRAM.replace("listen()\n", "[signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; listen()\n", 1)
    process = subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM


def test_a_wrapped_interruption_is_one():
    wrapping = RuntimeError()
    assert not is_interruption(wrapping)
    wrapping.__cause__ = KeyboardInterrupt()
    assert is_interruption(wrapping)
