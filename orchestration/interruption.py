"""Ends of a program: Ctrl-C, and SIGTERM and SIGHUP, which batch systems, containers and closed terminals send."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_S = 8.0
"""Seconds after SIGTERM or SIGHUP until a program that has not ended says its last words and exits. Docker waits 10 s,
Slurm 30 s, before it kills. If Ray's processes have received the signal too, Ray would wait for them for a minute."""
_received = signal.SIGINT
_last_words: Callable[[], object] | None = None
_terminal: list[int] = []
"""File descriptors of output that goes to a terminal."""


def listen() -> None:
    """Let SIGTERM and SIGHUP act as Ctrl-C; a SIGHUP that the parent process ignores, as nohup does, stays ignored.

    Called at a program's start, and again after ray.init, which takes SIGTERM for itself.
    """
    _terminal[:] = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _as_ctrl_c)


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Let processes that are started inside the block ignore SIGTERM and SIGHUP, which go to whole process groups.

    Ray's processes must outlive the driver's end: without them it could neither stop trials nor deliver records. The
    driver ends them, and they end with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_last_words(last_words: Callable[[], object] | None) -> None:
    """Set what a program does before it exits because it has not ended in time; None if nothing is left to do."""
    global _last_words
    _last_words = last_words


def _as_ctrl_c(number: int, frame: Any) -> None:
    global _received
    if _received == signal.SIGINT:
        exit_in_time = threading.Timer(GRACE_S, _exit)
        exit_in_time.daemon = True
        exit_in_time.start()
    _received = signal.Signals(number)
    if number == signal.SIGHUP:
        _leave_the_terminal()
    handler = signal.getsignal(signal.SIGINT)
    # A shell's background process ignores Ctrl-C, but not this.
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _leave_the_terminal() -> None:
    """Send further output to nowhere, because writing to a closed terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminal:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _exit() -> None:
    try:
        if _last_words is not None:
            _last_words()
    finally:
        os._exit(exit_code("KILLED"))


def received() -> signal.Signals:
    """Return the signal that interrupted the program: SIGINT unless another was received."""
    return _received


def exit_code(status: str) -> int:
    """Return a program's exit code for the status of its sweep or run: for KILLED a shell's code, 128 + signal."""
    return {"FINISHED": 0, "FAILED": 1, "KILLED": 128 + _received}[status]


def is_interruption(error: BaseException | None) -> bool:
    """Check whether an interruption is the cause of an error; pydantic and Ray wrap one that interrupts them."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interruption(error.__cause__))
