"""Ray actor that hands each of the driver's requests to all workers of a group and returns one answer.

Workers get lost and groups restart. So a message counts only if it comes from the current generation of the group and
is about the current request, and an error counts only once it is known not to be caused by the loss of another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

POLL_S = 10.0
"""Longest wait of a call to the mailbox, after which the caller asks again."""
AGREE_S = 10.0
"""How long a failed worker waits for the others to fail alike. The loss of another worker is noticed sooner."""
RESTARTS = 3
"""Default number of losses of workers on one request before it fails."""
OUT_OF_MEMORY = "its node ran out of memory"
"""In the reason of a loss that would only repeat itself. Such a request fails at once, so that the driver asks for
less."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a request: an answer, or the reasons of repeated losses of workers."""

    answer: Any = None
    losses: tuple[str, ...] = ()


class Mailbox:
    """One request at a time, served by the newest generation of a group's workers. All methods are coroutines."""

    def __init__(self, restarts: int = RESTARTS):
        self._restarts = restarts
        self._changed = asyncio.Condition()
        self._generation, self._workers, self._closed = 0, 0, False
        self._number, self._request = 0, None
        self._outcome: Outcome | None = None
        self._failures: dict[int, tuple[str, Any]] = {}
        """Errors and answers of the current generation's failed workers on the current request, by rank."""
        self._agreed = (0, 0)
        """Generation and request of the last failure that all workers had in common."""
        self._losses: list[str] = []
        self._doubted = False

    async def post(self, request: Any) -> int:
        """Post the driver's next request; return its number."""
        async with self._changed:
            self._number, self._request, self._outcome = self._number + 1, request, None
            self._failures, self._losses, self._doubted = {}, [], False
            self._changed.notify_all()
            return self._number

    async def read(self, number: int) -> Outcome | None:
        """Return the outcome of a request; None if it takes longer than POLL_S."""
        await self._wait(lambda: self._number == number and self._outcome is not None)
        return self._outcome if self._number == number else None

    async def begin(self, workers: int) -> int:
        """Register a started group of this many workers; return its generation. Older generations are ignored."""
        async with self._changed:
            self._generation, self._workers, self._failures = self._generation + 1, workers, {}
            self._changed.notify_all()
            return self._generation

    async def take(self, generation: int, after: int) -> tuple[int, Any] | None:
        """Return the first unanswered request after number `after`; None after POLL_S without one; -1 to leave."""

        def leave() -> bool:
            return self._closed or generation != self._generation

        if not await self._wait(lambda: leave() or (self._number > after and self._outcome is None)):
            return None
        return (-1, None) if leave() else (self._number, self._request)

    async def answer(self, generation: int, number: int, answer: Any) -> None:
        async with self._changed:
            if self._open(generation, number):
                self._settle(Outcome(answer))

    async def fail(self, generation: int, number: int, rank: int, error: str, answer: Any) -> bool:
        """Report that a worker could not serve a request.

        Args:
            answer: the answer to the request if all workers failed alike.

        Returns:
            Whether the group can continue: all its workers failed alike, so that none waits for another.
        """
        this = (generation, number)
        async with self._changed:
            if not self._open(generation, number):
                return self._agreed == this
            self._failures[rank] = (error, answer)
            if len(self._failures) == self._workers and len({error for error, _ in self._failures.values()}) == 1:
                self._agreed = this
                self._settle(Outcome(answer))
        await self._wait(lambda: self._agreed == this or self._closed or generation != self._generation, AGREE_S)
        return self._agreed == this

    async def ended(self, losses: list[str]) -> None:
        """Report the end of the group, with a reason per lost worker; with none if workers left after a failure.

        The loss of a worker makes others fail, and their failure may arrive first. So a failure that not all workers
        had in common counts only if the next generation fails as well.
        """
        async with self._changed:
            if self._number == 0 or self._outcome is not None:
                return
            if losses:
                self._losses += losses[:1]
                if len(self._losses) > self._restarts or OUT_OF_MEMORY in losses[0]:
                    self._settle(Outcome(losses=tuple(self._losses)))
            elif self._failures:
                if self._doubted:
                    _, answer = self._failures[min(self._failures)]
                    self._settle(Outcome(answer))
                self._doubted = True

    async def close(self) -> None:
        """Make the workers leave."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _open(self, generation: int, number: int) -> bool:
        return (generation, number) == (self._generation, self._number) and self._outcome is None

    def _settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s or POLL_S)
        except asyncio.TimeoutError:
            return False
        return True
