"""Ends of a program: Ctrl-C, and SIGTERM and SIGHUP, which batch systems, containers and closed terminals send."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that act as Ctrl-C."""
_received = signal.SIGINT
_terminal: list[int] = []
"""File descriptors of output that goes to a terminal."""


def listen() -> None:
    """Let SIGTERM and SIGHUP act as Ctrl-C; one that the parent process ignores, as nohup does, stays ignored.

    Called at a program's start, and again after ray.init, which takes SIGTERM for itself.
    """
    _terminal[:] = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _as_ctrl_c)


def _as_ctrl_c(number: int, frame: Any) -> None:
    global _received
    _received = signal.Signals(number)
    if number == signal.SIGHUP:
        _leave_the_terminal()
    signal.raise_signal(signal.SIGINT)


def _leave_the_terminal() -> None:
    """Send further output to nowhere, because writing to a closed terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminal:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def received() -> signal.Signals:
    """Return the signal that interrupted the program: SIGINT unless another was received."""
    return _received


def exit_code(status: str) -> int:
    """Return a program's exit code for the status of its sweep or run: for KILLED a shell's code, 128 + signal."""
    return {"FINISHED": 0, "FAILED": 1, "KILLED": 128 + _received}[status]


def is_interruption(error: BaseException | None) -> bool:
    """Check whether an interruption is the cause of an error; pydantic and Ray wrap one that interrupts them."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interruption(error.__cause__))
